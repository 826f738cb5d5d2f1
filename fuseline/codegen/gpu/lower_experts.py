"""Lowerings of routed experts, with and without a shared branch beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from fuseline.codegen.forms import Form, When
from fuseline.codegen.gpu.expert_body import written
from fuseline.codegen.gpu.experts import (
    ExpertsProductKernel,
    ExpertsSortKernel,
    ExpertsSumKernel,
    stops_at,
)
from fuseline.codegen.gpu.experts_choice import (
    MOST_ALIKE,
    Range,
    choose_ranges,
    choose_shared,
    tiles,
)
from fuseline.codegen.gpu.kernel import ceil_div, launch, next_power_of_two
from fuseline.codegen.lower import Launch, Lowered, Operand, Refusal, Scratch, lowers
from fuseline.codegen.lower import work as work_of
from fuseline.codegen.mixtures import Mixture, mixture_of, shared_operands
from fuseline.ir.core import Value
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.experts import Experts, Moe
from fuseline.ir.types import Dim, bounds, dim, product

SUM_COLUMNS = 256
"""Columns of y that a block adds up: with 16-byte loads it is one warp."""

FEW_TOKENS = 64
"""Tokens that each have blocks of their own for the sums."""


MOST_ASIDE = 256
"""Tokens up to which a shared branch runs at the same time as the routed experts. Its products have
at most four blocks of rows then, mostly fewer blocks than a device has multiprocessors, and wait
for weights. With more tokens either branch fills the device by itself, and side by side they would
only take the cache from one another. Counted, not measured."""

WIDEST = 65535
"""Rows of such a matrix: blocks of some of them lie along an axis of the grid of this length."""


LARGEST = 1 << 31
"""Elements of one expert's matrix, whose places are counted in 32 bits."""


@lowers(Experts, Moe, backend="cuda")
def lower_experts(op: Experts, layouts: LayoutMap) -> Lowered:
    """Gate and up of each token's experts, then down, then the sums; before that a sort of the
    pairs where there are many. The shared branch is one more expert where it has the sizes of one,
    and has launches of its own for both products where it has not.
    """
    mixture = mixture_of(op, layouts, written)
    if not isinstance(mixture, Mixture):
        return mixture
    m = mixture
    for rows, columns in ((2 * m.inner, m.hidden), (m.out, m.inner)):
        if rows * columns >= LARGEST or rows > WIDEST:
            return Refusal(f"an expert's matrix of {rows} x {columns}: too large for the kernel")
    return _Lowering(op, mixture, layouts).launches()


@dataclass(frozen=True)
class _Space:
    """Where things lie in scratch, in bytes, and how many elements a row there has."""

    inner: Dim
    beside: Dim
    rows: Dim
    shared: Dim
    pairs: Dim
    total: Dim
    inner_pitch: int
    row_pitch: int
    beside_pitch: int

    @classmethod
    def of(cls, m: Mixture, tokens: Dim, pairs: Dim) -> _Space:
        """Starts and stops of the experts, then rows, each a multiple of 16 bytes, then pairs.

        The rows of the shared branch lie behind those of the pairs.
        """
        size = 4 if m.dtype == "f32" else 2
        width = m.shared.inner if m.shared else 0
        inner, row, beside = (-(-w * size // 16) * 16 for w in (m.inner, m.out, width))
        at: list[Dim] = [2 * stops_at(m.experts)]
        shared_row = row if m.shared else 0
        for count, each in ((pairs, inner), (tokens, beside), (pairs, row), (tokens, shared_row)):
            at.append(dim(at[-1] + count * each))
        pitches = inner // size, row // size, beside // size
        return cls(at[0], at[1], at[2], at[3], at[4], dim(at[4] + 4 * pairs), *pitches)


class _Lowering:
    """The launches of one op."""

    def __init__(self, op: Experts, mixture: Mixture, layouts: LayoutMap) -> None:
        self.op, self.m, self.layouts = op, mixture, layouts
        self.tokens, self.pairs = op.x.shape[0], product(op.indices.shape)
        self.space = _Space.of(mixture, self.tokens, self.pairs)
        self.scratch = Scratch(self.space.total)
        self.work = work_of(op)
        self.size = 4 if mixture.dtype == "f32" else 2
        low, high = bounds(self.tokens, layouts.func.symbols)
        steady = layouts.batch_invariant
        self.ranges = choose_ranges(
            experts=mixture.experts, top=mixture.top, least=low, most=high, invariant=steady
        )
        self.folded = _is_like_an_expert(mixture)
        apart = mixture.shared is not None and not self.folded
        self.shared_ranges = choose_shared(least=low, most=high, invariant=steady) if apart else []

    def launches(self) -> list[Launch]:
        """In the order in which they run. A shared branch of its own comes first, so that it can
        begin together with the experts: they read the same x, and write other parts of scratch.
        """
        found: list[Launch] = []
        if self.shared_ranges:
            found += self._products(self.shared_ranges, "shared gate and up", self._shared_up())
            found += self._products(self.shared_ranges, "shared down", self._shared_down())
        lane = "beside" if any(launch.lane == "aside" for launch in found) else "main"
        routed = self._sorts()
        routed += self._products(self.ranges, "experts' gate and up", self._up())
        routed += self._products(self.ranges, "experts' down", self._down())
        return [*found, *(launch.on(lane) for launch in routed), *self._sums()]

    def _when(self, first: int, last: int | None, ranges: list[Range]) -> When:
        everything = (first, last) == (ranges[0].first, ranges[-1].last)
        return None if everything else (self.tokens, first, last)

    def _sorts(self) -> list[Launch]:
        """The sort, for all ranges that need it."""
        using = [r for r in self.ranges if r.find == "sorted"]
        if not using:
            return []
        kernel = ExpertsSortKernel(experts=self.m.experts, warps=4)
        dims = {"pairs": self.pairs, "pairs_at": self.space.pairs}
        buffers = (self.op.indices, self.scratch)
        when = self._when(using[0].first, using[-1].last, self.ranges)
        grid = (self.m.experts,)
        return [launch(kernel, buffers, dims, grid, self.layouts, self.work, when=when)]

    def _products(self, ranges: list[Range], part: str, given: _Product) -> list[Launch]:
        made = [self._product(r, ranges, part, given) for r in ranges]
        if ranges is not self.shared_ranges:
            return made
        few = [r.last is not None and r.last <= MOST_ASIDE for r in ranges]
        return [n.on("aside") if f else n for n, f in zip(made, few, strict=True)]

    def _product(self, r: Range, ranges: list[Range], part: str, given: _Product) -> Launch:
        kernel = dataclasses.replace(given.kernel, find=r.find, block_m=r.block_m, most=MOST_ALIKE)
        indices = [self.op.indices] if r.find in ("one", "alike") else []
        buffers = (*indices, *given.before, *given.matrices, self.scratch)
        count = self.tokens if r.find == "all" else self.pairs
        dims: dict[str, Dim] = {"count": count, **given.dims}
        if kernel.folded:
            dims["tokens"] = self.tokens
        if r.find == "sorted":
            dims["pairs_at"] = self.space.pairs
        choices = tiles(
            r.block_m,
            width=kernel.width,
            depth=kernel.depth,
            size=self.size,
            sides=kernel.sides,
            interleaved=kernel.interleaved,
            across=kernel.n_stride == 1,
        )
        form = Form(part, r.words, "tokens")
        when = self._when(r.first, r.last, ranges)
        made = [
            launch(
                dataclasses.replace(kernel, **tile._asdict()),
                buffers,
                dims,
                (self._blocks(r, count), ceil_div(kernel.width, tile.block_n)),
                self.layouts,
                self.work,
                when=when,
                form=form,
            )
            for tile in choices
        ]
        return dataclasses.replace(made[0], others=tuple(made[1:]))

    def _blocks(self, r: Range, count: Dim) -> Dim:
        """Blocks of pairs, in the worst case."""
        if r.find == "all":
            return ceil_div(count, r.block_m)
        shared = ceil_div(self.tokens, r.block_m) if self.folded else 0
        if r.find == "sorted":  # each expert may have one that is not full
            return dim(ceil_div(count, r.block_m) + self.m.experts + shared)
        return dim(count + shared)

    def _up(self) -> _Product:
        m, op = self.m, self.op
        expert, up, row = m.up_strides
        kernel = ExpertsProductKernel(
            find="one",
            experts=m.experts,
            top=m.top,
            depth=m.hidden,
            width=m.inner,
            dtype=m.dtype,
            strides=(expert, up),
            n_stride=1 if m.up_transposed else row,
            k_stride=row if m.up_transposed else 1,
            pitch=0,
            out_pitch=self.space.inner_pitch,
            sides=1 + m.gated,
            interleaved=m.interleaved,
            bias=m.up_bias,
            round_bias=m.round_bias,
            weight_dtype=m.weight_dtype if m.weigh == "input" else None,
            body=m.body,
            folded=self.folded,
        )
        before = (op.x, *[op.weights] * (m.weigh == "input"))
        dims = {"x_stride": self._row(op.x), "out_at": self.space.inner}
        beside = shared_operands(op)[0][0] if self.folded else None
        return _Product(kernel, before, _present(op.up[0], beside, op.up_bias), dims)

    def _down(self) -> _Product:
        m, op = self.m, self.op
        kernel = ExpertsProductKernel(
            find="one",
            experts=m.experts,
            top=m.top,
            depth=m.inner,
            width=m.out,
            dtype=m.dtype,
            strides=(m.out * m.inner, 0),
            n_stride=1 if m.down_transposed else m.inner,
            k_stride=m.out if m.down_transposed else 1,
            pitch=self.space.inner_pitch,
            out_pitch=self.space.row_pitch,
            bias=m.down_bias,
            round_bias=m.round_bias,
            folded=self.folded,
        )
        dims = {"in_at": self.space.inner, "out_at": self.space.rows}
        beside = shared_operands(op)[1] if self.folded else None
        return _Product(kernel, (), _present(op.down[0], beside, op.down_bias), dims)

    def _shared_up(self) -> _Product:
        m, shared = self.m, self.m.shared
        assert shared is not None, "there is a branch"
        kernel = ExpertsProductKernel(
            find="all",
            experts=1,
            top=1,
            depth=m.hidden,
            width=shared.inner,
            dtype=m.dtype,
            strides=(0, shared.inner * m.hidden),
            n_stride=m.hidden,
            k_stride=1,
            pitch=0,
            out_pitch=self.space.beside_pitch,
            sides=1 + shared.gated,
            body=shared.body,
        )
        dims = {"x_stride": self._row(self.op.x), "out_at": self.space.beside}
        return _Product(kernel, (self.op.x,), shared_operands(self.op)[0][:1], dims)

    def _shared_down(self) -> _Product:
        m, shared = self.m, self.m.shared
        assert shared is not None, "there is a branch"
        kernel = ExpertsProductKernel(
            find="all",
            experts=1,
            top=1,
            depth=shared.inner,
            width=m.out,
            dtype=m.dtype,
            strides=(0, 0),
            n_stride=shared.inner,
            k_stride=1,
            pitch=self.space.beside_pitch,
            out_pitch=self.space.row_pitch,
        )
        dims = {"in_at": self.space.beside, "out_at": self.space.shared}
        return _Product(kernel, (), _present(shared_operands(self.op)[1]), dims)

    def _sums(self) -> list[Launch]:
        """A token to a block; of many tokens several."""
        if self.layouts.batch_invariant:
            return [self._sum(1, None)]
        low, high = bounds(self.tokens, self.layouts.func.symbols)
        found: list[Launch] = []
        for first, last, block in ((0, FEW_TOKENS, 1), (FEW_TOKENS + 1, None, 8)):
            if (high is None or first <= high) and (last is None or low <= last):
                found.append(self._sum(block, (self.tokens, first, last)))
        return found if len(found) > 1 else [dataclasses.replace(found[0], when=None)]

    def _sum(self, block: int, when: When) -> Launch:
        m, op = self.m, self.op
        gate = shared_operands(op)[2]
        kernel = ExpertsSumKernel(
            experts=m.experts,
            identities=m.identities,
            top=m.top,
            out=m.out,
            dtype=m.dtype,
            weight_dtype=m.weight_dtype,
            out_dtype=m.out_dtype,
            pitch=self.space.row_pitch,
            weighed=m.weigh == "output",
            combine=m.combine,
            shared=m.shared is not None,
            gate_dtype=m.shared.gate_dtype if m.shared else None,
            routed_factor=m.routed_factor,
            factor=m.factor,
            block_t=block,
            block_n=min(SUM_COLUMNS, next_power_of_two(m.out)),
            warps=min(block, 4),
        )
        x = op.x if m.identities else None
        weights = op.weights if kernel.weights_needed else None
        buffers = (*_present(op.indices, weights, x, gate), op.y, self.scratch)
        dims: dict[str, Dim] = {
            "tokens": self.tokens,
            "y_stride": self._row(op.y),
            "rows_at": self.space.rows,
        }
        dims |= {} if x is None else {"x_stride": self._row(x)}
        dims |= {"shared_at": self.space.shared} if m.shared else {}
        dims |= {} if gate is None else {"gate_stride": self._row(gate)}
        grid = (ceil_div(self.tokens, kernel.block_t), ceil_div(m.out, kernel.block_n))
        return launch(kernel, buffers, dims, grid, self.layouts, self.work, when=when)

    def _row(self, value: Value) -> Dim:
        stride = self.layouts.layout(value).row_stride(value.shape)
        assert stride is not None, "loose rows were copied"
        return stride


def _is_like_an_expert(m: Mixture) -> bool:
    """Whether the shared branch can be one more expert in the launches of the others."""
    if m.shared is None or m.up_transposed or m.down_transposed or m.interleaved:
        return False
    if m.up_bias or m.down_bias or m.weigh == "input":
        return False
    same = (m.shared.inner, m.shared.gated, m.shared.body) == (m.inner, m.gated, m.body)
    return same and (not m.gated or m.up_strides[1] == m.inner * m.hidden)


@dataclass(frozen=True)
class _Product:
    """A product for any number of tokens: operands before the matrices, these, and dims."""

    kernel: ExpertsProductKernel
    before: tuple[Operand, ...]
    matrices: Iterable[Operand]
    dims: dict[str, Dim]


def _present(*values: Value | None) -> tuple[Value, ...]:
    return tuple(v for v in values if v is not None)
