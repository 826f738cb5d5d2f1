"""Row kernels (QK norm with RoPE, norms, attention) against eager and against torch.compile.

    python -m benchmarks.micro_rows --output benchmarks/results/micro_rows.json

torch.compile is timed twice: the call of the compiled function, and only the kernels that inductor
generated, called on the buffers of that call ("inductor"), which leaves out guards and
allocation. Everything is compiled for the one static shape, on one thread; samples are taken by
turns, so that a ratio is one of neighbours in time. On a busy machine (see "load") the least of
the samples says more than the median.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.micro_linear import machine
from fuseline._torch import optimize
from fuseline.codegen.cpu.attention import AttentionKernel, attention_kind
from fuseline.codegen.cpu.norm import NormKernel
from fuseline.codegen.cpu.qk_norm_rope import QkNormRopeKernel
from fuseline.codegen.heads import Rotation, qk_streams
from tests.codegen.cpu.harness import build

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
Run = Callable[[], object]


@dataclass
class Case:
    """One comparison: our launches, and the model code on the same operands."""

    name: str
    ours: dict[str, Run]
    model: Callable[..., Any]
    operands: tuple[Tensor, ...]
    sizes: dict[str, int | str] = field(default_factory=dict[str, "int | str"])
    outputs: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


def rotate_half(x: Tensor) -> Tensor:
    """The rotation's partner of each element."""
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], -1)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """As llama and qwen3 spell it."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return weight * wide.to(x.dtype)


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def qk_norm_rope(
    dtype: str, tokens: int, heads: tuple[int, int] = (16, 8), width: int = 128
) -> Case:
    """Query and key heads out of one merged projection, into ``[B, H, S, D]``."""
    kind, (hq, hk) = DTYPES[dtype], heads
    merged = random(1, tokens, (hq + hk) * width, dtype=kind)
    wq, wk = random(width, dtype=kind), random(width, dtype=kind)
    cos, sin = random(1, tokens, width, dtype=kind), random(1, tokens, width, dtype=kind)

    def model(x: Tensor, wq: Tensor, wk: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        q = x[..., : hq * width].reshape(1, tokens, hq, width)
        k = x[..., hq * width :].reshape(1, tokens, hk, width)
        q, k = rms_norm(q, wq).transpose(1, 2), rms_norm(k, wk).transpose(1, 2)
        c, s = cos.unsqueeze(1), sin.unsqueeze(1)
        return q * c + rotate_half(q) * s, k * c + rotate_half(k) * s

    q = merged[..., : hq * width].reshape(1, tokens, hq, width)
    k = merged[..., hq * width :].reshape(1, tokens, hk, width)
    q_out, k_out = (torch.empty(1, n, tokens, width, dtype=kind) for n in heads)
    bufs = [q, q_out, wq, k, k_out, wk, cos, sin]
    dims = [1, tokens]
    for value, out in ((q, q_out), (k, k_out)):
        dims += [*value.stride()[:3], *out.transpose(1, 2).stride()[:3]]
    dims += [0, width, 0, width]
    ours: dict[str, Run] = {}
    for name, rounded in (("fuseline", True), ("fuseline unrounded", False)):
        streams = qk_streams(heads, width, weights=(dtype, dtype))
        kernel = QkNormRopeKernel(dtype, streams, Rotation(width, dtype=dtype), rounded=rounded)
        if rounded or dtype != "f32":
            ours[name] = build(kernel).prepare(bufs, dims)[0]
    sizes: dict[str, int | str] = {"dtype": dtype, "tokens": tokens}
    operands = (merged, wq, wk, cos, sin)
    return Case("qk_norm_rope", ours, model, operands, sizes, {"q": q_out, "k": k_out})


def add_rms_norm(dtype: str, rows: int, width: int = 1024) -> Case:
    """The residual sum and the norm of it."""
    kind = DTYPES[dtype]
    x, r = (random(rows, width, dtype=kind, seed=i) for i in (1, 2))
    w = random(width, dtype=kind)

    def model(x: Tensor, r: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        total = x + r
        return total, rms_norm(total, w)

    total, y = torch.empty_like(x), torch.empty_like(x)
    kernel = NormKernel(dtype, width, weight=dtype, residual=True)
    run = build(kernel).prepare([x, r, w, total, y], [rows, 1, *([width, 0] * 4)])[0]
    sizes: dict[str, int | str] = {"dtype": dtype, "tokens": rows}
    outputs = {"sum": total, "y": y}
    return Case("add_rms_norm", {"fuseline": run}, model, (x, r, w), sizes, outputs)


def attention(dtype: str, batch: int, queries: int, context: int, capacity: int) -> Case:
    """16 query heads over 8 key heads of 128: a decode step on a static cache, or a prefill."""
    kind, kv_heads, group, width = DTYPES[dtype], 8, 2, 128
    heads = kv_heads * group
    q = random(batch, heads, queries, width, dtype=kind)
    k, v = (random(batch, kv_heads, capacity, width, dtype=kind, seed=i) for i in (1, 2))
    positions = torch.arange(context - queries, context)
    mask = (torch.arange(capacity) <= positions[:, None])[None, None]

    def model(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        keys, values = (t.repeat_interleave(group, 1) for t in (k, v))
        return F.scaled_dot_product_attention(q, keys, values, mask)

    y = torch.empty(batch, queries, heads, width, dtype=kind).transpose(1, 2)
    make: type[AttentionKernel] = attention_kind(group * queries)
    kernel = make(dtype, group, width, width, width**-0.5, causal=True, positions=True)
    dims = [batch, kv_heads, queries, capacity]
    for value in (q, k, v, y):
        dims += value.stride()[:3]
    run = build(kernel).prepare([q, k, v, positions, y], [*dims, 0])[0]
    sizes: dict[str, int | str] = {"dtype": dtype, "batch": batch, "tokens": queries}
    sizes |= {"context": context, "capacity": capacity}
    return Case("attention", {"fuseline": run}, model, (q, k, v, mask), sizes, {"y": y})


def inductor_kernels(compiled: Callable[..., Any], operands: tuple[Tensor, ...]) -> Run | None:
    """A function that calls the generated kernels of the last compiled graph, and nothing else."""
    cache: Any = importlib.import_module("torch._inductor.codecache").PyCodeCache
    module = cache.modules[-1]
    names = [name for name in dir(module) if name.startswith("cpp_fused")]
    calls: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    def recorder(kernel: Callable[..., object]) -> Callable[..., object]:
        def record(*args: Any) -> object:
            calls.append((kernel, args))
            return kernel(*args)

        return record

    kernels = {name: getattr(module, name) for name in names}
    for name, kernel in kernels.items():
        setattr(module, name, recorder(kernel))
    compiled(*operands)
    for name, kernel in kernels.items():
        setattr(module, name, kernel)

    def run() -> None:
        for kernel, args in calls:
            kernel(*args)

    return run if calls else None


def seconds(run: Run, repeats: int) -> float:
    """Seconds of one call, over ``repeats``."""
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Samples of every variant, by turns, and the ratios of the medians."""
    torch.compiler.reset()
    compiled = optimize(case.model, "inductor", dynamic=False)
    with torch.no_grad():
        results = compiled(*case.operands)
        variants: dict[str, Run] = dict(case.ours)
        variants["eager"] = lambda: case.model(*case.operands)
        variants["torch.compile"] = lambda: compiled(*case.operands)
        if case.name != "attention" and (inner := inductor_kernels(compiled, case.operands)):
            variants["inductor"] = inner
        errors = check(case, results)
        repeats = {n: max(1, int(1e-3 / seconds(run, 2))) for n, run in variants.items()}
        samples: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(rounds):
            for name, run in variants.items():
                samples[name].append(seconds(run, repeats[name]))
    medians = {name: statistics.median(values) for name, values in samples.items()}
    return {
        "name": case.name,
        **case.sizes,
        "median_s": medians,
        "least_s": {name: min(values) for name, values in samples.items()},
        "relative_difference": errors,
        "samples_s": samples,
    }


def difference(value: Tensor, wanted: Tensor) -> float:
    """The norm of the difference over the norm of what was wanted."""
    return float((value - wanted).square().sum().sqrt() / wanted.square().sum().sqrt())


def check(case: Case, results: Any) -> dict[str, float]:
    """How far each of our variants is from torch.compile."""
    wanted: tuple[Tensor, ...] = tuple(results) if len(case.outputs) > 1 else (results,)
    errors: dict[str, float] = {}
    for name, run in case.ours.items():
        run()
        pairs = zip(case.outputs.values(), wanted, strict=True)
        errors[name] = max(difference(a.float(), b.float()) for a, b in pairs)
    return errors


def show(result: dict[str, Any]) -> None:
    """One line for a case: median and least microseconds, and how much slower the others are."""
    medians: dict[str, float] = result["median_s"]
    least: dict[str, float] = result["least_s"]
    sizes = " ".join(str(result[k]) for k in ("dtype", "batch", "tokens", "context") if k in result)
    parts = [
        f"{name} {t * 1e6:.1f} us ({t / medians['fuseline']:.1f} x),"
        f" least {least[name] * 1e6:.1f} us ({least[name] / least['fuseline']:.1f} x)"
        for name, t in medians.items()
    ]
    print(f"{result['name']} {sizes}: {'; '.join(parts)}", flush=True)


def cases() -> dict[str, list[Callable[[], Case]]]:
    """What can be measured, made when it is its turn."""
    both = ("f32", "bf16")
    rows = (1, 8, 64, 512)
    steps = ((1, 1, 200, 1024), (1, 1, 1000, 1024), (8, 1, 200, 256), (1, 128, 128, 128))
    return {
        "qk_norm_rope": [lambda d=d, t=t: qk_norm_rope(d, t) for d in both for t in rows],
        "add_rms_norm": [lambda d=d, t=t: add_rms_norm(d, t) for d in both for t in (1, 8, 128)],
        "attention": [lambda d=d, s=s: attention(d, *s) for d in both for s in steps],
    }


def main(argv: Sequence[str]) -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description="row kernels against eager and torch.compile")
    parser.add_argument("--cases", nargs="+", default=list(cases()), choices=list(cases()))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        "command": f"python -m benchmarks.micro_rows {' '.join(argv)}".strip(),
        "machine": machine() | {"load": round(os.getloadavg()[0], 1)},
        "results": [],
    }
    for name in args.cases:
        for make in cases()[name]:
            report["results"].append(measure(make(), args.rounds))
            show(report["results"][-1])
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
