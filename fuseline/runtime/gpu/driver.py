"""The CUDA driver, through `cuda.bindings`: modules, functions, and what goes wrong with them."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import weakref
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fuseline import errors
from fuseline.runtime.gpu.binary import Binary

LIBRARY = "libcuda.so.1"


@dataclass(frozen=True)
class Function:
    """A kernel that is loaded on a device; ``module`` keeps it there.

    Attributes:
        handle: the driver's.
        threads: of a block.
        shared_memory: bytes of dynamic shared memory.
        parameters: the types of its arguments, without scratch pointers.
        module: what it was loaded with.
        waits: see `Binary`.
    """

    handle: int
    threads: int
    shared_memory: int
    parameters: tuple[str, ...]
    module: Any
    waits: bool = False


@lru_cache(maxsize=1)
def driver() -> Any:
    """The bindings, initialised.

    Raises:
        DeviceError: FL1001, without a driver or the bindings.

    """
    if not has_bindings():
        raise errors.NO_DRIVER.error(found="no package cuda-bindings")
    bindings: Any = importlib.import_module("cuda.bindings.driver")
    try:
        (status,) = bindings.cuInit(0)
    except RuntimeError as error:  # there is no library
        raise errors.NO_DRIVER.error(found=str(error).splitlines()[0]) from error
    if status:
        raise errors.NO_DRIVER.error(found=_name(bindings, status))
    return bindings


def supported_cuda() -> tuple[int, int] | None:
    """The version of CUDA that the installed driver supports; None where there is no driver, or no
    cuda-bindings to ask it. Works with a driver that torch cannot use.
    """
    if not has_bindings():
        return None
    bindings: Any = importlib.import_module("cuda.bindings.driver")
    try:
        status, number = bindings.cuDriverGetVersion()
    except RuntimeError:  # there is no library
        return None
    return None if status or not number else (number // 1000, number % 1000 // 10)


def has_bindings() -> bool:
    """Whether the package cuda-bindings is installed."""
    return all(importlib.util.find_spec(name) for name in ("cuda", "cuda.bindings"))


@lru_cache(maxsize=1)
def launcher_addresses() -> tuple[int, ...]:
    """The addresses of what the launcher calls: to launch, in two ways, of which older drivers lack
    the second; to enter a context and to leave it, and to have one stream wait for another.
    """
    driver()
    library = ctypes.CDLL(LIBRARY)
    contexts = ("cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2")
    names = ("cuLaunchKernel", "cuLaunchKernelEx", *contexts, "cuEventRecord", "cuStreamWaitEvent")
    found = [getattr(library, name, None) for name in names]
    return tuple(ctypes.cast(f, ctypes.c_void_p).value or 0 if f else 0 for f in found)


@lru_cache
def primary_context(number: int) -> int:
    """The handle of a device's primary context, which is torch's; it is kept for good.

    Raises:
        DeviceError: FL1002, for a device that is not there.

    """
    cuda = driver()
    device = _checked(cuda, cuda.cuDeviceGet(number), f"for device {number}", "")
    return int(_checked(cuda, cuda.cuDevicePrimaryCtxRetain(device), f"for device {number}", ""))


def load(binary: Binary, number: int, target: str) -> Function:
    """Load a kernel into the primary context of a device.

    Raises:
        DeviceError: FL1002, if the driver does not take it.

    """
    cuda = driver()
    _checked(cuda, cuda.cuCtxPushCurrent(primary_context(number)), binary.symbol, target)
    try:
        return _loaded(cuda, binary, target)
    finally:
        cuda.cuCtxPopCurrent()


def _loaded(cuda: Any, binary: Binary, target: str) -> Function:
    module = _checked(cuda, cuda.cuModuleLoadData(binary.cubin), binary.symbol, target)
    function = _checked(
        cuda, cuda.cuModuleGetFunction(module, binary.symbol.encode()), binary.symbol, target
    )
    if binary.shared_memory > 48 * 1024:  # more has to be asked for
        attribute = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        done = cuda.cuFuncSetAttribute(function, attribute, binary.shared_memory)
        _checked(cuda, done, binary.symbol, target)
    own = binary.parameters[: len(binary.parameters) - binary.scratch_pointers]
    threads = 32 * binary.warps
    return Function(int(function), threads, binary.shared_memory, own, module, binary.waits)


@dataclass(frozen=True, eq=False)
class SideStream:
    """A stream for branches, with an event for each way in which it and another one wait."""

    stream: int
    forked: int
    joined: int

    @classmethod
    def on(cls, number: int) -> SideStream:
        """A new one on a device; it goes with the object.

        Raises:
            DeviceError: FL1002, if the driver has none.

        """
        cuda = driver()
        _checked(cuda, cuda.cuCtxPushCurrent(primary_context(number)), "streams", "")
        try:
            apart = int(cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)
            untimed = int(cuda.CUevent_flags.CU_EVENT_DISABLE_TIMING)
            stream = _checked(cuda, cuda.cuStreamCreate(apart), "streams", "")
            forked = _checked(cuda, cuda.cuEventCreate(untimed), "streams", "")
            joined = _checked(cuda, cuda.cuEventCreate(untimed), "streams", "")
        finally:
            cuda.cuCtxPopCurrent()
        made = cls(int(stream), int(forked), int(joined))
        # Not when the interpreter ends: the driver may be gone by then.
        weakref.finalize(made, _destroy, cuda, stream, forked, joined).atexit = False
        return made


def _destroy(cuda: Any, stream: Any, *events: Any) -> None:
    """Give back a stream and events; what the driver still does with them comes to its end."""
    cuda.cuStreamDestroy(stream)
    for event in events:
        cuda.cuEventDestroy(event)


def failed(status: int) -> errors.FuselineError:
    """The error for a launch that the driver refused."""
    cuda = driver()
    return errors.LAUNCH_FAILED.error(found=_name(cuda, cuda.CUresult(status)))


def _checked(cuda: Any, answer: Any, symbol: str, target: str) -> Any:
    status, *values = answer
    if status:
        found = f"{_name(cuda, status)}, with a driver for CUDA {_version(cuda)}"
        full = "OUT_OF_MEMORY" in str(status.name)
        hint = "free memory of the device: kernels lie there, too" if full else None
        raise errors.KERNEL_UNLOADABLE.error(symbol, where=target or None, found=found, hint=hint)
    return values[0] if values else None


def _version(cuda: Any) -> str:
    """The newest CUDA that the driver knows."""
    _, version = cuda.cuDriverGetVersion()
    return f"{version // 1000}.{version % 1000 // 10}"


def _name(cuda: Any, status: Any) -> str:
    """What the driver calls an error."""
    _, text = cuda.cuGetErrorString(status)
    said = text.decode() if isinstance(text, bytes) else ""
    return f"{status.name} ({said})" if said else str(status.name)
