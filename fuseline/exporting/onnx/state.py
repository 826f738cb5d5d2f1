"""State, which ONNX does not have: what a program writes is taken as an input and given back.

The func is as it was imported: it reads a buffer where it starts, and writes it whole at the end.
"""

from __future__ import annotations

from fuseline.exporting.onnx.registry import emits
from fuseline.exporting.onnx.writer import Writer
from fuseline.ir.core import Func, Value
from fuseline.ir.ops.buffer import Read, Write


@emits(Read)
def _read(w: Writer, op: Read) -> str:
    return w[op.buffer]


@emits(Write)
def _write(w: Writer, op: Write) -> list[str]:
    """From here on the buffer is what was written."""
    w.names[op.buffer] = w.of(op.x, op.buffer.dtype)
    return []


def written(func: Func) -> list[Value]:
    """The arguments that a func writes, in order."""
    buffers = {op.buffer for op in func.ops if isinstance(op, Write)}
    return [arg for arg in func.args if arg in buffers]


__all__ = ["written"]
