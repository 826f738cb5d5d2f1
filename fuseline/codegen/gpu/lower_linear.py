"""Lowerings onto the product kernels: linear, merged and gated products, residual adds.

Few tokens are streamed past by one kernel, epilogue and all. Many go to torch's library: siblings
one by one, each into its own result; gate and up as one product into scratch; and what is added or
gated then runs over the rounded product, as it does in eager mode. The norm before a product is in
the same kernel for a row or two, and has one of its own for more.
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
from fuseline.codegen.gpu.lower_rows import norm_launches
from fuseline.codegen.gpu.norm_linear import norm_linear_kernels
from fuseline.codegen.library import LibraryKernel, ScratchTensor
from fuseline.codegen.lower import (
    Launch,
    Lowered,
    NeedDense,
    Operand,
    Refusal,
    Scratch,
    dtype_name,
    lowers,
)
from fuseline.codegen.lower import work as work_of
from fuseline.codegen.norms import NormOperands, norm_operands
from fuseline.codegen.products import Product, ProductOp, product_of
from fuseline.ir.core import Value
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.fused import GatedLinear, LinearAdd, MergedLinear, WideLinear
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.ops.norm_linear import NormLinear
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
    places = _places(op, layouts)
    if isinstance(places, (NeedDense, Refusal)):
        return places
    return [launch for place in places for launch in place.launches()]


@lowers(NormLinear, backend="cuda")
def lower_norm_linear(op: NormLinear, layouts: LayoutMap) -> Lowered:
    """A norm, and one product of it or siblings, or gate and up."""
    places, norm = _places(op, layouts), norm_operands(op, layouts)
    if isinstance(places, (NeedDense, Refusal)):
        return places
    if not isinstance(norm, NormOperands):
        return norm
    alone = norm_launches(op, norm, layouts)
    if isinstance(alone, Refusal):
        return alone
    return [launch for place in places for launch in place.behind(norm, place.within(alone))]


def _places(op: ProductOp, layouts: LayoutMap) -> Sequence[_Place] | NeedDense | Refusal:
    """A product for each range of token counts."""
    item = product_of(op, layouts)
    if not isinstance(item, Product):
        return item
    if (columns := sum(item.outputs)) > MOST_COLUMNS:
        return Refusal(f"{columns} columns; the kernel takes up to {MOST_COLUMNS}")
    low, high = bounds(item.tokens, layouts.func.symbols)
    if high == 0:
        return Refusal("no tokens")
    choices = choose_linear(_shape(item), low, high, invariant=layouts.batch_invariant)
    found: list[_Place] = []
    for first, last, kernels in choices:  # one token at least: a block reads its rows unmasked
        when = None if len(choices) == 1 and low else (item.tokens, first, last)
        found.append(_Place(item, layouts, when, kernels))
    return found


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
    """A product for one range of token counts, by kernels of ours or else by the library."""

    item: Product
    layouts: LayoutMap
    when: When
    kernels: Sequence[LinearKernel]

    @property
    def residual(self) -> tuple[Value, ...]:
        return () if self.item.residual is None else (self.item.residual,)

    def stride(self, value: Value) -> Dim:
        """The distance of a value's rows."""
        stride = self.layouts.layout(value).row_stride(value.shape)
        assert stride is not None, f"the rows of {value.type} have no stride"
        return stride

    def launches(self) -> list[Launch]:
        """Our own kernel, and one behind it where K was shared out; or the library."""
        if not self.kernels:
            return self.library()
        made = [self._streamed(kernel) for kernel in self.kernels]
        first, kernel = made[0], self.kernels[0]
        library = _shape(self.item).library and not self.layouts.batch_invariant
        instead = tuple(self.library()) if library else ()
        launches = [replace(first, others=tuple(made[1:]), instead=instead)]
        if isinstance(kernel, LinearTileKernel) and kernel.splits > 1:
            width = len(kernel.halves) * kernel.n
            launches.append(self._finish(self._parts(kernel), width, kernel.splits))
        return launches

    def within(self, launches: Sequence[Launch]) -> list[Launch]:
        """Launches of a few tokens and of many, for the range."""
        if self.when is None:
            return list(launches)
        size, low, high = self.when
        found: list[Launch] = []
        for each in launches:
            _, first, last = each.when or (size, 0, None)
            ends = [end for end in (last, high) if end is not None]
            begin, end = max(first, low), min(ends, default=None)
            if end is None or begin <= end:
                found.append(each.only(size, begin, end))
        return found

    def behind(self, norm: NormOperands, alone: Sequence[Launch]) -> list[Launch]:
        """A norm and the product of it: in one kernel, where rows are few, or one after the other.

        Args:
            norm: what is done to the rows, and where they lie.
            alone: the launches of the norm in the range.

        """
        product = self.launches()
        if joined := self._joined(norm):
            instead = tuple(replace(n, others=(), instead=()) for n in (*alone, *product))
            return [replace(joined[0], others=tuple(joined[1:]), instead=instead)]
        if product[0].instead:
            before = tuple(replace(n, others=()) for n in alone)
            product[0] = replace(product[0], instead=(*before, *product[0].instead))
        return [*alone, *product]

    def _joined(self, norm: NormOperands) -> list[Launch]:
        """Norm and product in one kernel; nothing, where no kernel does both."""
        item, rows = self.item, (*norm.sources, *norm.results)
        kernel = self.kernels[0] if self.kernels else None
        strided = all(self.layouts.layout(v).row_stride(v.shape) is not None for v in rows)
        if not isinstance(kernel, LinearRowsKernel) or not strided:
            return []
        fixed = all(is_parameter(v, self.layouts) for v in (*item.weights, *norm.parameters))
        buffers = (*norm.sources, *norm.parameters, item.weights[0], *norm.results)
        found: list[Launch] = []
        for each in norm_linear_kernels(replace(kernel, ready=fixed), norm.norm):
            names = [f"{name}_row" for name in (*each.read, *each.written)]
            dims = dict(zip(names, map(self.stride, rows), strict=True)) | self._rows()
            grid = (ceil_div(each.n, each.block_n * each.groups),)
            ends = (*item.biases[:1], *item.ys)
            words = "with its norm, weights streamed"
            given = {"rows": item.tokens, **dims}
            found.append(self._launch(each, (*buffers, *ends), given, grid, words))
        return found

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


__all__ = ["lower_norm_linear", "lower_product"]
