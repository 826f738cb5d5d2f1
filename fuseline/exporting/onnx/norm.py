"""Norms: the standard operators round the normalised row to its type, and multiply after that.

Where a norm rounds last, it is computed in float32: on what is wider nothing is rounded twice.
Epsilon is a float32 there, so norms of float64 are made of primitive operators.
"""

from __future__ import annotations

from collections.abc import Sequence

from fuseline.exporting.onnx.pointwise import wide
from fuseline.exporting.onnx.reduce import reduced
from fuseline.exporting.onnx.registry import emits, expands
from fuseline.exporting.onnx.view import filled
from fuseline.exporting.onnx.writer import Writer
from fuseline.frontend.builder import Builder
from fuseline.ir.core import Value
from fuseline.ir.ops import pointwise as p
from fuseline.ir.ops.fused import AddRmsNorm, RmsNormAdd, SandwichNorm
from fuseline.ir.ops.raised import LayerNorm, RmsNorm
from fuseline.ir.types import Dim, DType


def _ones(w: Writer, dtype: DType, extent: Dim) -> str:
    return filled(w, 1.0, dtype, (extent,))


def _scale(w: Writer, op: RmsNorm, kind: DType) -> str:
    """``offset + weight`` in the type that it is computed in."""
    if op.weight is None:
        return _ones(w, kind, op.x.shape[-1])
    scale = w.of(op.weight, kind)
    return w.node("Add", w.scalar(op.offset, kind), scale) if op.offset else scale


@emits(RmsNorm)
def _rms_norm(w: Writer, op: RmsNorm) -> str:
    x, given = op.x.dtype, op.y.dtype
    early = op.weight is not None and op.cast == "before_weight"
    mixed = early and op.weight is not None and op.weight.dtype is not x
    if mixed and op.weight is not None:
        normal = _rms(w, w[op.x], _ones(w, x, op.x.shape[-1]), op.eps, x)
        weight = w[op.weight]
        if op.offset:
            weight = w.node("Add", w.scalar(op.offset, op.weight.dtype), weight)
        return w.node("Mul", w.cast(weight, op.weight.dtype, given), w.cast(normal, x, given))
    kind = x if early else wide(x)
    found = _rms(w, w.cast(w[op.x], x, kind), _scale(w, op, kind), op.eps, kind)
    return w.cast(found, kind, given)


def _rms(w: Writer, x: str, scale: str, eps: float, kind: DType) -> str:
    if kind is DType.F64:
        return w.node("Mul", _normal(w, x, eps), scale)
    return w.node("RMSNormalization", x, scale, epsilon=eps, axis=-1)


def _normal(w: Writer, x: str, eps: float) -> str:
    """Rows of float64 over the root of their mean square."""
    mean = reduced(w, "ReduceMean", w.node("Mul", x, x), (-1,), keepdim=True)
    return w.node("Div", x, w.node("Sqrt", w.node("Add", mean, w.scalar(eps, DType.F64))))


@emits(LayerNorm)
def _layer_norm(w: Writer, op: LayerNorm) -> str:
    x, given = op.x.dtype, op.y.dtype
    params = [v for v in (op.weight, op.bias) if v is not None]
    kind = x if op.cast == "before_weight" else wide(x)
    rows = w.cast(w[op.x], x, kind)
    plain = all(len(v.shape) == 1 and kind in (v.dtype, wide(v.dtype)) for v in params)
    plain = plain and (op.cast == "last" or all(v.dtype is x for v in params))
    if plain:
        ones = _ones(w, kind, op.x.shape[-1])
        scale = ones if op.weight is None else w.of(op.weight, kind)
        bias = [] if op.bias is None else [w.of(op.bias, kind)]
        return w.cast(_layer(w, rows, [scale, *bias], op.eps, kind), kind, given)
    normal = _layer(w, rows, [_ones(w, kind, op.x.shape[-1])], op.eps, kind)
    after = wide(x) if op.cast == "last" else given
    found = w.cast(normal, kind, after)
    if op.weight is not None:
        found = w.node("Mul", w.of(op.weight, after), found)
    if op.bias is not None:
        found = w.node("Add", found, w.of(op.bias, after))
    return w.cast(found, after, given)


def _layer(w: Writer, x: str, params: Sequence[str], eps: float, kind: DType) -> str:
    if kind is DType.F64:
        apart = w.node("Sub", x, reduced(w, "ReduceMean", x, (-1,), keepdim=True))
        scale, *bias = params
        found = w.node("Mul", _normal(w, apart, eps), scale)
        return w.node("Add", found, *bias) if bias else found
    return w.node("LayerNormalization", x, *params, epsilon=eps, axis=-1)


@expands(AddRmsNorm)
def _add_rms_norm(b: Builder, op: AddRmsNorm) -> tuple[Value, Value]:
    total = b.add(p.Add(op.x, op.residual)).y
    norm = RmsNorm(total, op.weight, eps=op.eps, offset=op.offset, cast=op.cast)
    return total, b.add(norm).y


@expands(RmsNormAdd)
def _rms_norm_add(b: Builder, op: RmsNormAdd) -> Value:
    normal = b.add(RmsNorm(op.x, op.weight, eps=op.eps, offset=op.offset, cast=op.cast)).y
    return b.add(p.Add(op.residual, normal)).y


@expands(SandwichNorm)
def _sandwich_norm(b: Builder, op: SandwichNorm) -> tuple[Value, Value]:
    normal = b.add(RmsNorm(op.x, op.weight, eps=op.eps, offset=op.offset, cast=op.cast)).y
    total = b.add(p.Add(op.residual, normal)).y
    behind = RmsNorm(
        total, op.next_weight, eps=op.next_eps, offset=op.next_offset, cast=op.next_cast
    )
    return total, b.add(behind).y
