"""Runs CUDA C++ kernels on a CPU: the same source, compiled by the host's compiler.

Threads of a block are fibers that exchange values where the kernel shuffles or waits (runner.cpp);
the sanitizers end a run that reads or writes outside of its buffers, or askew. What stands for the
device is fuseline_device.h. This is no run on a GPU: it says nothing of machine code or speed.
"""

from __future__ import annotations

import atexit
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fuseline.codegen.gpu.cuda import CPP_TYPES, CudaKernel
from fuseline.runtime.gpu.cuda_build import headers

HERE = Path(__file__).parent
FLAGS = (
    "-std=c++17",
    "-O0",
    "-fsanitize=address,alignment,bounds,shift",
    "-fno-sanitize-recover=all",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-Wno-unknown-pragmas",
)
SECONDS = 300


class Host:
    """A folder with the runner, and with the kernels that were compiled."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fuseline-host-"))
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        for name, text in headers().items():
            (self.folder / name).write_text(text)
        device = "fuseline_device.h"
        (self.folder / device).write_text((HERE / device).read_text())
        self._compile(HERE / "runner.cpp", "-c", "-o", str(self.folder / "runner.o"))

    def _compile(self, source: Path, *options: str) -> None:
        command = ["g++", *FLAGS, str(source), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{source.read_text()}"

    def program(self, kernel: CudaKernel) -> Path:
        """The program of a kernel; the symbol stands for the source."""
        made = self.folder / kernel.symbol
        if not made.exists():
            source = made.with_suffix(".cpp")
            source.write_text(kernel.render() + entry(kernel))
            self._compile(source, str(self.folder / "runner.o"), "-o", str(made))
        return made

    def run(
        self,
        kernel: CudaKernel,
        buffers: Sequence[Tensor | None],
        dims: Sequence[int],
        grid: Sequence[int],
    ) -> None:
        """Run a kernel on CPU tensors, in place.

        Raises:
            AssertionError: it went wrong, with the words of the sanitizer or the runner.

        """
        memory: list[Tensor] = []
        known: dict[int, int] = {}
        arguments: list[int] = []
        for buffer in buffers:
            assert buffer is not None, "kernels of a GPU have no absent operands"
            storage = buffer.untyped_storage()
            if storage.data_ptr() not in known:
                known[storage.data_ptr()] = len(memory)
                memory.append(torch.tensor([], dtype=torch.uint8).set_(storage))
            start = storage.data_ptr()
            arguments += [0, known[start], buffer.data_ptr() - start]
        for value in dims:
            arguments += [1, value, 0]
        sizes = [m.numel() for m in memory]
        count = len(buffers) + len(dims)
        head = [*grid, kernel.threads, len(sizes), *sizes, count, *arguments]
        sent = [cast("Any", m).numpy().tobytes() for m in memory]
        done = subprocess.run(
            [self.program(kernel)],
            input=struct.pack(f"{len(head)}q", *head) + b"".join(sent),
            env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
        said = done.stderr.decode(errors="replace")
        assert done.returncode == 0, f"{said}\n{kernel.render()}"
        at = 0
        for own, size in zip(memory, sizes, strict=True):
            if size:
                back = bytearray(done.stdout[at : at + size])
                own.copy_(torch.frombuffer(back, dtype=torch.uint8))
            at += size


def entry(kernel: CudaKernel) -> str:
    """A function that calls the kernel with the pointers of a launch."""
    pointers = [f"*({CPP_TYPES[kind]} **)p[{i}]" for i, (_, kind) in enumerate(kernel.buffers)]
    first = len(pointers)
    values = [f"*({CPP_TYPES[t]} *)p[{first + i}]" for i, (_, t) in enumerate(kernel.dims)]
    call = f"{kernel.symbol}({', '.join([*pointers, *values])})"
    return f'\nextern "C" void fl_entry(void **p) {{ {call}; }}\n'


@lru_cache(maxsize=1)
def host() -> Host:
    """The one host of this process."""
    return Host()


__all__ = ["Host", "entry", "host"]
