"""Builds one kernel with the flags of the real build and calls it on tensors.

    kernel = build(RmsNormKernel(...))
    kernel([x, weight, y], [tokens, x.stride(0)], nth=2)

A buffer is a tensor (its first element is passed, whatever the strides) or ``None``. With
``nth`` workers, the shards run one after the other; ``threads=True`` runs them at once.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import torch

from fuseline.codegen.kernel import KernelTemplate

FLAGS = [
    *("-O3", "-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math"),
    *("-fno-semantic-interposition", "-fopenmp-simd", "-ffp-contract=fast"),
    *("-Wall", "-Werror=return-type"),
]
NATIVE = ["-mcpu=native"] if platform.machine() == "aarch64" else ["-march=native"]


class Host(ctypes.Structure):
    """``fl_host`` of the kernel interface."""

    _fields_ = [("sgemm", ctypes.c_void_p)]


class Call(ctypes.Structure):
    """``fl_call`` of the kernel interface."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("dim", ctypes.c_void_p),
        ("host", ctypes.c_void_p),
        ("tid", ctypes.c_int32),
        ("nth", ctypes.c_int32),
        ("fault", ctypes.c_void_p),
    ]


@lru_cache(maxsize=1)
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fuseline-kernels-")


@lru_cache(maxsize=1)
def sgemm_address() -> int:
    """The address of the Fortran ``sgemm`` in libtorch_cpu, 0 where it has none."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        symbol = ctypes.CDLL(str(library)).sgemm_
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(symbol, ctypes.c_void_p).value or 0


@dataclass(frozen=True)
class Kernel:
    """A loaded kernel: ``kernel(bufs, dims)`` runs all of its workers."""

    entry: Callable[[object], None]

    def __call__(
        self,
        bufs: Sequence[torch.Tensor | None],
        dims: Sequence[int] = (),
        *,
        nth: int = 1,
        threads: bool = False,
        sgemm: bool = True,
    ) -> None:
        """Run all workers.

        Raises:
            IndexError: the kernel says that it was given an index that is outside.
        """
        fault = ctypes.c_int32()
        calls = self.prepare(bufs, dims, nth=nth, sgemm=sgemm, fault=fault)
        with ThreadPoolExecutor(nth if threads else 1) as pool:
            for future in [pool.submit(call) for call in calls]:
                future.result()
        if fault.value:
            raise IndexError

    def prepare(
        self,
        bufs: Sequence[torch.Tensor | None],
        dims: Sequence[int] = (),
        *,
        nth: int = 1,
        sgemm: bool = True,
        fault: ctypes.c_int32 | None = None,
    ) -> list[Callable[[], None]]:
        """One callable per worker, with the arguments built beforehand (for timing)."""
        pointers = [0 if buf is None else buf.data_ptr() for buf in bufs]
        buf = (ctypes.c_void_p * max(len(bufs), 1))(*pointers)
        dim = (ctypes.c_int64 * max(len(dims), 1))(*dims)
        host = Host(sgemm_address() if sgemm else None)
        given = ctypes.c_int32() if fault is None else fault
        keep = (buf, dim, host, given, tuple(bufs))
        arrays = [*map(ctypes.addressof, keep[:4])]
        return [self._worker(Call(*arrays[:3], tid, nth, arrays[3]), keep) for tid in range(nth)]

    def _worker(self, call: Call, keep: object) -> Callable[[], None]:
        entry, pointer = self.entry, ctypes.byref(call)

        def run(_keep: object = (call, keep)) -> None:
            entry(pointer)

        return run


def compile_source(source: str, flags: Sequence[str] = ()) -> ctypes.CDLL:
    """Compile a translation unit to an object, link it on its own, and load it."""
    return _compile(source, (*NATIVE, *flags) if not _has_march(flags) else tuple(flags))


def vectors(lanes: int, dtype: str) -> list[list[str]]:
    """Flags for vectors of so many floats; of bfloat16, with products of pairs and without."""
    width = f"-DFL_VL={lanes}"
    return [[width, f"-DFL_DOTS={dots}"] for dots in (0, 1)] if dtype == "bf16" else [[width]]


def _has_march(flags: Sequence[str]) -> bool:
    return any(flag.startswith(("-march=", "-mcpu=")) for flag in flags)


@cache
def _compile(source: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    digest = hashlib.sha256(repr((source, flags)).encode()).hexdigest()[:16]
    stem = Path(_directory().name) / digest
    text = stem.with_suffix(".cpp")
    text.write_text(source)
    obj, library = str(stem.with_suffix(".o")), str(stem.with_suffix(".so"))
    for command in (
        ["g++", *FLAGS, *flags, "-c", str(text), "-o", obj],
        ["g++", "-shared", obj, "-o", library],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return ctypes.CDLL(library)


def build(
    kernel: KernelTemplate, flags: Sequence[str] = (), *, symbol: str | None = None
) -> Kernel:
    """Render, compile and load a kernel; ``symbol`` picks a function of its source."""
    source = compile_source(kernel.render(), (*kernel.flags, *flags))
    entry = getattr(source, symbol or kernel.symbol)
    entry.argtypes = [ctypes.c_void_p]
    entry.restype = None
    return Kernel(entry)
