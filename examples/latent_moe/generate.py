"""Continue a text with the example's model, compiled, and compare with eager.

    python -m examples.latent_moe.generate --prompt "Return a list of" --tokens 200

Each new byte is the likeliest one. The exit code is 0 if the compiled model's are eager's.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

import fuseline
from examples.latent_moe.model import END, LatentMoe, load

WEIGHTS = Path(__file__).with_name("latent_moe.safetensors")

Model: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the text; 0 if it is eager's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompt", default="Return a list of")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument(
        "--cache",
        choices=["expanded", "latent"],
        default="expanded",
        help="what the model itself caches: keys and values, or what they are expanded from",
    )
    parser.add_argument(
        "--compiled-cache",
        choices=["model", "latent"],
        default="model",
        help="what the compiled model caches: what the model does, or latents in their place",
    )
    options = parser.parse_args(argv)
    prompt = list(options.prompt.encode())
    if not options.weights.is_file():
        parser.error(f"there is no file {options.weights}")
    model = load(options.weights, cache=options.cache)
    room = model.config.length - len(prompt)
    if not prompt or not 0 < options.tokens <= room:
        parser.error(f"a prompt of {len(prompt)} bytes leaves room for 1 to {room} tokens")

    compiled: Any = fuseline.compile(model, cache=options.compiled_cache)
    print("compiling a prefill and a step", file=sys.stderr, flush=True)
    greedy(compiled, prompt, 2)
    tokens, seconds = timed(compiled, prompt, options.tokens)
    eager_tokens, eager_seconds = timed(model, prompt, options.tokens)

    print(f"{options.prompt}{text(tokens)}\n")
    report = compiled.report()
    print(report.sites_table())
    print(f"\nthe model's cache: {cache_bytes(model)} bytes per token, {options.cache}")
    for found in cached_latents(report):
        print(f"kept by the compiled code instead, in each layer: {found} bytes per token")
    print(f"fuseline {options.tokens / seconds:.0f} tokens/s, ", end="")
    print(f"eager {options.tokens / eager_seconds:.0f} tokens/s")
    same = tokens == eager_tokens
    print(f"all {len(tokens)} tokens are eager's" if same else "the tokens are not eager's")
    return 0 if same else 1


def timed(model: Model, prompt: Sequence[int], count: int) -> tuple[list[int], float]:
    """The tokens that follow a prompt, and the seconds it took."""
    started = time.perf_counter()
    return greedy(model, prompt, count), time.perf_counter() - started


def greedy(model: Model, prompt: Sequence[int], count: int) -> list[int]:
    """The likeliest tokens after a prompt."""
    return [int(logits.argmax()) for logits in continuation(model, prompt, count)]


def continuation(model: Model, prompt: Sequence[int], count: int) -> Iterator[Tensor]:
    """The logits of each token of greedy text after a prompt: a prefill, then single steps."""
    ids, positions = torch.tensor([list(prompt)]), torch.arange(len(prompt))
    for _ in range(count):
        with torch.inference_mode():
            logits = model(ids, positions)[0, -1]
        yield logits
        ids, positions = logits.argmax().view(1, 1), positions[-1:] + 1


def text(tokens: Sequence[int]) -> str:
    """What tokens say; a blank line stands where a text ends."""
    written = b"".join(b"\n\n" if token == END else bytes([token]) for token in tokens)
    return written.decode(errors="replace")


def cache_bytes(model: LatentMoe) -> int:
    """How much the cache grows with every token of every text."""
    caches = [x for name, x in model.named_buffers() if name.endswith("_cache")]
    return sum(x.nbytes for x in caches) // (model.config.length * len(caches[0]))


def cached_latents(report: fuseline.Report) -> list[str]:
    """What the report says of caches that hold latents in place of keys and values."""
    sites = [site for site in report.sites if site.pattern == "latent_cache"]
    return sorted({str(site.details["cache bytes per token"]) for site in sites})


if __name__ == "__main__":
    sys.exit(main())
