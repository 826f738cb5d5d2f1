"""Launches of the attention kernels, for whatever holds the queries, keys and values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import sympy

from fuseline.codegen.attending import mask_strides, scoring
from fuseline.codegen.forms import Form, When
from fuseline.codegen.gpu.attention import (
    LEAST_KEYS,
    AttentionKernel,
    CombineKernel,
    Part,
    partial_row,
)
from fuseline.codegen.gpu.kernel import ceil_div, launch
from fuseline.codegen.lower import Launch, Operand, Scratch, work
from fuseline.ir.core import Value
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.latent import LatentAttention
from fuseline.ir.ops.raised import Attention
from fuseline.ir.types import Dim, bounds, dim, floor_div, product

FILL = 2 * 148
"""Blocks that keep the multiprocessors of the targets busy: two for each of a B200's."""

FEW_ROWS = 16
"""Rows of a block, up to which there are few rows in all: each is joined by a block of its own."""

Strides = tuple[Dim, Dim, Dim]
"""Of batch, head and token, in elements."""


@dataclass(frozen=True)
class Blocks:
    """A configuration: rows and keys of a block, warps, and stages of the pipeline."""

    rows: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Scene:
    """What an attention reads, for `AttentionKernel`.

    Attributes:
        op: what is lowered.
        layouts: where its values lie.
        groups: key heads.
        group: query heads of each.
        keys: columns of keys.
        values: columns of values.
        operands: values by the names that the parts use, where they are no views.
        strides: of all operands, and of y where that is a view.
        views: bytes from the begin of the scratch, of operands that lie there, and of y.
        length: how many keys there are.
        latent: see `AttentionKernel`.
        first: the first query head, where it is not 0.
    """

    op: Attention | LatentAttention
    layouts: LayoutMap
    groups: int
    group: int
    keys: tuple[Part, ...]
    values: tuple[Part, ...]
    operands: Mapping[str, Value]
    strides: Mapping[str, Strides]
    length: Dim
    views: Mapping[str, Dim] = field(default_factory=dict[str, Dim])
    latent: bool = False
    first: int | None = None

    @property
    def width(self) -> int:
        """Columns of a value."""
        return sum(part.width for part in self.values)

    @property
    def blocks(self) -> int:
        """Columns of the blocks that hold a key and a value."""
        return sum(part.block for part in (*self.keys, *self.values))

    @property
    def marked(self) -> bool:
        """Whether scores take more registers than their own: for a mask, a window or a cap."""
        return any(v is not None for v in (self.op.mask, self.op.window, self.op.softcap))

    @property
    def rows(self) -> Dim:
        """Rows of the result, over all heads that are attended here."""
        return product((self.op.q.shape[0], self.groups * self.group, self.op.q.shape[2]))

    def units(self, rows: int) -> Dim:
        """Blocks of so many rows."""
        blocks = ceil_div(dim(self.op.q.shape[2] * self.group), rows)
        return product((self.op.q.shape[0], self.groups, blocks))

    def splits(self, rows: int) -> Dim:
        """Into how many parts keys are cut: as many as fill a GPU, and have enough keys each."""
        filling = dim(1 + floor_div(FILL, dim(self.units(rows) + 1)))
        useful = ceil_div(self.length, LEAST_KEYS)
        return dim(sympy.Max(1, sympy.Min(filling, useful)))

    def partial(self, rows: int) -> tuple[Dim, Dim]:
        """Bytes of the partial sums, and of the largest scores and sums of exponentials.

        Of s splits there are no more than ``1 + FILL / (units + 1)``, and units have all the rows,
        so split rows are no more than the rows and FILL blocks.
        """
        most = dim(self.rows + FILL * rows)
        return dim(most * partial_row(self.width) * 4), dim(most * 8)

    def kernel(
        self, blocks: Blocks, *, split: bool, few: bool = False, terms: int = 1
    ) -> AttentionKernel:
        """The kernel of a configuration; parts have no use for a view that is y."""
        return AttentionKernel(
            **scoring(self.op),
            groups=self.groups,
            group=self.group,
            keys=self.keys,
            values=self.values,
            latent=self.latent,
            split=split,
            terms=terms,
            later=self.first is not None,
            few=split or few,
            steady=self.layouts.batch_invariant,
            views=tuple(name for name in self.views if not (split and name == "y")),
            block_rows=blocks.rows,
            block_keys=blocks.keys,
            warps=blocks.warps,
            stages=blocks.stages,
        )


@dataclass(frozen=True)
class Cut:
    """How keys are cut over blocks of ``rows`` rows, and where in ``scratch`` the parts lie.

    A configuration may have fewer rows in a block: the parts are the same.
    """

    scene: Scene
    rows: int
    scratch: Scratch
    sums_at: Dim
    tops_at: Dim

    @property
    def splits(self) -> Dim:
        """How many parts there are; of one nothing is left to join."""
        return self.scene.splits(self.rows)

    @property
    def dims(self) -> dict[str, Dim]:
        """What the kernels are told."""
        return {"splits": self.splits, "sums_at": self.sums_at, "tops_at": self.tops_at}


def cut_keys(scene: Scene, rows: int, behind: Dim = 0) -> Cut:
    """A cut with its parts ``behind`` bytes from the begin of the scratch."""
    sums, tops = scene.partial(rows)
    at = dim(behind + sums)
    return Cut(scene, rows, Scratch(dim(at + tops)), behind, at)


def attend(
    scene: Scene,
    choices: Sequence[Blocks],
    *,
    form: Form,
    when: When = None,
    cut: Cut | None = None,
    scratch: Scratch | None = None,
    terms: int = 1,
    few: bool = False,
) -> Launch:
    """The launch of the attention itself; with a cut, the join of its parts has to follow."""
    scratch = cut.scratch if cut else scratch
    op, layouts = scene.op, scene.layouts
    given: dict[str, Operand] = {**scene.operands, "scratch": scratch, "y": op.y}
    given |= {"mask": op.mask, "positions": op.positions, "sinks": op.sinks}
    made: list[Launch] = []
    for blocks in choices:
        kernel = scene.kernel(blocks, split=cut is not None, few=few, terms=terms)
        dims, grid = _dims(scene, kernel, cut)
        buffers = [given[name] for name, _ in kernel.buffers]
        one = launch(kernel, buffers, dims, grid, layouts, work(op), when=when, form=form)
        made.append(one)
    return dataclasses.replace(made[0], others=tuple(made[1:]))


def _dims(
    scene: Scene, kernel: AttentionKernel, cut: Cut | None
) -> tuple[dict[str, Dim], list[Dim]]:
    """The dims of a kernel, and its grid."""
    op, layouts = scene.op, scene.layouts
    batch, _, queries, _ = op.q.shape
    dims: dict[str, Dim] = {"Sq": queries, "Sk": scene.length}
    if scene.first is not None:
        dims["first"] = scene.first
    for name in kernel.operands:
        dims |= named_strides(name, scene.strides[name])
    names = [*(f"mask_{axis}" for axis in "bhqk" if op.mask), *["positions_b"] * kernel.positions]
    dims |= dict(zip(names, mask_strides(op, scene.length, layouts), strict=True))
    dims |= {f"{name}_at": scene.views[name] for name in kernel.views}
    dims |= cut.dims if cut else _result_strides(scene)
    blocks = ceil_div(dim(queries * scene.group), kernel.block_rows)
    grid = [product((batch, scene.groups, blocks))]
    return dims, [*grid, dims["splits"]] if cut else grid


def attend_cut(
    cut: Cut, choices: Sequence[Blocks], *, form: Form, when: When, terms: int = 1
) -> list[Launch]:
    """Attention with its keys cut, and what joins the parts; or at once, where there is one part.

    Where only the run tells, there are launches for both, and one or the other has no blocks. (One
    kernel for both would need the registers of both.)
    """
    scene, several = cut.scene, dim(sympy.Min(1, cut.splits - 1))
    scratch = cut.scratch if scene.views else None
    whole = attend(scene, choices, form=form, when=when, scratch=scratch, terms=terms, few=True)
    parts = attend(scene, choices, form=form, when=when, cut=cut, terms=terms)
    made = [(whole, dim(1 - several)), (parts, several), (_combine(cut, form, when), several)]
    return [_times(launch, blocks) for launch, blocks in made if blocks != 0]


def _times(made: Launch, factor: Dim) -> Launch:
    """A launch with 0 or 1 times its blocks."""
    x, y, z = made.grid
    others = tuple(_times(other, factor) for other in made.others)
    return dataclasses.replace(made, grid=(dim(x * factor), y, z), others=others)


def _result_strides(scene: Scene) -> dict[str, Dim]:
    """Where rows of y are."""
    given = scene.strides.get("y") or head_strides(scene.op.y, scene.layouts)
    return named_strides("y", given)


def _combine(cut: Cut, form: Form, when: When) -> Launch:
    """The launch that joins the parts of a cut."""
    scene, viewed = cut.scene, "y" in cut.scene.views
    op, layouts = scene.op, scene.layouts
    kernel = CombineKernel(
        dtype=op.q.dtype.value,
        groups=scene.groups,
        group=scene.group,
        value_width=scene.width,
        exp=scene.kernel(Blocks(cut.rows, 16, 1, 1), split=True).exp,
        viewed=viewed,
        block_rows=max(1, cut.rows // 32) if cut.rows > FEW_ROWS else 1,
    )
    dims: dict[str, Dim] = {"rows": scene.rows, "Sq": op.q.shape[2], **cut.dims}
    dims |= _result_strides(scene) | ({"y_at": scene.views["y"]} if viewed else {})
    buffers: tuple[Operand, ...] = (cut.scratch,) if viewed else (cut.scratch, op.y)
    grid = (ceil_div(scene.rows, kernel.block_rows), kernel.column_blocks)
    return launch(kernel, buffers, dims, grid, layouts, work(op), when=when, form=form)


def head_strides(value: Value, layouts: LayoutMap) -> Strides:
    """The strides of batch, head and token of ``[B, H, S, D]``."""
    b, h, s = layouts.layout(value).strides[:3]
    return b, h, s


def named_strides(name: str, given: Strides) -> dict[str, Dim]:
    """Strides under the names of the kernels' dims."""
    return {f"{name}_{axis}": stride for axis, stride in zip("bhs", given, strict=True)}


def ranges(size: Dim, ends: Sequence[int], layouts: LayoutMap) -> list[tuple[int, When]]:
    """The ranges of a size that end at ``ends``, and the one behind: which, and when.

    Those that the size cannot lie in are left out.
    """
    low, high = bounds(size, layouts.func.symbols)
    found: list[tuple[int, When]] = []
    begins = [0, *(end + 1 for end in ends)]
    for i, (begin, end) in enumerate(zip(begins, [*ends, None], strict=True)):
        beyond = high is not None and high < begin
        if beyond or (end is not None and (end < low or end < begin)):
            continue
        found.append((i, (size, begin, end)))
    return [(found[0][0], None)] if len(found) == 1 else found


__all__ = [
    "Blocks",
    "Cut",
    "Scene",
    "attend",
    "attend_cut",
    "cut_keys",
    "head_strides",
    "named_strides",
    "ranges",
]
