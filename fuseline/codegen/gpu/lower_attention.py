"""Lowering of attention: keys cut over blocks for few queries, torch's own or blocked for many."""

from __future__ import annotations

from fuseline.codegen.attending import known, loose_operands, refused_attention
from fuseline.codegen.forms import Form, When
from fuseline.codegen.gpu.attend import (
    Blocks,
    Scene,
    attend,
    attend_cut,
    cut_keys,
    head_strides,
    ranges,
)
from fuseline.codegen.gpu.attention import columns
from fuseline.codegen.library import LibraryKernel
from fuseline.codegen.lower import Launch, Lowered, Refusal, lowers, work
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.raised import Attention

WIDEST = 512
"""Columns of a head, at most: a block of rows and their sums stay in registers."""

ROWS = (16, 64)
"""Rows of a block where there are few queries: those of a key head fit into one."""

FEW_QUERIES = 8
"""So many queries are few whatever the group: a step of decoding that checks drafts."""

CUT_QUERIES = 512
"""Up to so many queries keys are cut over blocks: a chunk of a prompt has few blocks of rows."""


@lowers(Attention, backend="cuda")
def lower_attention(op: Attention, layouts: LayoutMap) -> Lowered:
    """Grouped attention.

    Few queries read a whole cache, so its keys are cut over blocks that fill the device. For many,
    torch's kernels do best where they can say what the op says (`_torch_can`); masks, positions,
    windows, caps and sinks have blocks of rows here. Few queries are bound by the memory's speed,
    so exponentials meet the values with all their digits there.
    """
    if found := refused_attention(op) or loose_operands(op, layouts):
        return found
    heads, groups = known(op.q.shape[1]), known(op.k.shape[1])
    width, value_width = known(op.q.shape[3]), known(op.v.shape[3])
    if max(width, value_width) > WIDEST:
        return Refusal(f"heads of {width} and {value_width}; the kernel takes up to {WIDEST}")
    group = heads // groups
    scene = Scene(
        op,
        layouts,
        groups=groups,
        group=group,
        keys=columns(width, "q", "k"),
        values=columns(value_width, "y", "v"),
        operands={"q": op.q, "k": op.k, "v": op.v},
        strides={n: head_strides(v, layouts) for n, v in (("q", op.q), ("k", op.k), ("v", op.v))},
        length=op.k.shape[2],
    )
    if layouts.batch_invariant:
        return [attend(scene, many(scene), form=Form("attention", "in blocks", "queries"))]
    few = [rows // group for rows in ROWS]
    few[-1] = max(few[-1], FEW_QUERIES)
    library = _torch_can(op)
    ends = few if library else [*few, CUT_QUERIES]
    launches: list[Launch] = []
    for i, when in ranges(op.q.shape[2], ends, layouts):
        if i < len(few):
            launches += _cut(scene, ROWS[i], when, terms=2)
        elif library:
            launches.append(_library(op, when))
        elif i < len(ends):
            launches += _cut(scene, ROWS[-1], when, terms=1)
        else:
            form = Form("attention", "in blocks", "queries")
            launches.append(attend(scene, many(scene), form=form, when=when))
    return launches


def _torch_can(op: Attention) -> bool:
    """Whether torch's fast kernels mean the same.

    They know a causal order from the first key on, which is that of absent positions. A mask they
    take leaves their fast kernels for slower ones, and a cap, a window or a sink they do not have.
    """
    others = (op.mask, op.positions, op.sinks, op.softcap, op.window)
    return all(other is None for other in others)


def _library(op: Attention, when: When) -> Launch:
    kernel = LibraryKernel("attention", attributes=(("is_causal", op.causal), ("scale", op.scale)))
    form = Form("attention", "torch", "queries")
    return Launch(kernel, (op.q, op.k, op.v, None, op.y), (), work(op), when, form)


def _cut(scene: Scene, rows: int, when: When, *, terms: int) -> list[Launch]:
    """The attention with its keys cut over blocks, and what joins them."""
    form = Form("attention", "keys cut", "queries")
    return attend_cut(cut_keys(scene, rows), few(scene, rows), form=form, when=when, terms=terms)


def few(scene: Scene, rows: int) -> list[Blocks]:
    """Configurations for few rows: small blocks, so that many loads are in flight at once.

    The wider a head, the fewer keys and rows a block holds in registers; a target takes the first
    that it can hold without spills.
    """
    width = scene.blocks
    if scene.op.q.dtype.itemsize == 4:
        found = [Blocks(16, 32, 8, 1), Blocks(16, 16, 8, 1)]
        return [Blocks(32, 32, 8, 1), *found] if rows > 16 and width <= 256 else found
    if rows == 16 and width <= 256:
        return [Blocks(16, 32, 4, 3), Blocks(16, 32, 8, 2)]
    if rows == 16 and width <= 512:
        return [Blocks(16, 32, 4, 2), Blocks(16, 16, 8, 2)]
    if width <= 256:
        found = [Blocks(64, 32, 4, 3), Blocks(64, 32, 8, 2)]
        return [*found, Blocks(32, 32, 8, 2)] if scene.marked else found
    narrow = [Blocks(16, 32, 8, 2), Blocks(16, 16, 8, 2)]
    if width > 512:
        return narrow
    return [Blocks(64, 32, 8, 2), Blocks(32, 32, 8, 2), Blocks(16, 32, 8, 2)]


def many(scene: Scene) -> list[Blocks]:
    """Configurations for many rows: large blocks, as each reads all the keys that it sees.

    Targets whose tensor cores read shared memory (sm_90, sm_100) hold more in registers than
    those that do not.
    """
    width = scene.blocks
    if scene.op.q.dtype.itemsize == 4:
        found = [Blocks(16, 32, 8, 1), Blocks(16, 16, 8, 1)]
        return [Blocks(32, 16, 8, 1), *found] if width <= 256 else found
    if scene.marked and width > 256:
        return [Blocks(64, 32, 8, 2), Blocks(32, 32, 8, 2), Blocks(16, 32, 8, 2)]
    if scene.marked:
        return [Blocks(128, 32, 8, 2), Blocks(64, 32, 8, 2), Blocks(32, 32, 8, 2)]
    if width <= 128:
        return [Blocks(128, 64, 8, 3)]
    if width <= 256:
        return [Blocks(128, 64, 8, 3), Blocks(128, 32, 8, 3), Blocks(128, 16, 8, 2)]
    if width <= 320:
        return [Blocks(128, 64, 8, 3), Blocks(128, 32, 8, 2), Blocks(64, 32, 8, 2)]
    if width <= 512:
        return [Blocks(128, 32, 8, 2), Blocks(64, 32, 8, 2), Blocks(32, 32, 8, 2)]
    return [Blocks(32, 32, 8, 1), Blocks(16, 32, 8, 1), Blocks(16, 16, 8, 1)]
