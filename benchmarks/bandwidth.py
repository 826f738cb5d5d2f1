"""How fast the machine reads memory: the bound of every step that reads each weight once."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

import torch

from tests.codegen.cpu.harness import compile_source

STREAMS = 8
"""Places that each thread reads at once: more than one keeps more of the memory busy."""


class Reader:
    """Reads so many bytes with so many threads; the memory is its own, and larger than caches."""

    def __init__(self, nbytes: int, threads: int) -> None:
        self._memory = torch.ones(nbytes // 4)
        self._sink = (ctypes.c_float * threads)()
        self._threads = threads
        self._driver = driver()

    def __call__(self) -> None:
        """Read it all once."""
        self._driver.time_read(
            ctypes.c_void_p(self._memory.data_ptr()),
            ctypes.c_int64(self._memory.numel()),
            ctypes.c_int64(STREAMS),
            ctypes.c_int64(self._threads),
            self._sink,
        )


@lru_cache(maxsize=1)
def driver() -> ctypes.CDLL:
    """The compiled loops of ``linear_driver.cpp``."""
    source = Path(__file__).with_name("linear_driver.cpp").read_text()
    library = compile_source(source, ["-fopenmp"])
    library.time_read.restype = library.time_fma.restype = ctypes.c_double
    return library
