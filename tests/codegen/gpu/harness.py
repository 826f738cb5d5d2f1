"""Kernels for a GPU from a func in text form: to numbers, and to binaries.

Those in Triton run through its interpreter, those in CUDA C++ are compiled for the host; with
``pytest --device cuda`` both run on the GPU at hand.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Literal, cast

import pytest
import torch
from torch import Tensor

from fuseline.build_gpu import Candidate, candidate
from fuseline.codegen.gpu.cuda import CudaKernel
from fuseline.codegen.gpu.kernel import GpuKernel, TritonKernel
from fuseline.codegen.library import LibraryKernel
from fuseline.codegen.lower import Launch, emit
from fuseline.codegen.targets import GPU_TARGETS, Target
from fuseline.ir.core import Func
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.ir.types import DType
from fuseline.runtime.cache import Cache
from tests.codegen.gpu.host import host
from tests.codegen.gpu.interpreter import interpreter
from tests.codegen.machine import Machine, check_machines

pytest.importorskip("triton", reason="Triton is not installed")


ROAD: Literal["triton", "cuda"] = "triton"
"""What the kernels that are run are written in."""


def on_device() -> bool:
    """Whether kernels run on the GPU."""
    return os.environ.get("FL_TEST_DEVICE") == "cuda"


def interpreted(
    launch: Launch, buffers: Sequence[Tensor | None], dims: Sequence[int], grid: Sequence[int]
) -> None:
    """Run a launch as it is configured: interpreted or on the host; or on the GPU."""
    kernel = cast("GpuKernel", launch.kernel)
    given = dict((*kernel.buffers, *kernel.dims))
    assert len(given) == len(buffers) + len(dims)
    typed = [
        _as_elements(buffer, kind)
        for (_, kind), buffer in zip(kernel.buffers, buffers, strict=True)
    ]
    if on_device():
        from tests.codegen.gpu.device import device

        device().run(launch, typed, dims, grid)
    elif isinstance(kernel, CudaKernel):
        host().run(kernel, typed, dims, grid)
    else:
        interpreter().run(kernel.symbol, kernel.render(), typed, dims, grid)


def _as_elements(buffer: Tensor | None, kind: str) -> Tensor | None:
    """A buffer as the kernel declares it: scratch comes as bytes."""
    if buffer is None or buffer.dtype != torch.uint8:
        return buffer
    return buffer.view(DType(kind).torch)


def in_language(launch: Launch) -> Launch:
    """A launch with those of its configurations that are in the language at hand."""
    kind = CudaKernel if ROAD == "cuda" else TritonKernel
    found = [n for n in (launch, *launch.others) if isinstance(n.kernel, kind)]
    assert found, f"no configuration of {launch.kernel.family} in {ROAD}"
    return dataclasses.replace(found[0], others=tuple(found[1:]))


def configured(launch: Launch) -> Launch:
    """The first configuration of a launch in the language at hand; on a GPU the one that suits."""
    first = in_language(launch)
    if on_device():
        from tests.codegen.gpu.device import device

        return device().configure(first)
    return first


def run_func(func: Func, arguments: Sequence[Tensor]) -> Machine:
    """What a func was lowered to, after a run."""
    return Machine(func, arguments, interpreted, backend="cuda", configure=configured)


def check(text: str, arguments: Sequence[Tensor], *, ops: Sequence[str] | None = None) -> None:
    """The launches give what the references give, within the numbers rule."""
    check_machines(text, arguments, lambda func: run_func(func, arguments), ops=ops)


def binaries(
    text: str, cache: Cache, targets: Sequence[Target] = GPU_TARGETS
) -> list[tuple[Target, Candidate]]:
    """The binaries of every launch for every target, in Triton or, by the fixture of a module, in
    CUDA C++: each first configuration must do.
    """
    func = parse_func(text)
    emitted = emit(func, LayoutMap(func), "cuda")
    found: list[tuple[Target, Candidate]] = []
    for step in emitted:
        assert not step.refusal, step.refusal
        found += binaries_of(step.launches, cache, targets)
    return found


def binaries_of(
    launches: Sequence[Launch], cache: Cache, targets: Sequence[Target] = GPU_TARGETS
) -> list[tuple[Target, Candidate]]:
    """The same for launches."""
    found: list[tuple[Target, Candidate]] = []
    for launch in launches:
        if isinstance(launch.kernel, LibraryKernel):
            continue
        for target in targets:
            made = candidate(cache, in_language(launch), target)
            assert isinstance(made, Candidate), made
            found.append((target, made))
    return found
