"""Reductions, scans, selection and softmax; sums of narrow floats are float32 and rounded once."""

from __future__ import annotations

from fuseline.exporting.onnx.pointwise import as_wide, wide
from fuseline.exporting.onnx.registry import emits
from fuseline.exporting.onnx.writer import Writer
from fuseline.ir.core import Op
from fuseline.ir.ops import reduce as r
from fuseline.ir.types import DType


def reduced(w: Writer, kind: str, name: str, axes: tuple[int, ...], *, keepdim: bool) -> str:
    """A reduction of what has a name."""
    return w.node(kind, name, w.ints(*axes), keepdims=int(keepdim))


@emits(r.Sum, r.Mean)
def _sum(w: Writer, op: r.Reduce) -> str:
    dtype = op.y.dtype
    if not op.axes:
        return w.of(op.x, dtype)
    kind = "ReduceSum" if isinstance(op, r.Sum) else "ReduceMean"
    found = reduced(w, kind, as_wide(w, op.x, dtype), op.axes, keepdim=op.keepdim)
    return w.cast(found, wide(dtype), dtype)


_EXTREMES: dict[type[Op], str] = {r.Amax: "ReduceMax", r.Amin: "ReduceMin"}


@emits(*_EXTREMES)
def _extreme(w: Writer, op: r.Reduce) -> str:
    """NaN where an element is: runtimes differ there, so it is said."""
    dtype = op.x.dtype
    if not op.axes:
        return w[op.x]
    kind = DType.I32 if dtype is DType.BOOL else wide(dtype)
    x = w.cast(w[op.x], dtype, kind)
    found = reduced(w, _EXTREMES[type(op)], x, op.axes, keepdim=op.keepdim)
    if dtype.is_float:
        spoiled = _any(w, w.node("IsNaN", x), op.axes, keepdim=op.keepdim)
        found = w.node("Where", spoiled, w.scalar(float("nan"), kind), found)
    return w.cast(found, kind, dtype)


def _any(w: Writer, name: str, axes: tuple[int, ...], *, keepdim: bool) -> str:
    """Whether any of these bools; a sum, which says no where there are none."""
    number = w.cast(name, DType.BOOL, DType.I32)
    return w.cast(reduced(w, "ReduceSum", number, axes, keepdim=keepdim), DType.I32, DType.BOOL)


@emits(r.Any, r.All)
def _any_or_all(w: Writer, op: r.Reduce) -> str:
    x = w.of(op.x, DType.BOOL)
    if not op.axes:
        return x
    if isinstance(op, r.Any):
        return _any(w, x, op.axes, keepdim=op.keepdim)
    return w.node("Not", _any(w, w.node("Not", x), op.axes, keepdim=op.keepdim))


@emits(r.Argmax)
def _argmax(w: Writer, op: r.Argmax) -> str:
    """NaN is larger than any number, as in torch."""
    dtype = op.x.dtype
    kind = DType.I32 if dtype is DType.BOOL else wide(dtype)
    x = w.cast(w[op.x], dtype, kind)
    if not op.x.tensor.rank:
        return w.scalar(0, DType.I64)
    found = w.node("ArgMax", x, axis=op.axis, keepdims=int(op.keepdim))
    if not dtype.is_float:
        return found
    spoiled = w.node("IsNaN", x)
    number = w.cast(spoiled, DType.BOOL, DType.I32)
    first = w.node("ArgMax", number, axis=op.axis, keepdims=int(op.keepdim))
    where = _any(w, spoiled, (op.axis,), keepdim=op.keepdim)
    return w.node("Where", where, first, found)


@emits(r.Cumsum)
def _cumsum(w: Writer, op: r.Cumsum) -> str:
    dtype = op.y.dtype
    if not op.x.tensor.rank:
        return w.of(op.x, dtype)
    found = w.node("CumSum", as_wide(w, op.x, dtype), w.scalar(op.axis, DType.I64))
    return w.cast(found, wide(dtype), dtype)


def softmax(w: Writer, name: str, dtype: DType, axis: int) -> str:
    """Softmax of what has a name and a type, in float32 at least."""
    found = w.node("Softmax", w.cast(name, dtype, wide(dtype)), axis=axis)
    return w.cast(found, wide(dtype), dtype)


@emits(r.Softmax)
def _softmax(w: Writer, op: r.Softmax) -> str:
    if not op.x.tensor.rank:
        return w.node("Div", w[op.x], w[op.x])  # 1, or NaN
    return softmax(w, w[op.x], op.x.dtype, op.axis)


def _topk(w: Writer, x: str, k: str, axis: int, *, largest: bool, ordered: bool) -> list[str]:
    return w.nodes_of("TopK", [x, k], 2, axis=axis, largest=int(largest), sorted=int(ordered))


@emits(r.TopK)
def _top_k(w: Writer, op: r.TopK) -> list[str]:
    dtype = op.x.dtype
    kind = DType.I32 if dtype is DType.BOOL else wide(dtype)
    x = w.cast(w[op.x], dtype, kind)
    values, indices = _topk(w, x, w.size(op.k), op.axis, largest=op.largest, ordered=op.ordered)
    return [w.cast(values, kind, dtype), indices]


@emits(r.Sort)
def _sort(w: Writer, op: r.Sort) -> list[str]:
    """All elements as the largest or smallest: of equal ones, those of a lower index are first."""
    dtype = op.x.dtype
    if not op.x.tensor.rank:
        return [w[op.x], w.scalar(0, DType.I64)]
    kind = DType.I32 if dtype is DType.BOOL else wide(dtype)
    x = w.cast(w[op.x], dtype, kind)
    count = w.node("Shape", x, start=op.axis, end=op.axis + 1)
    values, indices = _topk(w, x, count, op.axis, largest=op.descending, ordered=True)
    return [w.cast(values, kind, dtype), indices]


__all__ = ["reduced", "softmax"]
