"""Lowerings onto the product kernels: linear, merged and gated products, residual adds."""

from __future__ import annotations

from fuseline.codegen.cpu.linear import Activation, LinearKernel, LinearLargeKernel
from fuseline.codegen.cpu.linear_choice import choose_linear
from fuseline.codegen.forms import Form, When
from fuseline.codegen.lower import WORKERS, Launch, Lowered, Scratch, lowers
from fuseline.codegen.lower import work as work_of
from fuseline.codegen.products import Product, ProductOp, product_of
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.fused import GatedLinear, LinearAdd, MergedLinear, WideLinear
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.types import Dim, bounds

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "gelu": "gelu_erf",
    "gelu_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


@lowers(Linear, MergedLinear, WideLinear, LinearAdd, GatedLinear)
def lower_product(op: ProductOp, layouts: LayoutMap) -> Lowered:
    """One product, siblings of packed weights, gate and up, or a product and its residual."""
    item = product_of(op, layouts)
    return _launches(item, layouts) if isinstance(item, Product) else item


def _launches(item: Product, layouts: LayoutMap) -> list[Launch]:
    tokens = item.tokens
    low, high = bounds(tokens, layouts.func.symbols)
    choices = choose_linear(
        k=item.k,
        outputs=item.outputs,
        dtype=item.ys[0].dtype.value,
        x_dtype=item.x.dtype.value,
        weight_dtype=item.weights[0].dtype.value,
        bias=bool(item.biases),
        activation=None if item.activation is None else _ACTIVATIONS[item.activation],
        gated=item.gated,
        residual=item.residual is not None,
        min_tokens=low,
        max_tokens=high,
        columns=item.columns,
        invariant=layouts.batch_invariant,
    )
    launches: list[Launch] = []
    for first, last, kernel in choices:
        when = None if len(choices) == 1 else (tokens, first, last)
        launches.append(_launch(item, kernel, tokens, layouts, when))
    return launches


def _launch(
    item: Product,
    kernel: LinearKernel,
    tokens: Dim,
    layouts: LayoutMap,
    when: When,
) -> Launch:
    residual = () if item.residual is None else (item.residual,)
    rows = [item.x, *residual, *item.ys]
    strides = [layouts.layout(v).row_stride(v.shape) for v in rows]
    scratch = Scratch(kernel.scratch_bytes(tokens, WORKERS))
    words = "in blocks" if isinstance(kernel, LinearLargeKernel) else "weights streamed"
    return Launch(
        kernel,
        (item.x, item.weights[0], *item.biases[:1], *residual, *item.ys, scratch),
        (tokens, *(s for s in strides if s is not None)),
        work_of(item.op),
        when,
        Form("product", words, "tokens"),
    )


__all__ = ["lower_product"]
