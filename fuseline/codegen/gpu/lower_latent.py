"""Lowering of latent attention: in the latent space for few queries, expanded for many."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from fuseline.codegen.attending import known, loose_operands, refused_latent
from fuseline.codegen.forms import Form, When
from fuseline.codegen.gpu.attend import (
    Blocks,
    Scene,
    Strides,
    attend,
    attend_cut,
    cut_keys,
    head_strides,
    named_strides,
    ranges,
)
from fuseline.codegen.gpu.attention import Part, columns
from fuseline.codegen.gpu.kernel import ceil_div, launch, next_power_of_two
from fuseline.codegen.gpu.latent import HeadProductKernel
from fuseline.codegen.gpu.lower_attention import WIDEST, many
from fuseline.codegen.latent_choice import most_absorbed
from fuseline.codegen.lower import Launch, Lowered, Operand, Refusal, Scratch, lowers, work
from fuseline.ir.core import Value
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.latent import LatentAttention
from fuseline.ir.types import Dim, dim, product

FEW_QUERIES = 16
"""Up to so many queries a block of 16 rows holds those of a head, for the products of a head."""

AT_ONCE = 32
"""Key heads that are expanded at once: with two blocks of rows they have a block for each of 64
multiprocessors or more, and the scratch holds a quarter of what 128 heads expand to.
"""


@lowers(LatentAttention, backend="cuda")
def lower_latent_attention(op: LatentAttention, layouts: LayoutMap) -> Lowered:
    """Attention over what latents expand to; `most_absorbed` says for how many queries which.

    In the latent space all heads share one key head, the latents, which a block reads once for up
    to 64 of its rows; four launches: queries into the latent space, the attention with its keys cut
    over blocks, the sums of the parts, and those into values. Expanded, keys and values of
    `AT_ONCE` heads at a time are made in scratch, and attended in blocks.
    """
    if found := refused_latent(op, layouts) or loose_operands(op, layouts):
        return found
    lowering = _Latent(op, layouts)
    widths = (lowering.latent, op.key, lowering.shared, op.value)
    if max(widths) > WIDEST:
        return Refusal(f"widths of {widths}; the kernel takes up to {WIDEST}")
    queries, keys = op.q.shape[2], op.latent.shape[2]
    length = keys if isinstance(keys, int) else None
    most = most_absorbed(op.key, op.value, lowering.latent, keys=length)
    if layouts.batch_invariant:
        return lowering.absorbed(None, few=False)
    ends = [FEW_QUERIES] if most is None else [min(FEW_QUERIES, most), most]
    launches: list[Launch] = []
    for i, when in ranges(queries, ends, layouts):
        if most is not None and i == len(ends):
            launches += lowering.expanded(when)
        else:
            launches += lowering.absorbed(when, few=i == 0)
    return launches


@dataclass(frozen=True)
class _Ends:
    """What a product of heads reads and writes: values, or places in the scratch."""

    weight: Value
    x: Value | Dim
    y: Value | Dim
    x_strides: Strides
    y_strides: Strides
    tokens: Dim
    heads: int


@dataclass(frozen=True)
class _Latent:
    """One op, and where its values lie."""

    op: LatentAttention
    layouts: LayoutMap

    @property
    def latent(self) -> int:
        """Elements of a latent."""
        return known(self.op.latent.shape[3])

    @property
    def shared(self) -> int:
        """Elements of the part of a key that heads share."""
        return 0 if self.op.shared is None else known(self.op.shared.shape[3])

    @property
    def heads(self) -> int:
        """Query heads."""
        return known(self.op.q.shape[1])

    @property
    def repeat(self) -> int:
        """Query heads of a key head."""
        return self.heads // self.op.groups

    @property
    def operands(self) -> dict[str, Value]:
        """What both forms read."""
        found = {"q": self.op.q, "latent": self.op.latent}
        return found if self.op.shared is None else found | {"shared": self.op.shared}

    @property
    def strides(self) -> dict[str, Strides]:
        """Those of the operands; caches have no heads."""
        found: dict[str, Strides] = {}
        for name, value in self.operands.items():
            b, h, s = head_strides(value, self.layouts)
            found[name] = (b, h if name == "q" else 0, s)
        return found

    def absorbed(self, when: When, *, few: bool) -> list[Launch]:
        """In the latent space: scratch holds queries there, sums of latents, and their parts."""
        op, row = self.op, _padded(self.latent)
        batch, _, queries, _ = op.q.shape
        inside: Strides = (dim(queries * self.heads * row), row, self.heads * row)
        sums = product((batch, queries, self.heads, row, op.q.dtype.itemsize))
        scene = Scene(
            op,
            self.layouts,
            groups=1,
            group=self.heads,
            keys=(*columns(self.latent, "absorbed", "latent"), *self._shared_columns()),
            values=columns(self.latent, "y", "latent"),
            operands=self.operands,
            strides=self.strides | {"absorbed": inside, "y": inside},
            length=op.latent.shape[2],
            views={"absorbed": 0, "y": sums},
            latent=True,
        )
        rows = 16 if self.heads <= 16 and few else 64
        cut, form = cut_keys(scene, rows, dim(2 * sums)), Form("attention", "absorbed", "queries")
        y = head_strides(op.y, self.layouts)
        into = _Ends(op.weight, op.q, 0, self.strides["q"], inside, queries, self.heads)
        out = _Ends(op.value_weight or op.weight, sums, op.y, inside, y, queries, self.heads)
        blocks = 16 if few else 64
        choices = absorbed_blocks(scene, rows)
        if self.layouts.batch_invariant:
            attention = [attend(scene, choices, form=form, scratch=cut.scratch, few=True)]
        else:
            attention = attend_cut(cut, choices, form=form, when=when)
        return [
            self._product(self._keys(), into, blocks, cut.scratch, when, form),
            *attention,
            self._product(self._values(), out, blocks, cut.scratch, when, form),
        ]

    def expanded(self, when: When) -> list[Launch]:
        """Keys and values of some heads after others: scratch holds those of one lot."""
        launches: list[Launch] = []
        for first in range(0, self.op.groups, AT_ONCE):
            launches += self._lot(first, min(AT_ONCE, self.op.groups - first), when)
        return launches

    def _lot(self, first: int, groups: int, when: When) -> list[Launch]:
        """Expand ``groups`` key heads from the first on, and attend to them."""
        op, apart = self.op, self.op.value_weight is not None
        batch, length, size = op.q.shape[0], op.latent.shape[2], op.q.dtype.itemsize
        rows = [_padded(w) for w in ([op.key, op.value] if apart else [op.key + op.value])]
        strides: list[Strides] = [(dim(length * groups * r), r, groups * r) for r in rows]
        ends = [product((batch, length, groups, r, size)) for r in rows]
        values = ends[0] if apart else op.key * size
        scratch, form = Scratch(dim(sum(ends))), Form("attention", "expanded", "queries")
        scene = Scene(
            op,
            self.layouts,
            groups=groups,
            group=self.repeat,
            keys=(*columns(op.key, "q", "keys"), *self._shared_columns()),
            values=columns(op.value, "y", "values"),
            operands={name: v for name, v in self.operands.items() if name != "latent"},
            strides=self.strides | {"keys": strides[0], "values": strides[-1]},
            length=length,
            views={"keys": 0, "values": values},
            first=first * self.repeat if groups < op.groups else None,
        )
        kernels = [self._expansion(), *[self._values(expanded=True)] * apart]
        weights = [v for v in (op.weight, op.value_weight) if v is not None]
        launches: list[Launch] = []
        for weight, kernel, at, into in zip(weights, kernels, [0, values], strides, strict=False):
            place = _Ends(weight, op.latent, at, self.strides["latent"], into, length, groups)
            lot = None if scene.first is None else first
            made = self._product(kernel, place, 128, scratch, when, form, first=lot)
            launches.append(made)
        return [*launches, attend(scene, many(scene), form=form, when=when, scratch=scratch)]

    def _shared_columns(self) -> tuple[Part, ...]:
        return columns(self.shared, "q", "shared", self.op.key) if self.shared else ()

    def _keys(self) -> HeadProductKernel:
        """Queries times the rows that make keys."""
        apart = self.op.value_weight is not None
        rows = self.op.key if apart else self.op.key + self.op.value
        return self._kernel(self.op.key, self.latent, rows, repeat=self.repeat)

    def _values(self, *, expanded: bool = False) -> HeadProductKernel:
        """Latents, or sums of them, times the rows that make values."""
        op, apart = self.op, self.op.value_weight is not None
        return self._kernel(
            self.latent,
            op.value,
            op.value if apart else op.key + op.value,
            first_row=0 if apart else op.key,
            repeat=1 if expanded else self.repeat,
            transposed=True,
        )

    def _expansion(self) -> HeadProductKernel:
        """Latents times all the rows of the first weight: keys, and values if it has them."""
        apart = self.op.value_weight is not None
        rows = self.op.key if apart else self.op.key + self.op.value
        return self._kernel(self.latent, rows, rows, transposed=True)

    def _kernel(self, inner: int, outer: int, rows: int, **more: Any) -> HeadProductKernel:
        dtype = self.op.q.dtype.value
        return HeadProductKernel(dtype=dtype, inner=inner, outer=outer, weight_rows=rows, **more)

    def _product(
        self,
        kernel: HeadProductKernel,
        ends: _Ends,
        rows: int,
        scratch: Scratch,
        when: When,
        form: Form,
        *,
        first: int | None = None,
    ) -> Launch:
        """The launch of a product in blocks of ``rows`` rows."""
        op, batch = self.op, self.op.q.shape[0]
        total = product((batch, ends.tokens))
        given: dict[str, Operand] = {"scratch": scratch, "positions": op.positions}
        given["weight"] = ends.weight
        dims: dict[str, Dim] = {"rows": total, "tokens": ends.tokens}
        dims |= {} if first is None else {"first": first}
        views: list[str] = []
        for name, end in (("x", ends.x), ("y", ends.y)):
            if isinstance(end, Value):
                given[name] = end
            else:
                views.append(name)
                dims[f"{name}_at"] = end
        dims |= named_strides("x", ends.x_strides) | named_strides("y", ends.y_strides)
        whole = dataclasses.replace(kernel, views=tuple(views), later=first is not None)
        if isinstance(ends.x, Value) and ends.x is op.latent and self._bounded:
            assert op.positions is not None
            whole = dataclasses.replace(whole, positions=True)
            dims["seen"] = op.positions.tensor.numel
        made: list[Launch] = []
        for each in product_blocks(whole, rows):
            buffers = [given[name] for name, _ in each.buffers]
            columns_of = ceil_div(each.outer, each.block_outer)
            grid = (ceil_div(total, each.block_rows), columns_of, ends.heads)
            made.append(
                launch(each, buffers, dims, grid, self.layouts, work(op), when=when, form=form)
            )
        return dataclasses.replace(made[0], others=tuple(made[1:]))

    @property
    def _bounded(self) -> bool:
        """Whether positions, one behind the other, say which latents nobody sees."""
        positions = self.op.positions
        if positions is None or not self.op.causal:
            return False
        return self.layouts.layout(positions).is_dense(positions.shape)


def _padded(width: int) -> int:
    """Elements from one row in scratch to the next: whole accesses of 16 bytes in any type."""
    return -(-width // 8) * 8


def product_blocks(kernel: HeadProductKernel, rows: int) -> list[HeadProductKernel]:
    """Configurations of a product in blocks of ``rows`` rows.

    Few rows are bound by reading the weight, so blocks are narrow, and there are many of them.
    """
    wide = kernel.dtype == "f32"
    inner = max(16, min(32 if wide else 64, next_power_of_two(kernel.inner)))
    outer = max(16, min(64 if wide or rows == 16 else 128, next_power_of_two(kernel.outer)))
    rows = min(rows, 64) if wide else rows
    warps = (4, 8) if wide else (4,) if rows <= 64 else (8, 4)
    return [
        dataclasses.replace(
            kernel,
            block_rows=rows,
            block_inner=inner,
            block_outer=outer,
            warps=n,
            stages=2 if wide else 3,
        )
        for n in warps
    ]


def absorbed_blocks(scene: Scene, rows: int) -> list[Blocks]:
    """Configurations of attention in the latent space.

    All heads read the same latents, so a block has up to 64 of them; with 512 columns of sums that
    is what the registers of 8 warps hold, on some targets only with few keys at a time, or of more
    warps, with rows in float32.
    """
    if scene.op.q.dtype.itemsize == 4:
        return [Blocks(16, 32, 8, 1), Blocks(16, 16, 8, 1), Blocks(16, 32, 16, 1)]
    if rows == 16:
        return [Blocks(16, 32, 4, 2), Blocks(16, 16, 4, 2)]
    return [Blocks(64, 32, 8, 2), Blocks(64, 16, 8, 2), Blocks(32, 32, 8, 2)]
