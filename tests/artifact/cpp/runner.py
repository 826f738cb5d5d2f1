"""Builds the C++ runner and its examples, and calls it in this process."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[3]
CPP = ROOT / "fuseline" / "runtime" / "native" / "cpp"
EXAMPLES = ROOT / "examples" / "cpp"
HERE = Path(__file__).parent

WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror")
LIBRARIES = ("-ldl", "-pthread")

DTYPES: list[torch.dtype] = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.int8),
    *(torch.int16, torch.int32, torch.int64, torch.uint8, torch.complex64, torch.complex128),
]
"""In the order of ``fuseline::DType``."""


def compiler() -> str:
    """The C++ compiler; a test without one is skipped."""
    for name in (os.environ.get("CXX", "c++"), "g++", "clang++"):
        if found := shutil.which(name):
            return found
    pytest.skip("there is no C++ compiler")


def checked(*words: str | Path, cwd: Path | None = None) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, check=False, cwd=cwd
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Built:
    """The examples, and the library for ctypes."""

    run: Path
    generate: Path
    shim: Path


def build(folder: Path) -> Built:
    """Build by CMake where there is one, else by the compiler alone."""
    found = by_cmake(folder) if shutil.which("cmake") else by_hand(folder)
    shim = folder / "shim.so"
    checked(
        *(compiler(), "-std=c++17", "-shared", "-fPIC", f"-I{CPP}", HERE / "shim.cpp"),
        *(folder / "library.a", *LIBRARIES, "-o", shim),
    )
    return Built(found[0], found[1], shim)


def by_cmake(folder: Path) -> tuple[Path, Path]:
    """The examples, and ``library.a`` beside them."""
    flags = f"-DCMAKE_CXX_FLAGS={' '.join(WARNINGS)}"
    how = (f"-DCMAKE_CXX_COMPILER={compiler()}", "-DCMAKE_BUILD_TYPE=Debug", flags)
    checked("cmake", "-S", EXAMPLES, "-B", folder, *how)
    checked("cmake", "--build", folder)
    shutil.copy(folder / "fuseline" / "libfuseline.a", folder / "library.a")
    return folder / "run", folder / "generate"


def by_hand(folder: Path) -> tuple[Path, Path]:
    """The same without CMake."""
    folder.mkdir(parents=True, exist_ok=True)
    checked(
        *(compiler(), "-std=c++17", "-fPIC", *WARNINGS, "-c", CPP / "fuseline.cpp"),
        *("-o", folder / "library.a"),  # an object file, which links as well
    )
    for name in ("run", "generate"):
        checked(
            *(compiler(), "-std=c++17", *WARNINGS, f"-I{CPP}", EXAMPLES / f"{name}.cpp"),
            *(folder / "library.a", *LIBRARIES, "-o", folder / name),
        )
    return folder / "run", folder / "generate"


class CppError(Exception):
    """What C++ has thrown."""


class _Item(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("number", ctypes.c_int64),
        ("shape", ctypes.c_int64 * 8),
        ("strides", ctypes.c_int64 * 8),
        ("dtype", ctypes.c_int32),
        ("dims", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("unused", ctypes.c_int32),
    ]


def _item(value: Tensor | int, *, bare: bool = False) -> _Item:
    if isinstance(value, int):
        return _Item(number=value, kind=2)
    item = _Item(data=value.data_ptr(), dtype=DTYPES.index(value.dtype), dims=value.dim())
    item.shape[: value.dim()] = list(value.shape)
    item.strides[: value.dim()] = list(value.stride())
    item.kind = int(bare)
    return item


_ROOM = 4096


class Opened:
    """An artifact that C++ has opened."""

    def __init__(
        self, built: Built, path: Path, target: str = "auto", threads: int = 1, sgemm: int = 0
    ) -> None:
        self._library = ctypes.CDLL(str(built.shim))
        self._library.cpp_open.restype = ctypes.c_void_p
        error = ctypes.create_string_buffer(_ROOM)
        handle = self._library.cpp_open(
            *(str(path).encode(), target.encode(), threads, ctypes.c_void_p(sgemm)),
            *(error, ctypes.c_size_t(_ROOM)),
        )
        if handle is None:
            raise CppError(error.value.decode())
        self._handle = ctypes.c_void_p(handle)

    def close(self) -> None:
        """Free it."""
        self._library.cpp_close(self._handle)

    def reset(self) -> None:
        """Give the state its first values."""
        self._library.cpp_reset(self._handle)

    def __call__(
        self, *args: Tensor | int, program: str = "main", bare: bool = False
    ) -> list[Tensor]:
        """Results in memory of C++, copied; ``bare`` leaves strides out."""
        return [_tensor(item).clone() for item in self._items(program, args, bare)]

    def addresses(self, *args: Tensor | int, program: str = "main") -> list[int]:
        """Where results lie."""
        return [item.data or 0 for item in self._items(program, args)]

    def shapes(self, *args: Tensor | int, program: str = "main") -> list[list[int]]:
        """The shapes of results, without running."""
        return [list(i.shape[: i.dims]) for i in self._items(program, args, only_shapes=True)]

    def into(
        self, args: Sequence[Tensor | int], outputs: Sequence[Tensor], program: str = "main"
    ) -> None:
        """Run into memory of torch."""
        items = (_Item * max(1, len(outputs)))(*map(_item, outputs))
        self._call(program, [_item(a) for a in args], items, len(outputs), False)

    def _items(
        self,
        program: str,
        args: Sequence[Tensor | int],
        bare: bool = False,
        only_shapes: bool = False,
    ) -> list[_Item]:
        items = (_Item * 16)()
        given = [_item(a, bare=bare) for a in args]
        return list(items[: self._call(program, given, items, -1, only_shapes)])

    def _call(
        self, program: str, given: Sequence[_Item], out: object, count: int, only_shapes: bool
    ) -> int:
        inputs = (_Item * max(1, len(given)))(*given)
        error = ctypes.create_string_buffer(_ROOM)
        done = self._library.cpp_run(
            *(self._handle, program.encode(), inputs, len(given), out, count, int(only_shapes)),
            *(error, ctypes.c_size_t(_ROOM)),
        )
        if done < 0:
            raise CppError(error.value.decode())
        return int(done)


def _tensor(item: _Item) -> Tensor:
    """A tensor on memory of C++."""
    dtype: torch.dtype = DTYPES[int(item.dtype)]
    shape, strides = list(item.shape[: item.dims]), list(item.strides[: item.dims])
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    count = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    memory: Any = (ctypes.c_char * (count * dtype.itemsize)).from_address(int(item.data or 0))
    return torch.frombuffer(memory, dtype=dtype, count=count).as_strided(shape, strides)
