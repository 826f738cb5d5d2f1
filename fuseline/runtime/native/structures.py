"""The structures of ``fuseline_abi.h`` for ctypes, and the functions of the runner."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fuseline.runtime.build import Library

MOST_SHARES = 128
"""``FL_MAX_SHARES``: into how many shares a step is cut at the most."""


class HostStructure(ctypes.Structure):
    """``fl_host``: the functions that kernels may call."""

    _fields_ = [("sgemm", ctypes.c_void_p)]


@dataclass(frozen=True)
class Packed:
    """An array of structures of integers, packed in one go: ctypes takes ten times as long."""

    fields: str
    """In the letters of `struct`."""

    def pack(self, values: Sequence[int]) -> bytes:
        """The array, from the fields of its elements one after the other."""
        return struct.pack("=" + self.fields * (len(values) // len(self.fields)), *values)


STEP = Packed("qiiii")
"""``fl_step``: address, first buffer, first integer, shares, independent."""
REF = Packed("qii")
"""``fl_ref``: offset, slot, nothing."""
DIM = Packed("q")
WIDTH = Packed("i")


class TimeStructure(ctypes.Structure):
    """``fl_time``: what a step took, in nanoseconds."""

    _fields_ = [("busy", ctypes.c_uint64), ("wall", ctypes.c_uint64)]


class LimitsStructure(ctypes.Structure):
    """``fl_limits``: functions that keep a library from starting threads inside a kernel."""

    _fields_ = [
        ("omp_max", ctypes.c_void_p),
        ("omp_set", ctypes.c_void_p),
        ("mkl_local", ctypes.c_void_p),
    ]


_INT, _POINTER, _LONG = ctypes.c_int32, ctypes.c_void_p, ctypes.c_uint64

# `piece_go` takes long, and two others may wait for helpers that are inside of another piece: those
# give up the interpreter lock.
_PROTOTYPES = {
    "use_limits": ctypes.PYFUNCTYPE(None, _POINTER),
    "piece_new": ctypes.PYFUNCTYPE(
        *(_POINTER, _POINTER, _INT, _POINTER, _INT, _POINTER, _INT),
        *(_INT, _POINTER, _INT),
    ),
    "piece_free": ctypes.CFUNCTYPE(None, _POINTER),
    "piece_set": ctypes.PYFUNCTYPE(None, _POINTER, _INT, _POINTER),
    "piece_uses": ctypes.PYFUNCTYPE(_INT, _POINTER, _INT),
    "piece_rebind": ctypes.CFUNCTYPE(None, _POINTER, _POINTER, _POINTER, _POINTER, _INT),
    "piece_begin": ctypes.PYFUNCTYPE(_INT, _POINTER),
    "piece_go": ctypes.CFUNCTYPE(None, _POINTER),
    "piece_fault": ctypes.PYFUNCTYPE(_INT, _POINTER),
    "piece_end": ctypes.PYFUNCTYPE(None, _POINTER),
    "piece_profile": ctypes.PYFUNCTYPE(None, _POINTER, _INT),
    "piece_times": ctypes.PYFUNCTYPE(_LONG, _POINTER, _POINTER),
}


@dataclass(frozen=True, eq=False)
class Functions:
    """The runner's functions, each with its address under its name in `addresses`."""

    addresses: dict[str, int]
    use_limits: Callable[[object], None]
    piece_new: Callable[..., int | None]
    piece_free: Callable[[int], None]
    piece_set: Callable[[int, int, int], None]
    piece_uses: Callable[[int, int], int]
    piece_rebind: Callable[[int, object, object, object, int], None]
    piece_begin: Callable[[int], int]
    piece_go: Callable[[int], None]
    piece_fault: Callable[[int], int]
    piece_end: Callable[[int], None]
    piece_profile: Callable[[int, int], None]
    piece_times: Callable[[int, object], int]

    @classmethod
    def of(cls, library: Library) -> Functions:
        """Those of the loaded runner."""
        addresses = {name: library.address(f"fl_{name}") for name in _PROTOTYPES}
        calls = {name: prototype(addresses[name]) for name, prototype in _PROTOTYPES.items()}
        return cls(addresses, **calls)
