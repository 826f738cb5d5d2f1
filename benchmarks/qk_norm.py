"""QK norm with RoPE, as a Qwen3 spells it: fuseline's program against torch.compile's kernels.

    OMP_NUM_THREADS=1 python -m benchmarks.qk_norm --threads 1

16 query and 8 key heads of 128 out of one merged projection, compiled for each number of tokens.
Each side is called in three ways: ``kernel`` is the generated kernels alone, on buffers that are
there; ``inner`` what the compiler made of the function, called as directly as it can be (fuseline's
program with its argument checks, inductor's ``call`` with its own), which allocates results; and
``outer`` the whole function, with Dynamo's guards around both.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.by_size import BySize
from benchmarks.common import Json, by_turns, load, medians
from benchmarks.micro_rows import inductor_kernels
from benchmarks.models import DTYPES
from fuseline import Config, _torch
from fuseline.compiler import Compiler
from fuseline.debug.oracle import relative_error
from fuseline.frontend.backend import Backend
from fuseline.runtime.native import Piece

HEADS, KEY_HEADS, WIDTH = 16, 8, 128
TOKENS = (1, 2, 4, 8, 32, 128, 512)

Run = Callable[[], object]


class QkNorm(nn.Module):
    """Norm of each head and rotation, with a weight each for queries and keys."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.q_weight, self.k_weight = (
            nn.Parameter((1 + 0.1 * torch.randn(WIDTH, generator=generator)).to(dtype))
            for _ in range(2)
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """x [1, S, 24 * 128], cos and sin [1, S, 128]: q [1, 16, S, 128], k [1, 8, S, 128]."""
        q, k = cast("Any", x).split((HEADS * WIDTH, KEY_HEADS * WIDTH), -1)
        q = rms_norm(q.view(1, -1, HEADS, WIDTH), self.q_weight).transpose(1, 2)
        k = rms_norm(k.view(1, -1, KEY_HEADS, WIDTH), self.k_weight).transpose(1, 2)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """As Qwen3 has it: normalised in float32, rounded, then multiplied by the weight."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return weight * wide.to(x.dtype)


def rotate_half(x: Tensor) -> Tensor:
    """The rotation's partner of each element."""
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)


def inputs(tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A merged projection, and the tables of the rotation."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, tokens, (HEADS + KEY_HEADS) * WIDTH, generator=generator)
    frequencies = 1e6 ** -(torch.arange(0, WIDTH, 2) / WIDTH)
    angles = torch.arange(tokens)[None, :, None] * frequencies
    both = torch.cat((angles, angles), -1)
    return x.to(dtype), both.cos().to(dtype), both.sin().to(dtype)


def ours(model: nn.Module, given: tuple[Tensor, ...]) -> dict[str, Run]:
    """Fuseline's program, and the compiled function around it."""
    compiler, kept = Compiler(Config()), list[Run]()

    def step(captured: Any) -> Any:
        program = compiler(captured)

        def first(arguments: Sequence[Any]) -> Sequence[Tensor]:
            kept.append(lambda: program(arguments))
            return program(arguments)

        return first

    torch.compiler.reset()
    recording = _torch.optimize(model, Backend(step), dynamic=False)
    recording(*given)
    torch.compiler.reset()
    compiled = _torch.optimize(model, Backend(Compiler(Config())), dynamic=False)
    return {
        "fuseline kernel": kernels_of(kept[0]),
        "fuseline inner": kept[0],
        "fuseline outer": lambda: compiled(*given),
    }


def kernels_of(run: Run) -> Run:
    """What a run of a program calls natively, on the buffers of that run."""
    calls: list[tuple[Piece, Sequence[Tensor | None]]] = []
    original = Piece.__call__

    def record(piece: Piece, tensors: Sequence[Tensor | None]) -> None:
        calls.append((piece, list(tensors)))
        original(piece, tensors)

    with mock.patch.object(Piece, "__call__", record):
        run()

    def again() -> None:
        for piece, tensors in calls:
            piece(tensors)

    return again


def theirs(model: nn.Module, given: tuple[Tensor, ...]) -> dict[str, Run]:
    """Inductor's generated ``call``, and the compiled function around it."""
    compiled = _torch.optimize(model, "inductor", dynamic=False)
    compiled(*given)
    cache: Any = importlib.import_module("torch._inductor.codecache").PyCodeCache
    module = next(m for m in reversed(cache.modules) if hasattr(m, "call"))
    arguments: list[Any] = module.get_args()  # seeded by nobody, but of the right sizes
    # The list is emptied by the call, as it is when the compiled function makes it.
    kernels = inductor_kernels(compiled, given)
    assert kernels is not None, "inductor has generated some"
    return {
        "torch.compile kernel": kernels,
        "torch.compile inner": lambda: module.call(list(arguments)),
        "torch.compile outer": lambda: compiled(*given),
    }


def measure(tokens: int, dtype: str, seconds: float) -> Json:
    """Samples and figures for one number of tokens."""
    model, given = QkNorm(DTYPES[dtype]), inputs(tokens, DTYPES[dtype])
    runs = ours(model, given) | theirs(model, given) | {"eager": lambda: model(*given)}
    checked = ("fuseline inner", "fuseline outer", "torch.compile outer")
    differences = {name: relative_error(runs[name](), runs["eager"]()) for name in checked}
    repeats = {name: repeats_of(run) for name, run in runs.items()}
    samples = by_turns(
        {name: repeated(run, repeats[name]) for name, run in runs.items()},
        seconds=seconds,
        most=40,
        calls=3,
        untimed=6,
    )
    samples = {name: [s / repeats[name] for s in taken] for name, taken in samples.items()}
    middle = medians(samples)
    return {
        "median_s": middle,
        "speedup": {
            "kernel": middle["torch.compile kernel"] / middle["fuseline kernel"],
            "inner": middle["torch.compile inner"] / middle["fuseline inner"],
            "outer": middle["torch.compile outer"] / middle["fuseline outer"],
            "eager": middle["eager"] / middle["fuseline outer"],
        },
        "difference_to_eager": differences,
        "load": load(),
        "samples_s": samples,
    }


def repeats_of(run: Run) -> int:
    """How many calls take a millisecond or so: one alone is short for the clock."""
    started = time.perf_counter()
    for _ in range(5):
        run()
    return max(1, int(5e-3 / (time.perf_counter() - started)))


def repeated(run: Run, times: int) -> Run:
    """So many calls as one."""

    def several() -> None:
        for _ in range(times):
            run()

    return several


BENCHMARK = BySize("qk_norm", __doc__, "tokens", TOKENS, 2, measure, (1e-6, "us"))


if __name__ == "__main__":
    BENCHMARK.main(sys.argv[1:])
