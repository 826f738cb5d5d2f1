"""Binaries of attention: the first configuration of each launch that a target can hold."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence

from fuseline.build_gpu import Candidate, candidates, triton_source
from fuseline.codegen.gpu.kernel import TritonKernel
from fuseline.codegen.lower import Launch, emit
from fuseline.codegen.targets import GPU_TARGETS, Target
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu.triton_build import build_triton

_ASYNC = re.compile(r"cp\.async\.c[ag]\.shared\.global \[[^\]]*\], \[[^\]]*\], (0x\w+)")


def launches(text: str) -> list[Launch]:
    """What the one op of a func is lowered to, for GPUs."""
    func = parse_func(text)
    (step,) = emit(func, LayoutMap(func), "cuda")
    assert not step.refusal, step.refusal
    return list(step.launches)


def families(text: str) -> list[tuple[str, tuple[int, int | None] | None]]:
    """The launches by kernel family, with the sizes for which they run."""
    return [(x.kernel.family, x.when and (x.when[1], x.when[2])) for x in launches(text)]


def built(
    text: str, cache: Cache, targets: Sequence[Target] = GPU_TARGETS
) -> Iterator[tuple[Target, TritonKernel, Candidate]]:
    """The binary of every launch for every target: the first that does without spills."""
    for launch in launches(text):
        if isinstance(launch.kernel, TritonKernel):
            for target in targets:
                found = _first(launch, cache, target)
                assert isinstance(found.launch.kernel, TritonKernel)
                yield target, found.launch.kernel, found


def _first(launch: Launch, cache: Cache, target: Target) -> Candidate:
    said: list[str] = []
    for each in (launch, *launch.others):
        good, refused = candidates(cache, dataclasses.replace(each, others=()), target)
        if good:
            return good[0]
        said += refused
    raise AssertionError(f"no configuration for {target.name}: {said}")


def copied(kernel: TritonKernel, cache: Cache, target: Target) -> set[int]:
    """The sizes in bytes of a kernel's copies from global into shared memory."""
    ptx = build_triton(cache, triton_source(kernel), target.capability).file("kernel.ptx")
    return {int(size, 16) for size in _ASYNC.findall(ptx.read_text())}
