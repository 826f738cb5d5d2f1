"""Lowerings onto the kernel of heads: norm, rotation and cache writes of q, k, v and latents.

Launches move every element once, so what counts is that each thread has several loads of 16 bytes
in flight, in as many registers as that takes and no more: a block has so many rows that its
narrowest tile still gives every thread 16 bytes. Up to `FEW` rows blocks are as small as that
allows, so that a step of decoding spreads over the multiprocessors; beyond, they have at least four
warps, so that there are fewer of them to start. As alternatives a step of decoding has blocks twice
as large, and a long prompt twice as many loads a thread.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fuseline.codegen.forms import When
from fuseline.codegen.gpu import cuda_heads
from fuseline.codegen.gpu.cuda_heads import CudaHeadsKernel
from fuseline.codegen.gpu.kernel import (
    ceil_div,
    in_turn,
    is_parameter,
    launch,
    next_power_of_two,
    with_hints,
)
from fuseline.codegen.gpu.merged_rows import MergedRowsKernel
from fuseline.codegen.gpu.mla_projection import MlaProjectionKernel
from fuseline.codegen.gpu.qk_norm_rope import Heads, QkNormRopeKernel, stream_tiles
from fuseline.codegen.gpu.rope import RopeKernel
from fuseline.codegen.head_operands import (
    HeadOperands,
    merged_operands,
    mla_operands,
    qk_operands,
    rope_operands,
)
from fuseline.codegen.heads import Stream
from fuseline.codegen.lower import Launch, Lowered, NeedDense, Refusal, lowers, work
from fuseline.ir.core import Op
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.fused import QkNormRope, QkNormRopeWrite
from fuseline.ir.ops.merged_rows import MergedRows
from fuseline.ir.ops.mla_projection import MlaProjection, MlaProjectionWrite
from fuseline.ir.ops.raised import Rope
from fuseline.ir.types import Dim, DType, dim, same

log = logging.getLogger(__name__)

FEW = 16384
"""Rows that blocks of one warp with four rows each hold at once: 32 blocks a multiprocessor."""

LOADS = 2
"""Loads of 16 bytes of its row or rows that a thread has in flight, at least."""

MOST_WARPS = 32
"""Of a block."""

MOST = 64
"""Elements that a thread holds at most, but where one row (or token) has more than that."""

WIDEST = 32768
"""Bytes of a row, or of a token's heads normed as one: a block holds no more without spills."""

CUDA_WARPS = 4
"""Of a block in CUDA C++ that has more rows than one warp, at most."""


@dataclass(frozen=True)
class Shape:
    """Warps of a block, and the loads of 16 bytes that a thread has at least."""

    warps: int
    loads: int = LOADS


@lowers(QkNormRope, QkNormRopeWrite, backend="cuda")
def lower_qk_norm_rope(op: QkNormRope | QkNormRopeWrite, layouts: LayoutMap) -> Lowered:
    """Norm and rotation of queries and keys, and the write into a static cache."""
    how = {
        "kind": "layer" if op.norm == "layer" else "rms",
        "eps": op.eps,
        "offset": op.offset,
        "cast": op.cast,
        "scope": op.scope,
        "order": op.order,
    }
    return _lower(op, QkNormRopeKernel, qk_operands(op, layouts), layouts, how)


@lowers(MlaProjection, MlaProjectionWrite, backend="cuda")
def lower_mla_projection(op: MlaProjection | MlaProjectionWrite, layouts: LayoutMap) -> Lowered:
    """The rows before attention over a latent."""
    how = {"eps": op.eps, "offset": op.offset, "cast": op.cast}
    return _lower(op, MlaProjectionKernel, mla_operands(op, layouts), layouts, how)


@lowers(MergedRows, backend="cuda")
def lower_merged_rows(op: MergedRows, layouts: LayoutMap) -> Lowered:
    """Norms and rotations of rows of the same tokens."""
    how = {"eps": op.eps, "offset": op.offset, "cast": op.cast}
    return _lower(op, MergedRowsKernel, merged_operands(op, layouts), layouts, how)


@lowers(Rope, backend="cuda")
def lower_rope(op: Rope, layouts: LayoutMap) -> Lowered:
    """Rotation alone, of heads by token or tokens by head."""
    return _lower(op, RopeKernel, rope_operands(op, layouts), layouts, {})


def _lower(
    op: Op,
    family: type[QkNormRopeKernel],
    found: HeadOperands | NeedDense | Refusal,
    layouts: LayoutMap,
    how: Mapping[str, Any],
) -> Lowered:
    if not isinstance(found, HeadOperands):
        return found
    try:
        plain = family(
            dtype=found.dtype,
            streams=found.streams,
            rows=(1,) * len(found.streams),
            rotation=found.rotation,
            flat=same(found.batch, 1) and not layouts.batch_invariant,
            ready=all(is_parameter(v, layouts) for m in found.moved for v in m.parameters),
            **how,
        )
    except ValueError as error:
        return Refusal(str(error))
    if refusal := _refusal(plain, found):
        return refusal
    rows = dim(found.batch * found.tokens * sum(s.heads for s in found.streams))
    least = _fewest_warps(plain)
    few = (Shape(least), Shape(2 * least if least < MOST_WARPS else least // 2))
    if layouts.batch_invariant:
        return [_launch(op, plain, found, layouts, few, None)]
    many = (Shape(max(4, least)), Shape(max(4, least), 2 * LOADS))
    return [
        _launch(op, plain, found, layouts, few, (rows, 0, FEW)),
        _launch(op, plain, found, layouts, many, (rows, FEW + 1, None)),
    ]


def _refusal(kernel: QkNormRopeKernel, found: HeadOperands) -> Refusal | None:
    for moved in found.moved:
        size = _row_elements(kernel, moved.stream) * moved.source.dtype.itemsize
        if size > WIDEST:
            return Refusal(f"{size} bytes of {moved.stream.name}; a block holds {WIDEST}")
        if (out := kernel.out(moved.stream)) != moved.out.dtype.value:
            return Refusal(f"{moved.stream.name} becomes {out}, its result is {moved.out.type}")
    return None


def _blocks(kernel: QkNormRopeKernel, stream: Stream) -> list[int]:
    """The widths of the tiles of a row."""
    return [tile.block for tile in stream_tiles(stream, kernel.rotation)[0]]


def _is_across(kernel: Heads, stream: Stream) -> bool:
    return stream.normed and kernel.scope == "row"


def _row_elements(kernel: QkNormRopeKernel, stream: Stream) -> int:
    """Elements that one block must hold at least: of a row, or of all heads of a token."""
    rows = next_power_of_two(stream.heads) if _is_across(kernel, stream) else 1
    return rows * sum(_blocks(kernel, stream))


def _vector(kernel: QkNormRopeKernel) -> int:
    """Elements of 16 bytes."""
    return 16 // DType(kernel.dtype).itemsize


def _fewest_warps(kernel: QkNormRopeKernel) -> int:
    """Warps that the widest row, or token, keeps busy with 16 bytes of each tile a thread."""
    wanted: list[int] = []
    for stream in kernel.streams:
        warps = _row_elements(kernel, stream) // (32 * LOADS * _vector(kernel))
        if _is_across(kernel, stream):
            rows = next_power_of_two(stream.heads)
            narrowest = rows * min(_blocks(kernel, stream))
            warps = min(warps, narrowest // (32 * _vector(kernel)))
        wanted.append(warps)
    return _power_of_two(min(MOST_WARPS, max(wanted)))


def _rows(kernel: QkNormRopeKernel, stream: Stream, shape: Shape) -> int:
    """Rows of a block: each thread has its elements, and 16 bytes of the narrowest tile."""
    blocks, threads = _blocks(kernel, stream), 32 * shape.warps
    held = threads * _vector(kernel)
    wanted = max(held // min(blocks), held * shape.loads // sum(blocks))
    rows = _power_of_two(min(wanted, threads * MOST // sum(blocks)))
    return max(rows, next_power_of_two(stream.heads)) if _is_across(kernel, stream) else rows


def _power_of_two(value: int) -> int:
    """The largest power of two that is no larger, at least 1."""
    return 1 << max(0, value.bit_length() - 1)


def _launch(
    op: Op,
    plain: QkNormRopeKernel,
    found: HeadOperands,
    layouts: LayoutMap,
    shapes: Sequence[Shape],
    when: When,
) -> Launch:
    """The launch with blocks of each shape, the first one first; in turn with these, the same in
    CUDA C++, which may lead (`cuda_heads.leads`).
    """
    tokens = dim(found.batch * found.tokens)
    named = found.dims | {"tokens": tokens, "length": found.tokens}
    dims = {name: named[name] for name, _ in plain.dims}
    in_triton = list(dict.fromkeys(_shaped(plain, shape) for shape in shapes))
    forms = [] if layouts.batch_invariant else _in_cuda(plain, shapes[0].warps)
    in_cuda = [with_hints(k, found.buffers, dims, layouts) for k in forms]
    cuda_first = bool(in_cuda) and cuda_heads.leads(in_cuda[0], plain)
    both = in_turn(in_cuda, in_triton) if cuda_first else in_turn(in_triton, in_cuda)
    made = [
        launch(k, found.buffers, dims, (_grid(k, tokens),), layouts, work(op), when=when)
        for k in both
    ]
    return dataclasses.replace(made[0], others=tuple(made[1:]))


def _in_cuda(kernel: QkNormRopeKernel, warps: int) -> list[CudaHeadsKernel]:
    """The same in CUDA C++."""
    try:
        return cuda_heads.forms(kernel, warps=min(warps, CUDA_WARPS))
    except ValueError as error:
        log.debug("%s: no form in CUDA C++ for %s", kernel.symbol, error)
        return []


def _shaped(kernel: QkNormRopeKernel, shape: Shape) -> QkNormRopeKernel:
    """The kernel with blocks of a shape."""
    rows = tuple(_rows(kernel, stream, shape) for stream in kernel.streams)
    return dataclasses.replace(kernel, rows=rows, warps=shape.warps)


def _grid(kernel: QkNormRopeKernel | CudaHeadsKernel, tokens: Dim) -> Dim:
    """Blocks of all streams."""
    blocks: Dim = 0
    for i, stream in enumerate(kernel.streams):
        across = _is_across(kernel, stream)
        if isinstance(kernel, CudaHeadsKernel):
            held = kernel.block_rows(stream)
        else:
            held = kernel.rows[i] // (next_power_of_two(stream.heads) if across else 1)
        rows = tokens if across else dim(tokens * stream.heads)
        blocks = dim(blocks + ceil_div(rows, held))
    return blocks
