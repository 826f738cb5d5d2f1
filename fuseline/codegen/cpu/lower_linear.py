"""Lowerings onto the product kernels: linear, merged and gated products, residual adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fuseline.codegen.cpu.linear import Activation, LinearKernel, LinearLargeKernel
from fuseline.codegen.cpu.linear_choice import choose_linear
from fuseline.codegen.forms import Form, When
from fuseline.codegen.lower import (
    WORKERS,
    Launch,
    Lowered,
    NeedDense,
    Refusal,
    Scratch,
    lowers,
    unsupported,
)
from fuseline.codegen.lower import work as work_of
from fuseline.ir.core import Op, Value
from fuseline.ir.layout import Layout, LayoutMap
from fuseline.ir.ops.fused import GatedLinear, LinearAdd, MergedLinear, WideLinear
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.ops.view import unreshaped
from fuseline.ir.types import Dim, bounds, dim, product

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "gelu": "gelu_erf",
    "gelu_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


@dataclass(frozen=True)
class _Product:
    """One product in the kernels' terms."""

    op: Op
    x: Value
    weights: tuple[Value, ...]
    ys: tuple[Value, ...]
    biases: tuple[Value, ...] = ()
    residual: Value | None = None
    activation: Activation | None = None
    gated: bool = False
    wide: bool = False
    """Whether x and the weight may differ in type, and products are rounded to float32."""


@lowers(Linear)
def lower_linear(op: Linear, layouts: LayoutMap) -> Lowered:
    """One product."""
    return _lower(_Product(op, op.x, (op.weight,), (op.y,), _present(op.bias)), layouts)


@lowers(MergedLinear)
def lower_merged_linear(op: MergedLinear, layouts: LayoutMap) -> Lowered:
    """Sibling products of packed weights."""
    return _lower(_Product(op, op.x, op.weights, op.ys, op.biases), layouts)


@lowers(WideLinear)
def lower_wide_linear(op: WideLinear, layouts: LayoutMap) -> Lowered:
    """A product of narrow operands in float32."""
    item = _Product(op, op.x, (op.weight,), (op.y,), _present(op.bias), wide=True)
    return _lower(item, layouts)


@lowers(LinearAdd)
def lower_linear_add(op: LinearAdd, layouts: LayoutMap) -> Lowered:
    """A product and the residual that it is added to."""
    item = _Product(op, op.x, (op.weight,), (op.y,), _present(op.bias), op.residual)
    return _lower(item, layouts)


@lowers(GatedLinear)
def lower_gated_linear(op: GatedLinear, layouts: LayoutMap) -> Lowered:
    """Gate and up with the activation and the product of both."""
    biases = (*_present(op.gate_bias), *_present(op.up_bias))
    if len(biases) == 1:
        return Refusal("a bias on one of gate and up only")
    activation = _ACTIVATIONS[op.activation]
    weights = (op.gate, op.up)
    return _lower(
        _Product(op, op.x, weights, (op.y,), biases, activation=activation, gated=True), layouts
    )


def _present(value: Value | None) -> tuple[Value, ...]:
    return () if value is None else (value,)


def _lower(item: _Product, layouts: LayoutMap) -> Lowered:
    parameters = (*item.weights, *item.biases)
    if refusal := unsupported(item.x, *parameters):
        return refusal
    unlike = item.x.dtype != item.weights[0].dtype and not item.wide
    if len({v.dtype for v in parameters}) > 1 or unlike:
        return Refusal(f"x {item.x.type} with weight {item.weights[0].type}")
    for value in parameters:
        dense = layouts.layout(value).is_dense(value.shape)
        if not dense and not (value is item.weights[0] and _by_columns(item, layouts)):
            return Refusal(f"{value.type} does not lie row by row in memory")
    for group in (item.weights, item.biases):
        if not one_behind_the_other(group, layouts):
            return Refusal(f"{', '.join(str(v.type) for v in group)} do not lie side by side")
    widths = [w.shape[0] for w in item.weights]
    k = item.x.shape[-1]
    if not isinstance(k, int) or not all(isinstance(w, int) for w in widths):
        return Refusal(f"weight {item.weights[0].type}; the kernel needs known widths")
    if not k or not all(widths):
        return Refusal("an empty product")
    rows = [item.x, *_present(item.residual)]
    loose = [v for v in rows if layouts.layout(v).row_stride(v.shape) is None]
    if loose:
        return NeedDense(tuple(loose))
    return _launches(item, k, [int(w) for w in widths if isinstance(w, int)], layouts)


def _by_columns(item: _Product, layouts: LayoutMap) -> bool:
    """Whether the one weight ``[N, K]`` lies as ``[K, N]``."""
    weight, strides = item.weights[0], layouts.layout(item.weights[0]).strides
    alone = len(item.weights) == 1 and len(strides) == 2
    return alone and Layout(0, strides[::-1]).is_dense(weight.shape[::-1])


def one_behind_the_other(group: Sequence[Value], layouts: LayoutMap) -> bool:
    """Whether values are one block: arguments, which the program packs, or slices of one."""
    if all(unreshaped(v).owner is None for v in group):
        return True
    places = [layouts[v] for v in group]
    for before, value, after in zip(places, group, places[1:], strict=False):
        end = dim(before.layout.offset + value.tensor.numel)
        if after.root is not before.root or after.layout.offset != end:
            return False
    return True


def _launches(
    item: _Product, k: int, widths: Sequence[int], layouts: LayoutMap
) -> list[Launch] | Refusal:
    tokens = product(item.x.shape[:-1])
    low, high = bounds(tokens, layouts.func.symbols)
    choices = choose_linear(
        k=k,
        outputs=(widths[0],) if item.gated else tuple(widths),
        dtype=item.ys[0].dtype.value,
        x_dtype=item.x.dtype.value,
        weight_dtype=item.weights[0].dtype.value,
        bias=bool(item.biases),
        activation=item.activation,
        gated=item.gated,
        residual=item.residual is not None,
        min_tokens=low,
        max_tokens=high,
        columns=not layouts.layout(item.weights[0]).is_dense(item.weights[0].shape),
    )
    launches: list[Launch] = []
    for first, last, kernel in choices:
        when = None if len(choices) == 1 else (tokens, first, last)
        launches.append(_launch(item, kernel, tokens, layouts, when))
    return launches


def _launch(
    item: _Product,
    kernel: LinearKernel,
    tokens: Dim,
    layouts: LayoutMap,
    when: When,
) -> Launch:
    rows = [item.x, *_present(item.residual), *item.ys]
    strides = [layouts.layout(v).row_stride(v.shape) for v in rows]
    scratch = Scratch(kernel.scratch_bytes(tokens, WORKERS))
    words = "in blocks" if isinstance(kernel, LinearLargeKernel) else "weights streamed"
    return Launch(
        kernel,
        (
            item.x,
            item.weights[0],
            *item.biases[:1],
            *_present(item.residual),
            *item.ys,
            scratch,
        ),
        (tokens, *(s for s in strides if s is not None)),
        work_of(item.op),
        when,
        Form("product", words, "tokens"),
    )
