"""What a norm is and gives, for every target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from fuseline.codegen.lower import NeedDense, Refusal, dtype_name, unsupported
from fuseline.ir.core import Value
from fuseline.ir.layout import LayoutMap, Rows, split_rows
from fuseline.ir.ops.fused import AddRmsNorm
from fuseline.ir.ops.merged_rows import MergedRows
from fuseline.ir.ops.norm_linear import NormLinear
from fuseline.ir.ops.raised import CastPoint, LayerNorm, RmsNorm

NormKind = Literal["rms", "layer"]
NormOp: TypeAlias = RmsNorm | LayerNorm | AddRmsNorm | NormLinear

FLOAT_RANK = {"bf16": 0, "f16": 0, "f32": 1}


def promote(first: str, second: str) -> str:
    """Torch's type promotion of two of f32, bf16 and f16."""
    if first == second:
        return first
    return (
        "f32"
        if FLOAT_RANK[first] == FLOAT_RANK[second]
        else max(first, second, key=FLOAT_RANK.__getitem__)
    )


def norm_result(dtype: str, weight: str | None, bias: str | None, cast: CastPoint) -> str:
    """The dtype of a norm of ``dtype``: with ``before_weight`` torch promotes it by the weight."""
    if cast == "last":
        return dtype
    for other in (weight, bias):
        dtype = dtype if other is None else promote(dtype, other)
    return dtype


@dataclass(frozen=True)
class Norm:
    """``y = norm(x)`` over rows of ``width`` elements; with ``residual``, ``sum = x + r`` first.

    ``dtype`` is that of x, r and sum, ``weight`` and ``bias`` those of the operands or ``None``;
    y has the dtype ``out``. With ``weight_rows`` > 1 weight and bias are ``[weight_rows, width]``
    and row i uses row ``i % weight_rows``.
    """

    dtype: str
    width: int
    kind: NormKind = "rms"
    weight: str | None = None
    bias: str | None = None
    weight_rows: int = 1
    eps: float = 1e-6
    offset: float = 0.0
    cast: CastPoint = "before_weight"
    residual: bool = False

    @property
    def out(self) -> str:
        """The dtype of y."""
        return norm_result(self.dtype, self.weight, self.bias, self.cast)

    @property
    def title(self) -> str:
        """What is done, for the head of a source."""
        op = "layer norm" if self.kind == "layer" else "RMS norm"
        return f"{'Add and ' if self.residual else ''}{op} of rows of {self.width} {self.dtype}"


@dataclass(frozen=True)
class NormOperands:
    """The norm of an op, its rows (x, residual and sum, y), and its operands in that order."""

    norm: Norm
    rows: Rows
    sources: tuple[Value, ...]
    parameters: tuple[Value, ...]
    results: tuple[Value, ...]


def norm_operands(op: NormOp, layouts: LayoutMap) -> NormOperands | NeedDense | Refusal:
    """What an op norms and where it lies, or what it lacks for a kernel over strided rows."""
    bias = op.bias if isinstance(op, LayerNorm) else None
    residual = op.residual if isinstance(op, (AddRmsNorm, NormLinear)) else None
    total = op.sum if isinstance(op, (AddRmsNorm, NormLinear)) else None
    how: dict[str, Any] = {
        "kind": "layer" if isinstance(op, LayerNorm) else "rms",
        "eps": op.eps,
        "offset": 0.0 if isinstance(op, LayerNorm) else op.offset,
        "cast": op.cast,
        "residual": residual is not None,
    }
    sources = (op.x,) if residual is None else (op.x, residual)
    results = (op.y,) if total is None else (total, op.y)
    return _operands(sources, (op.weight, bias), results, how, layouts)


def merged_norm_operands(
    op: MergedRows, index: int, layouts: LayoutMap
) -> NormOperands | NeedDense | Refusal:
    """The same for one of the norms of an op that has several."""
    weight = op.weights[index] if op.weights else None
    how = {"eps": op.eps, "offset": op.offset, "cast": op.cast}
    return _operands((op.xs[index],), (weight, None), (op.ys[index],), how, layouts)


def _operands(
    sources: tuple[Value, ...],
    parameters: tuple[Value | None, Value | None],
    results: tuple[Value, ...],
    how: Mapping[str, Any],
    layouts: LayoutMap,
) -> NormOperands | NeedDense | Refusal:
    x, (weight, bias) = sources[0], parameters
    shape, width = x.shape, x.shape[-1]
    if not isinstance(width, int):
        return Refusal(f"rows of {width} elements; the kernel needs a known width")
    if refusal := unsupported(*sources, weight, bias):
        return refusal
    rows = split_rows(shape, [layouts.layout(v) for v in (*sources, *results)])
    if rows is None:
        return NeedDense(sources)
    weight_rows = 1
    given = tuple(v for v in parameters if v is not None)
    for value in given:
        if not layouts.layout(value).is_dense(value.shape):
            return NeedDense((value,))
        if len(value.shape) > 1:
            count = value.tensor.numel
            if not isinstance(count, int) or rows.inner != count // width:
                return Refusal(f"weight rows {value.type} do not follow the rows of {x.type}")
            weight_rows = count // width
    norm = Norm(
        dtype=x.dtype.value,
        width=width,
        weight=dtype_name(weight),
        bias=dtype_name(bias),
        weight_rows=weight_rows,
        **how,
    )
    return NormOperands(norm, rows, sources, given, results)
