r"""Train the example's model on the documentation strings of Python's standard library.

    python -m examples.latent_moe.train --steps 1100 --out /tmp/latent_moe.safetensors

A model that was trained on short rows can go on with longer ones, whose positions are new to it:

    python -m examples.latent_moe.train --start /tmp/latent_moe.safetensors --length 256 --batch 4 \
        --rate 0.001 --steps 220 --out /tmp/longer.safetensors

The same steps and seed give the same weights on the same machine. The weights so far are written
every --save-every steps, so that an interrupted run leaves a model behind. Beside them goes a JSON
file with the losses in nats per byte, that of a bigram model of the same text among them; the exit
code is 0 if the model's loss on held-out modules is below the bigram's.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.latent_moe import corpus
from examples.latent_moe.model import LatentMoe, ModelConfig, load, save

BALANCE_RATE = 0.003


def main(argv: Sequence[str] | None = None) -> int:
    """Train; 0 if the model has learnt more than pairs of bytes."""
    options = parsed(argv)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)

    print("reading the standard library", flush=True)
    train, held_out = (corpus.documentation(held_out=side) for side in (False, True))
    rows = corpus.windows(held_out, options.length)
    bigram = corpus.Bigram(train).loss(rows)
    print(f"{len(train)} tokens to train on, {len(held_out)} held out; bigram loss {bigram:.4f}")

    model = begun(options)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    started = time.perf_counter(), time.process_time()
    steps, loss = optimise(model, train, options)
    seconds, cpu_seconds = time.perf_counter() - started[0], time.process_time() - started[1]

    stored = load(options.out)  # as it was rounded
    share = shares(stored, rows[:64])
    result: dict[str, Any] = {
        "train_loss": round(loss, 4),
        "held_out_loss": round(model_loss(stored, rows), 4),
        "bigram_loss": round(bigram, 4),
        "unit": "nats per byte",
        "steps": steps,
        "tokens": steps * options.batch * options.length,
        "length": options.length,
        "seed": options.seed,
        "seconds": round(seconds),
        "cpu_seconds": round(cpu_seconds),
        "threads": options.threads,
        "stored_as": options.dtype,
        "least_used_expert": round(min(map(min, share)), 4),
        "most_used_expert": round(max(map(max, share)), 4),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if options.start is not None:
        result["start"] = json.loads(options.start.with_suffix(".json").read_text())
    write(options.out.with_suffix(".json"), json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 0 if result["held_out_loss"] < bigram else 1


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=positive, default=1100, help="the schedule's end")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop early after these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("latent_moe.safetensors"))
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float16")
    parser.add_argument("--batch", type=positive, default=8, help="rows in a step")
    parser.add_argument("--length", type=positive, default=128, help="tokens in a row")
    parser.add_argument("--start", type=Path, help="weights to go on from, made by this program")
    parser.add_argument("--rate", type=float, default=4e-3, help="the highest learning rate")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--save-every", type=positive, default=100, metavar="STEPS")
    options = parser.parse_args(argv)
    if options.out.suffix != ".safetensors" or not options.out.parent.is_dir():
        parser.error(f"{options.out} is no .safetensors file in a folder that exists")
    longest = ModelConfig().length
    if options.length > longest:
        parser.error(f"rows of {options.length} tokens: the model has room for {longest}")
    start: Path | None = options.start
    for path in () if start is None else (start, start.with_suffix(".json")):
        if not path.is_file():
            parser.error(f"there is no file {path}")
    return options


def positive(text: str) -> int:
    """A count of at least one."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def begun(options: argparse.Namespace) -> LatentMoe:
    """The model as training finds it: new, or trained before."""
    if options.start is not None:
        return load(options.start).requires_grad_(True)
    model = LatentMoe(ModelConfig())
    model.initialize(torch.Generator().manual_seed(options.seed))
    return model


def optimise(model: LatentMoe, tokens: Tensor, options: argparse.Namespace) -> tuple[int, float]:
    """Train and save; how many steps were made, and the mean loss of the last fifty."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer: Any = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(options.seed)
    dtype, length = getattr(torch, options.dtype), options.length
    started = time.perf_counter()
    losses: list[float] = []
    model.train()
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.rate * schedule(step, options.steps)
        starts = torch.randint(len(tokens) - length, (options.batch, 1), generator=generator)
        rows = tokens[starts + torch.arange(length + 1)]
        loss = row_loss(model, rows)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for router in model.routers():
            router.balance(BALANCE_RATE)
        losses.append(loss.item())

        elapsed = time.perf_counter() - started
        done = step + 1 == options.steps or elapsed > 60 * options.minutes
        if done or (step + 1) % 20 == 0:
            rate = (step + 1) * options.batch * length / elapsed
            recent = sum(losses[-20:]) / len(losses[-20:])
            print(f"step {step + 1:5}  loss {recent:.4f}  {rate:6.0f} tokens/s", flush=True)
        if done or (step + 1) % options.save_every == 0:
            save(model, options.out, dtype)
        if done:
            break
    return len(losses), sum(losses[-50:]) / len(losses[-50:])


def schedule(step: int, steps: int) -> float:
    """A factor of the learning rate: up within a twentieth of the steps, then down a cosine."""
    warm = max(steps // 20, 1)
    if step < warm:
        return (step + 1) / warm
    return 0.02 + 0.49 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def row_loss(model: LatentMoe, rows: Tensor) -> Tensor:
    """The mean loss of rows of tokens, in nats."""
    logits = model(rows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


@torch.inference_mode()
def model_loss(model: LatentMoe, rows: Tensor) -> float:
    """The mean loss of many rows, in nats; each row stands alone."""
    parts = [rows[start : start + 32] for start in range(0, len(rows), 32)]
    return sum(row_loss(model, part).item() * len(part) for part in parts) / len(rows)


@torch.inference_mode()
def shares(model: LatentMoe, rows: Tensor) -> list[list[float]]:
    """The share of the tokens' choices that each expert of each layer has."""
    model.train()
    model(rows[:, :-1])
    model.eval()
    return [[float(x / router.load.sum()) for x in router.load] for router in model.routers()]


def write(path: Path, text: str) -> None:
    """Replace a file at once."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
