"""What a linear product is and where its operands lie, for every target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fuseline.codegen.lower import NeedDense, Refusal, unsupported
from fuseline.codegen.packed import one_behind_the_other
from fuseline.ir.core import Op, Value
from fuseline.ir.layout import Layout, LayoutMap
from fuseline.ir.ops.fused import GatedLinear, LinearAdd, MergedLinear, WideLinear
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.ops.norm_linear import NormLinear
from fuseline.ir.ops.raised import Activation
from fuseline.ir.types import Dim, product

ProductOp = Linear | MergedLinear | WideLinear | LinearAdd | GatedLinear | NormLinear


@dataclass(frozen=True)
class Product:
    """One product in the kernels' terms: ``ys = epilogue(x @ weights.T + biases)``.

    The weights are one block in memory, one behind the other, and so are the biases.

    Attributes:
        op: what it was.
        x: ``[..., k]``; its rows, and those of the residual, have one stride.
        weights: ``[widths[i], k]`` each; gated: gate and up.
        ys: one ``[..., widths[i]]`` each; gated: one for both.
        k: width of x.
        widths: rows of each weight.
        biases: none, or one for each weight.
        residual: what is added to the rounded product.
        activation: of gate, where the product is gated.
        wide: whether x and the weight may differ in type, and products are rounded to float32.
        columns: whether the one weight lies as ``[k, widths[0]]``.
    """

    op: Op
    x: Value
    weights: tuple[Value, ...]
    ys: tuple[Value, ...]
    k: int
    widths: tuple[int, ...]
    biases: tuple[Value, ...] = ()
    residual: Value | None = None
    activation: Activation | None = None
    wide: bool = False
    columns: bool = False

    @property
    def tokens(self) -> Dim:
        """Rows of x."""
        return product(self.x.shape[:-1])

    @property
    def gated(self) -> bool:
        """Whether the weights are gate and up, and the result their product."""
        return self.activation is not None

    @property
    def outputs(self) -> tuple[int, ...]:
        """Widths of the results."""
        return self.widths[: len(self.ys)]


def product_of(op: ProductOp, layouts: LayoutMap) -> Product | NeedDense | Refusal:
    """An op in the kernels' terms, or what it lacks for any of them."""
    weights, biases = _parameters(op)
    x, ys = _rows(op)
    wide, residual = isinstance(op, WideLinear), op.residual if isinstance(op, LinearAdd) else None
    if isinstance(op, GatedLinear) and len(biases) == 1:
        return Refusal("a bias on one of gate and up only")
    columns = _lies_by_columns(weights, layouts)
    if refusal := _refused(x, weights, biases, layouts, wide=wide, columns=columns):
        return refusal
    k, widths = x.shape[-1], [w.shape[0] for w in weights]
    if not isinstance(k, int) or not all(isinstance(w, int) for w in widths):
        return Refusal(f"weight {weights[0].type}; the kernel needs known widths")
    if not k or not all(widths):
        return Refusal("an empty product")
    rows = [x, *_present(residual)]
    loose = [v for v in rows if layouts.layout(v).row_stride(v.shape) is None]
    if loose:
        return NeedDense(tuple(loose))
    return Product(
        op,
        x,
        weights,
        ys,
        k,
        tuple(w for w in widths if isinstance(w, int)),
        biases,
        residual,
        op.activation if isinstance(op, (GatedLinear, NormLinear)) else None,
        wide,
        columns,
    )


def _rows(op: ProductOp) -> tuple[Value, tuple[Value, ...]]:
    """What is multiplied, and the results."""
    match op:
        case MergedLinear():
            return op.x, op.ys
        case NormLinear():
            return op.y, op.products
        case _:
            return op.x, (op.y,)


def _parameters(op: ProductOp) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """Weights and biases."""
    match op:
        case MergedLinear() | NormLinear():
            return op.weights, op.biases
        case GatedLinear():
            return (op.gate, op.up), (*_present(op.gate_bias), *_present(op.up_bias))
        case _:
            return (op.weight,), _present(op.bias)


def _present(value: Value | None) -> tuple[Value, ...]:
    return () if value is None else (value,)


def _refused(
    x: Value,
    weights: Sequence[Value],
    biases: Sequence[Value],
    layouts: LayoutMap,
    *,
    wide: bool,
    columns: bool,
) -> Refusal | None:
    """Why no kernel takes these operands; None where one does."""
    parameters = (*weights, *biases)
    if refusal := unsupported(x, *parameters):
        return refusal
    if len({v.dtype for v in parameters}) > 1 or (x.dtype != weights[0].dtype and not wide):
        return Refusal(f"x {x.type} with weight {weights[0].type}")
    for value in parameters:
        if not layouts.layout(value).is_dense(value.shape) and not (columns and value in weights):
            return Refusal(f"{value.type} does not lie row by row in memory")
    for group in (weights, biases):
        if not one_behind_the_other(group, layouts):
            return Refusal(f"{', '.join(str(v.type) for v in group)} do not lie side by side")
    return None


def _lies_by_columns(weights: Sequence[Value], layouts: LayoutMap) -> bool:
    """Whether the one weight ``[N, K]`` lies as ``[K, N]``, and not also row by row."""
    weight, layout = weights[0], layouts.layout(weights[0])
    if len(weights) > 1 or len(layout.strides) != 2 or layout.is_dense(weight.shape):
        return False
    return Layout(0, layout.strides[::-1]).is_dense(weight.shape[::-1])


__all__ = ["Product", "ProductOp", "product_of"]
