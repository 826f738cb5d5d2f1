"""Memory that nobody reads any more, and that need not stay resident: of files, and of the heap.

Weights are usually mapped from the file that they were saved to. Once a copy of them is in use, the
pages of the original only count: they belong to this process until the whole file is unmapped.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import lru_cache
from pathlib import Path

from torch import Tensor

_PAGEMAP = Path("/proc/self/pagemap")
_ENTRY = 8
_FLAGS = 61
"""The first of the flags in an entry of the page map: of a file, swapped, present."""
_CLEAN, _ABSENT = 0b101, {0b000, 0b001}


def forget(tensor: Tensor) -> bool:
    """Give back the pages of a tensor that is mapped from a file, if none of them was changed.

    Nothing changes for who reads the tensor: its pages come back from the file, or from the
    system's cache of it. Pages that a tensor has only a part of stay.

    Returns:
        Whether pages were given back. False where memory is of another kind or was written to, and
        where the system does not tell (anything but Linux).
    """
    here = tensor.device.type == "cpu" and sys.platform.startswith("linux")
    if not here or not tensor.is_contiguous():
        return False
    page = mmap.PAGESIZE
    first = -(-tensor.data_ptr() // page)
    count = (tensor.data_ptr() + tensor.nbytes) // page - first
    if count <= 0 or not _is_clean(first, count):
        return False
    start, length = ctypes.c_void_p(first * page), ctypes.c_size_t(count * page)
    return _madvise()(start, length, mmap.MADV_DONTNEED) == 0


def give_back() -> None:
    """Return what was freed of the heap to the system, where the C library can.

    Compiling takes memory in many small pieces, and what is freed of it stays resident otherwise.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def _is_clean(first: int, count: int) -> bool:
    """Whether all pages are as the file has them, and some are in memory."""
    try:
        with _PAGEMAP.open("rb", buffering=0) as file:
            file.seek(first * _ENTRY)
            raw = file.read(count * _ENTRY)
    except OSError:
        return False
    if len(raw) != count * _ENTRY:
        return False
    flags = {entry >> _FLAGS for entry in memoryview(raw).cast("Q")}
    return _CLEAN in flags and flags <= {_CLEAN, *_ABSENT}


@lru_cache(maxsize=1)
def _madvise() -> ctypes._NamedFuncPointer:  # pyright: ignore[reportPrivateUsage]
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
