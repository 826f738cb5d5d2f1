"""Ops that rearrange elements, and those that make tensors out of nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fuseline.exporting.onnx.registry import emits
from fuseline.exporting.onnx.tensors import proto_of
from fuseline.exporting.onnx.writer import HIGHEST, Writer
from fuseline.ir.ops.create import Full, Iota
from fuseline.ir.ops.fused import Copy
from fuseline.ir.ops.view import Concat, Expand, Pad, Permute, Reshape, Slice
from fuseline.ir.types import Dim, DType, same

_SPELLED_OUT = 16
"""Elements up to which a constant tensor stands in the file."""


def reshaped(w: Writer, name: str, have: Sequence[Dim], want: Sequence[Dim]) -> str:
    """What has a name and a shape under another shape.

    Dims that keep their place are copied, so that nothing is computed for them. A dim is left to be
    inferred only where no other can be 0.
    """
    kept = [i < len(have) and same(have[i], d) for i, d in enumerate(want)]
    if len(have) == len(want) and all(kept):
        return name
    symbols = [i for i, d in enumerate(want) if not isinstance(d, int) and not kept[i]]
    if not any(same(d, 0) for d in want):
        if not symbols:
            copied = [d if isinstance(d, int) else 0 for d in want]
            return w.node("Reshape", name, w.ints(*copied))
        if len(symbols) == 1 and all(
            isinstance(d, int) for i, d in enumerate(want) if i not in symbols
        ):
            return w.node("Reshape", name, w.ints(*(d if isinstance(d, int) else -1 for d in want)))
    return w.node("Reshape", name, w.sizes(want), allowzero=1)


def expanded(w: Writer, name: str, have: Sequence[Dim], want: Sequence[Dim]) -> str:
    """What has a name and a shape, broadcast."""
    lead = len(want) - len(have)
    asked: list[Dim] = [
        1 if i >= lead and same(have[i - lead], d) else d for i, d in enumerate(want)
    ]
    if lead == 0 and all(same(d, 1) for d in asked):
        return name
    return w.node("Expand", name, w.sizes(asked))


def sliced(w: Writer, name: str, axis: int, start: Dim, stop: Dim | None, step: int = 1) -> str:
    """A slice along an axis, to the end where there is no stop."""
    end = w.ints(HIGHEST) if stop is None else w.size(stop)
    steps = [] if step == 1 else [w.ints(step)]
    return w.node("Slice", name, w.size(start), end, w.ints(axis), *steps)


@emits(Reshape)
def _reshape(w: Writer, op: Reshape) -> str:
    return reshaped(w, w[op.x], op.x.shape, op.shape)


@emits(Permute)
def _permute(w: Writer, op: Permute) -> str:
    return w.node("Transpose", w[op.x], perm=list(op.dims)) if op.dims else w[op.x]


@emits(Expand)
def _expand(w: Writer, op: Expand) -> str:
    return expanded(w, w[op.x], op.x.shape, op.shape)


@emits(Slice)
def _slice(w: Writer, op: Slice) -> str:
    whole = same(op.stop, op.x.shape[op.axis])
    return sliced(w, w[op.x], op.axis, op.start, None if whole else op.stop, op.step)


@emits(Concat)
def _concat(w: Writer, op: Concat) -> str:
    return w.node("Concat", *(w.of(x, op.y.dtype) for x in op.xs), axis=op.axis)


@emits(Pad)
def _pad(w: Writer, op: Pad) -> str:
    pads = w.sizes([op.before, op.after])
    value = w.tensor(torch.tensor(op.value).to(op.x.dtype.torch))
    return w.node("Pad", w[op.x], pads, value, w.ints(op.axis))


@emits(Copy)
def _copy(w: Writer, op: Copy) -> str:
    return w[op.x]


def filled(w: Writer, value: float, dtype: DType, shape: Sequence[Dim]) -> str:
    """A tensor of one number."""
    known = [d for d in shape if isinstance(d, int)]
    count = 1
    for extent in known:
        count *= extent
    if len(known) == len(shape) and count <= _SPELLED_OUT:
        return w.tensor(torch.full(known, value, dtype=dtype.torch))
    number = proto_of(torch.full((1,), value, dtype=dtype.torch), "")
    return w.node("ConstantOfShape", w.sizes(shape), value=number)


@emits(Full)
def _full(w: Writer, op: Full) -> str:
    if isinstance(op.value, (bool, int, float)):
        return filled(w, op.value, op.dtype, op.shape)
    number = w.number(op.value, op.dtype)
    return w.node("Expand", number, w.sizes(op.shape)) if op.shape else number


@emits(Iota)
def _iota(w: Writer, op: Iota) -> str:
    """``start + step * (0, 1, ...)``, in float64 where it is floating."""
    i64, kind = DType.I64, DType.F64 if op.dtype.is_float else DType.I64
    zero, one = w.scalar(0, i64), w.scalar(1, i64)
    found = w.cast(w.node("Range", zero, w.number(op.length, i64), one), i64, kind)

    def number(value: float | Dim) -> str:
        if isinstance(value, float):
            return w.scalar(value if op.dtype.is_float else int(value), kind)
        return w.number(value, kind)

    if op.step != 1:
        found = w.node("Mul", found, number(op.step))
    if op.start != 0:
        found = w.node("Add", found, number(op.start))
    return w.cast(found, kind, op.dtype)


__all__ = ["expanded", "filled", "reshaped", "sliced"]
