"""Runs Triton kernels without a GPU, in a process in which Triton interprets them.

    python -m tests.codegen.gpu.interpreter        # jobs on stdin, answers on stdout

Triton's interpreter is a choice of the whole process, so it gets one of its own. Memory goes there
and back: every storage once, so that buffers that share one still do.

What is wrong with it `fuseline.debug.interpreted` puts right. And its functions are NumPy's, where
a GPU's are rough: a job may ask for some as rough as those. That of 3.6 does not know that NumPy
takes an array of one element for no number any more.
"""

from __future__ import annotations

import atexit
import importlib
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from fuseline.debug.interpreted import function, mend

MOST_BLOCKS = 256
"""A block takes milliseconds and more; a test that needs many is a test that takes minutes."""

SECONDS = 300


@dataclass
class Job:
    """One launch: memory by storage, and arguments as (storage, byte offset, dtype) or integers."""

    symbol: str
    source: str
    grid: tuple[int, ...]
    storages: list[bytes]
    arguments: list[tuple[int, int, torch.dtype] | int]
    rough: bool = False


@dataclass
class Answer:
    """The memory after the launch, or what went wrong."""

    storages: list[bytes]
    error: str = ""


class Interpreter:
    """A process that interprets kernels; started when first needed."""

    def __init__(self) -> None:
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).parents[3])
        path = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=root,
            env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(path)},
        )
        atexit.register(process.kill)
        return process

    def run(
        self,
        symbol: str,
        source: str,
        buffers: Sequence[Tensor | None],
        dims: Sequence[int],
        grid: Sequence[int],
        *,
        rough: bool = False,
    ) -> None:
        """Run a kernel on CPU tensors, in place; ``rough``: by functions as rough as a GPU's."""
        blocks = int(torch.tensor(list(grid)).prod())
        assert blocks <= MOST_BLOCKS, f"{symbol} has {blocks} blocks: interpreting takes too long"
        if blocks == 0:
            return
        flat: dict[int, Tensor] = {}
        arguments: list[tuple[int, int, torch.dtype] | int] = []
        for buffer in buffers:
            assert buffer is not None, "Triton kernels have no absent operands"
            storage = buffer.untyped_storage()
            flat.setdefault(storage.data_ptr(), torch.tensor([], dtype=torch.uint8).set_(storage))
            number = list(flat).index(storage.data_ptr())
            offset = buffer.data_ptr() - storage.data_ptr()
            arguments.append((number, offset, buffer.dtype))
        memory = list(flat.values())
        sent = [cast("Any", m).numpy().tobytes() for m in memory]
        job = Job(symbol, source, tuple(grid), sent, [*arguments, *dims], rough)
        for own, data in zip(memory, self._answer(job), strict=True):
            own.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else own)

    def _answer(self, job: Job) -> list[bytes]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump(job, self._process.stdin)
        self._process.stdin.flush()
        try:
            answer: Answer = pickle.load(self._process.stdout)
        except EOFError:
            status = self._process.wait()
            self._process = self._start()  # the next test is not to blame
            raise AssertionError(f"the interpreter ended ({status}) in\n{job.source}") from None
        assert not answer.error, f"{answer.error}\n{job.source}"
        return answer.storages


@lru_cache(maxsize=1)
def interpreter() -> Interpreter:
    """The one interpreter of this process."""
    return Interpreter()


def serve(stdin: BinaryIO, stdout: BinaryIO) -> None:
    """Answer jobs until there are no more."""
    mend()
    rough = _rough_functions()
    while True:
        try:
            job: Job = pickle.load(stdin)
        except EOFError:
            return
        rough[:] = [job.rough]
        try:
            answer = Answer(_interpret(job))
        except Exception:
            answer = Answer([], traceback.format_exc())
        pickle.dump(answer, stdout)
        stdout.flush()


def _interpret(job: Job) -> list[bytes]:
    memory = [
        torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8) for data in job.storages
    ]
    aligned = [torch.empty(m.numel() + 64, dtype=torch.uint8) for m in memory]
    own = [a[: m.numel()].copy_(m) for a, m in zip(aligned, memory, strict=True)]
    given: list[Any] = []
    for argument in job.arguments:
        if isinstance(argument, int):
            given.append(argument)
            continue
        number, offset, dtype = argument
        rest = own[number][offset:]
        given.append(rest[: rest.numel() // dtype.itemsize * dtype.itemsize].view(dtype))
    function(job.symbol, job.source)[job.grid](*given)
    return [
        cast("Any", m).numpy().tobytes() if data else b""
        for m, data in zip(own, job.storages, strict=True)
    ]


def _rough_functions() -> list[bool]:
    """Have exponentials, roots and quotients of float32 be off as those of a GPU may be, while the
    one element of the list that this gives is true: by 2 units in the last place, up and down.
    """
    own: Any = importlib.import_module("triton.runtime.interpreter")
    numpy: Any = np  # whose arrays have no type of elements here
    builder, rough = own.InterpreterBuilder, [False]

    def off(handle: Any) -> Any:
        if handle.data.dtype == np.float32:
            signs = (2 * (numpy.arange(handle.data.size) % 2) - 1).reshape(handle.data.shape)
            handle.data = (handle.data * (1 + signs * numpy.float32(2**-22))).astype(np.float32)
        return handle

    def made_rough(name: str) -> None:
        exact = getattr(builder, name)

        def function(self: Any, *operands: Any) -> Any:
            if rough[0] and name == "create_exp" and operands[0].data.dtype == np.float32:
                turned = operands[0].data * np.float32(1.4426950408889634)
                return off(own.TensorHandle(np.exp2(turned), operands[0].dtype.scalar))
            found = exact(self, *operands)
            return off(found) if rough[0] else found

        setattr(builder, name, function)

    for name in ("create_exp", "create_exp2", "create_fdiv", "create_rsqrt", "create_sqrt"):
        made_rough(name)
    return rough


if __name__ == "__main__":
    importlib.import_module("tests.codegen.gpu.interpreter")  # pickles name it so
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    sys.stdout = sys.stderr
    sys.modules["__main__"] = sys.modules["tests.codegen.gpu.interpreter"]
    cast("Any", sys.modules["__main__"]).serve(sys.stdin.buffer, output)
