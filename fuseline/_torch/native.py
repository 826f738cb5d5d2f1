"""What native code calls in the libraries that torch has loaded."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor


def dlpack_exchange() -> object | None:
    """The capsule of torch's DLPack exchange table; None in a torch that has none."""
    return getattr(Tensor, "__dlpack_c_exchange_api__", None)


@lru_cache(maxsize=1)
def sgemm_address() -> int:
    """The address of the Fortran ``sgemm`` in libtorch_cpu; 0 if it shows none."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    return _address_in(str(library), "sgemm_")


@lru_cache(maxsize=1)
def thread_limits() -> tuple[int, int, int]:
    """``omp_get_max_threads`` and ``omp_set_num_threads`` of the runtime that torch has loaded, and
    ``MKL_Set_Num_Threads_Local`` of the MKL inside torch: for this thread alone. 0 where missing.
    """
    library = str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")
    most, limit = (_address_in(None, f"omp_{n}") for n in ("get_max_threads", "set_num_threads"))
    alone = _address_in(library, "MKL_Set_Num_Threads_Local")
    return (most, limit, alone) if most and limit else (0, 0, alone)


def current_stream(device: torch.device) -> int:
    """The handle of torch's current stream of a CUDA device."""
    raw: Any = getattr(cast("Any", torch)._C, "_cuda_getCurrentRawStream", None)
    if raw is not None:  # a tenth of what the public way takes
        return int(raw(device.index or 0))
    return int(torch.cuda.current_stream(device).cuda_stream)


def end_allocations(device: torch.device, pool: object) -> None:
    """Stop sending allocations to the pool of a capture: one that fails does not do so itself."""
    end: Any = getattr(cast("Any", torch)._C, "_cuda_endAllocateToPool", None)
    if end is not None:
        end(device.index or 0, pool)


def _address_in(library: str | None, symbol: str) -> int:
    try:
        function = getattr(ctypes.CDLL(library), symbol)
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0
