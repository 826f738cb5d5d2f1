"""Lowerings onto the product kernels: linear, merged and gated products, residual adds.

Few tokens are streamed past by one kernel, epilogue and all. Many go to torch's library: siblings
one by one, each into its own result; gate and up as one product into scratch; and what is added or
gated then runs over the rounded product, as it does in eager mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fuseline.codegen.forms import Form, When
from fuseline.codegen.gpu.kernel import (
    TritonKernel,
    ceil_div,
    is_parameter,
    launch,
    next_power_of_two,
)
from fuseline.codegen.gpu.linear import (
    LinearFinishKernel,
    LinearKernel,
    LinearRowsKernel,
    LinearTileKernel,
)
from fuseline.codegen.gpu.linear_choice import MOST_ROWS, Shape, choose_linear
from fuseline.codegen.library import LibraryKernel, ScratchTensor
from fuseline.codegen.lower import Launch, Lowered, Operand, Refusal, Scratch, dtype_name, lowers
from fuseline.codegen.lower import work as work_of
from fuseline.codegen.products import Product, ProductOp, product_of
from fuseline.ir.core import Value
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.fused import GatedLinear, LinearAdd, MergedLinear, WideLinear
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.types import Dim, bounds, dim

MOST_COLUMNS = 16 * 65535
"""Columns of the narrowest tiles, which lie along an axis of the grid that takes 65535 of them."""

FINISH_COLUMNS = 1024
"""Columns of a block that ends products: 8 for each of 128 threads."""

FINISH_ROWS = 4
"""Rows of such a block, where there are many."""


@lowers(Linear, MergedLinear, WideLinear, LinearAdd, GatedLinear, backend="cuda")
def lower_product(op: ProductOp, layouts: LayoutMap) -> Lowered:
    """One product, siblings of packed weights, gate and up, or a product and its residual."""
    item = product_of(op, layouts)
    if not isinstance(item, Product):
        return item
    if (columns := sum(item.outputs)) > MOST_COLUMNS:
        return Refusal(f"{columns} columns; the kernel takes up to {MOST_COLUMNS}")
    low, high = bounds(item.tokens, layouts.func.symbols)
    choices = choose_linear(_shape(item), low, high)
    launches: list[Launch] = []
    if high == 0:
        return Refusal("no tokens")
    for first, last, kernels in choices:  # one token at least: a block reads its rows unmasked
        when = None if len(choices) == 1 and low else (item.tokens, first, last)
        place = _Place(item, layouts, when)
        launches += place.kernel(kernels) if kernels else place.library()
    return launches


def _shape(item: Product) -> Shape:
    return Shape(
        k=item.k,
        outputs=item.outputs,
        dtype=item.ys[0].dtype.value,
        x_dtype=item.x.dtype.value,
        weight_dtype=item.weights[0].dtype.value,
        bias=dtype_name(item.biases[0] if item.biases else None),
        activation=item.activation,
        residual=item.residual is not None,
        columns=item.columns,
    )


@dataclass(frozen=True)
class _Place:
    """The launches of a product for one range of token counts."""

    item: Product
    layouts: LayoutMap
    when: When

    @property
    def residual(self) -> tuple[Value, ...]:
        return () if self.item.residual is None else (self.item.residual,)

    def stride(self, value: Value) -> Dim:
        """The distance of a value's rows."""
        stride = self.layouts.layout(value).row_stride(value.shape)
        assert stride is not None, f"the rows of {value.type} have no stride"
        return stride

    def kernel(self, kernels: Sequence[LinearKernel]) -> list[Launch]:
        """Our own kernel, and one behind it where K was shared out."""
        made = [self._streamed(kernel) for kernel in kernels]
        first, kernel = made[0], kernels[0]
        instead = tuple(self.library()) if _shape(self.item).library else ()
        launches = [replace(first, others=tuple(made[1:]), instead=instead)]
        if isinstance(kernel, LinearTileKernel) and kernel.splits > 1:
            width = len(kernel.halves) * kernel.n
            launches.append(self._finish(self._parts(kernel), width, kernel.splits))
        return launches

    def _streamed(self, kernel: LinearKernel) -> Launch:
        item = self.item
        if isinstance(kernel, LinearRowsKernel):
            kernel = replace(kernel, ready=all(is_parameter(w, self.layouts) for w in item.weights))
        dims = {"rows": item.tokens, "x_row": self.stride(item.x)}
        buffers: tuple[Operand, ...] = (item.x, item.weights[0])
        splits = kernel.splits if isinstance(kernel, LinearTileKernel) else 1
        if isinstance(kernel, LinearTileKernel) and splits > 1:
            buffers += (self._parts(kernel),)
        else:
            buffers += (*item.biases[:1], *self.residual, *item.ys)
            dims |= self._rows()
        columns = ceil_div(kernel.n, kernel.block_n)
        if isinstance(kernel, LinearTileKernel):
            grid = (ceil_div(item.tokens, kernel.block_m), columns, splits)
        else:
            grid = (columns,)
        words = "in tiles" if kernel.block_m > MOST_ROWS else "weights streamed"
        return self._launch(kernel, buffers, dims, grid, words)

    def _parts(self, kernel: LinearTileKernel) -> Scratch:
        """Parts of a product, in float32."""
        width = len(kernel.halves) * kernel.n
        return Scratch(dim(4 * kernel.splits * width * self.item.tokens))

    def library(self) -> list[Launch]:
        """The library's product, and what is done to it."""
        item = self.item
        biases = item.biases or (None,) * len(item.weights)
        if item.gated:
            wide = sum(item.widths)
            both = ScratchTensor.dense((item.tokens, wide), item.ys[0].dtype)
            call = self._product(item.weights[0], biases[0], both, (("rows", wide),))
            return [call, self._finish(both, wide)]
        calls = [
            self._product(weight, bias, y)
            for weight, bias, y in zip(item.weights, biases, item.ys, strict=True)
        ]
        if item.residual is not None:
            calls.append(self._finish(item.ys[0], self.stride(item.ys[0])))
        return calls

    def _product(
        self,
        weight: Value,
        bias: Value | None,
        y: Operand,
        attributes: tuple[tuple[str, int], ...] = (),
    ) -> Launch:
        return Launch(
            LibraryKernel("linear", attributes=attributes),
            (self.item.x, weight, bias, y),
            (),
            work_of(self.item.op),
            self.when,
            Form("product", "torch's library", "tokens"),
        )

    def _finish(self, part: Operand, part_row: Dim, splits: int = 1) -> Launch:
        """The epilogue over parts in scratch, or over a product that is rounded already."""
        item = self.item
        summed = splits > 1
        y = item.ys[0]
        columns = min(FINISH_COLUMNS, next_power_of_two(sum(item.outputs)))
        shape = _shape(item)
        kernel = LinearFinishKernel(
            outputs=item.outputs,
            dtype=shape.dtype,
            bias=shape.bias if summed else None,
            activation=item.activation,
            residual=item.residual is not None,
            part_dtype="f32" if summed else y.dtype.value,
            splits=splits,
            block_m=1 if summed else FINISH_ROWS,
            block_n=columns,
        )
        buffers = (part, *item.biases[: int(summed)], *self.residual, *item.ys)
        dims = {"rows": item.tokens, "part_row": part_row} | self._rows()
        grid = (ceil_div(item.tokens, kernel.block_m), ceil_div(kernel.n, columns))
        return self._launch(kernel, buffers, dims, grid)

    def _rows(self) -> dict[str, Dim]:
        """The row strides that an epilogue needs."""
        names = (
            *["residual_row"] * len(self.residual),
            *(f"y{i}_row" for i, _ in enumerate(self.item.ys)),
        )
        values = (*self.residual, *self.item.ys)
        return {name: self.stride(value) for name, value in zip(names, values, strict=True)}

    def _launch(
        self,
        kernel: TritonKernel,
        buffers: Sequence[Operand],
        dims: dict[str, Dim],
        grid: Sequence[Dim],
        words: str = "",
    ) -> Launch:
        form = Form("product", words, "tokens") if words else None
        work = work_of(self.item.op)
        return launch(kernel, buffers, dims, grid, self.layouts, work, when=self.when, form=form)


__all__ = ["lower_product"]
