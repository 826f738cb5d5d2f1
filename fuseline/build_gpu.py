"""From lowered launches to binaries for a GPU, and which of them a target can hold."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline import errors
from fuseline.codegen.gpu.cuda import CudaKernel
from fuseline.codegen.gpu.kernel import GpuKernel, TritonKernel
from fuseline.codegen.kernel import KernelTemplate
from fuseline.codegen.lower import Launch
from fuseline.codegen.targets import Target
from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu.binary import Binary
from fuseline.runtime.gpu.cuda_build import CudaError, CudaSource, build_cuda, has_nvrtc
from fuseline.runtime.gpu.triton_build import TritonError, TritonSource, build_triton


@dataclass(frozen=True)
class Candidate:
    """A configuration of a launch that the target can run, and how much of it fits at once.

    ``resident`` is the share of a multiprocessor's warps that its blocks may occupy.
    """

    launch: Launch
    binary: Binary
    resident: float


def needs_building(launch: Launch) -> bool:
    """Whether a launch has a kernel of ours."""
    return isinstance(launch.kernel, GpuKernel)


def triton_source(kernel: TritonKernel) -> TritonSource:
    """A kernel as the builder takes it."""
    return TritonSource(
        symbol=kernel.symbol,
        text=kernel.render(),
        signature=kernel.signature,
        hints=dict(kernel.hints),
        warps=kernel.warps,
        stages=kernel.stages,
    )


def cuda_source(kernel: CudaKernel) -> CudaSource:
    """The same for a kernel in CUDA C++."""
    return CudaSource(kernel.symbol, kernel.render(), kernel.signature, kernel.warps)


def build_kernel(cache: Cache, kernel: KernelTemplate, target: Target) -> Binary:
    """The binary of a kernel for a target, from the cache or built now, whatever it is written in.

    Raises:
        TritonError: FL0706, if it does not compile.
        CudaError: FL0706, if it does not compile; FL0708, without NVRTC.
        CacheError: where nothing can be stored.

    """
    if isinstance(kernel, CudaKernel):
        return Binary.of(build_cuda(cache, cuda_source(kernel), target.capability))
    assert isinstance(kernel, TritonKernel), f"{kernel.family} is no kernel for a GPU"
    return Binary.of(build_triton(cache, triton_source(kernel), target.capability))


def choose(cache: Cache, launch: Launch, target: Target) -> Candidate | str:
    """The first configuration of a launch, in the order of the lowering, that a target can run: one
    that neither spills nor asks for more than the target has; or why there is none.
    """
    refused: list[str] = []
    for each in (launch, *launch.others):
        made = candidate(cache, each, target)
        if isinstance(made, Candidate):
            return made
        refused.append(made)
    return "; ".join(refused)


def candidates(cache: Cache, launch: Launch, target: Target) -> tuple[list[Candidate], list[str]]:
    """The configurations of a launch that a target runs, and why it does not run the others."""
    made = [candidate(cache, each, target) for each in (launch, *launch.others)]
    return [m for m in made if isinstance(m, Candidate)], [m for m in made if isinstance(m, str)]


def candidate(cache: Cache, launch: Launch, target: Target) -> Candidate | str:
    """One configuration for a target, or why the target does not run it."""
    kernel = launch.kernel
    try:
        binary = build_kernel(cache, kernel, target)
    except (TritonError, CudaError) as error:
        return str(error.diagnostic)
    if reason := refusal(binary, target):
        return f"{kernel.symbol}: {reason}"
    blocks = target.occupancy(binary.warps, binary.resources["registers"], _shared(binary))
    return Candidate(launch, binary, blocks * binary.warps / target.warps)


def not_tried(launch: Launch) -> str:
    """What the report says beside a launch of which no configuration in CUDA C++ can be built; else
    empty.
    """
    among = any(isinstance(each.kernel, CudaKernel) for each in (launch, *launch.others))
    return f"; in Triton only: {errors.NO_NVRTC.title}" if among and not has_nvrtc() else ""


def refusal(binary: Binary, target: Target) -> str:
    """Why a target should not run a binary; empty where it may."""
    if binary.spills:
        return f"it spills {binary.resources['stack']} bytes of a thread's values on {target.name}"
    if binary.scratch:
        return f"it wants {binary.scratch} bytes of memory that a launch does not give"
    if _shared(binary) > target.block_memory:
        have = target.block_memory
        return f"{_shared(binary)} bytes of shared memory; a block of {target.name} has {have}"
    if not target.occupancy(binary.warps, binary.resources["registers"], _shared(binary)):
        return f"{binary.resources['registers']} registers for each of {32 * binary.warps} threads"
    return ""


def _shared(binary: Binary) -> int:
    return binary.shared_memory + binary.resources["static_shared_memory"]


__all__ = [
    "Candidate",
    "build_kernel",
    "candidate",
    "candidates",
    "choose",
    "cuda_source",
    "needs_building",
    "not_tried",
    "refusal",
    "triton_source",
]
