"""Triton kernels from a func in text form: to numbers, through the interpreter, and to binaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest
import torch
from torch import Tensor

from fuseline.build_gpu import Candidate, candidate
from fuseline.codegen.gpu.kernel import TritonKernel
from fuseline.codegen.library import LibraryKernel
from fuseline.codegen.lower import Launch, emit
from fuseline.codegen.targets import GPU_TARGETS, Target
from fuseline.ir.core import Func
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.ir.types import DType
from fuseline.runtime.cache import Cache
from tests.codegen.gpu.interpreter import interpreter
from tests.codegen.machine import Machine, check_machines

pytest.importorskip("triton", reason="Triton is not installed")


def interpreted(
    launch: Launch, buffers: Sequence[Tensor | None], dims: Sequence[int], grid: Sequence[int]
) -> None:
    """Interpret a launch: the first configuration."""
    kernel = cast("TritonKernel", launch.kernel)
    given = dict((*kernel.buffers, *kernel.dims))
    assert len(given) == len(buffers) + len(dims)
    typed = [
        _as_elements(buffer, kind)
        for (_, kind), buffer in zip(kernel.buffers, buffers, strict=True)
    ]
    interpreter().run(kernel.symbol, kernel.render(), typed, dims, grid)


def _as_elements(buffer: Tensor | None, kind: str) -> Tensor | None:
    """A buffer as the kernel declares it: scratch comes as bytes."""
    if buffer is None or buffer.dtype != torch.uint8:
        return buffer
    return buffer.view(DType(kind).torch)


def check(text: str, arguments: Sequence[Tensor], *, ops: Sequence[str] | None = None) -> None:
    """The interpreted launches give what the references give, within the numbers rule."""

    def machine(func: Func) -> Machine:
        return Machine(func, arguments, interpreted, backend="cuda")

    check_machines(text, arguments, machine, ops=ops)


def binaries(
    text: str, cache: Cache, targets: Sequence[Target] = GPU_TARGETS
) -> list[tuple[Target, Candidate]]:
    """The binaries of every launch for every target: each first configuration must do."""
    func = parse_func(text)
    emitted = emit(func, LayoutMap(func), "cuda")
    found: list[tuple[Target, Candidate]] = []
    for step in emitted:
        assert not step.refusal, step.refusal
        for launch in step.launches:
            if isinstance(launch.kernel, LibraryKernel):
                continue
            for target in targets:
                made = candidate(cache, launch, target)
                assert isinstance(made, Candidate), made
                found.append((target, made))
    return found
