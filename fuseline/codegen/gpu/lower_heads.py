"""Lowerings onto the kernel of heads: norm, rotation and cache writes of q, k, v and latents.

Launches move every element once, so what counts is that each thread has 16 bytes of each tile of a
row in flight, in as many registers as that takes and no more. A block then has so many rows that
its narrowest tile still gives every thread 16 bytes. Up to `FEW` rows blocks are as small as that
allows, so that a step of decoding spreads over the multiprocessors; beyond, they have four warps
and more, so that there are fewer of them to start.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fuseline.codegen.forms import When
from fuseline.codegen.gpu.kernel import ceil_div, launch, next_power_of_two
from fuseline.codegen.gpu.mla_projection import MlaProjectionKernel
from fuseline.codegen.gpu.qk_norm_rope import QkNormRopeKernel, stream_tiles
from fuseline.codegen.gpu.rope import RopeKernel
from fuseline.codegen.head_operands import (
    HeadOperands,
    mla_operands,
    qk_operands,
    rope_operands,
)
from fuseline.codegen.heads import Stream
from fuseline.codegen.lower import Launch, Lowered, NeedDense, Refusal, lowers, work
from fuseline.ir.core import Op
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.fused import QkNormRope, QkNormRopeWrite
from fuseline.ir.ops.mla_projection import MlaProjection, MlaProjectionWrite
from fuseline.ir.ops.raised import Rope
from fuseline.ir.types import Dim, DType, dim, same

FEW = 16384
"""Rows that blocks of one warp with four rows each hold at once: 32 blocks a multiprocessor."""

THREAD = 16
"""Elements of a row that a thread takes where rows are wide."""

MOST = 64
"""Elements that a thread holds at most, but where one row (or token) has more than that."""

WIDEST = 32768
"""Elements of a row, or of a token's heads normed as one, that one block holds in registers."""


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
            flat=same(found.batch, 1),
            **how,
        )
    except ValueError as error:
        return Refusal(str(error))
    if refusal := _refusal(plain, found):
        return refusal
    rows = dim(found.batch * found.tokens * sum(s.heads for s in found.streams))
    least = _fewest_warps(plain)
    few, many = ([each, 2 * each] for each in (least, max(4, least)))
    ranges: list[tuple[list[int], When]] = [(few, (rows, 0, FEW)), (many, (rows, FEW + 1, None))]
    if few == many:
        ranges = [(few, None)]
    return [_launch(op, plain, found, layouts, warps, when) for warps, when in ranges]


def _refusal(kernel: QkNormRopeKernel, found: HeadOperands) -> Refusal | None:
    for moved in found.moved:
        if (elements := _row_elements(kernel, moved.stream)) > WIDEST:
            return Refusal(f"{elements} elements of {moved.stream.name}; a block takes {WIDEST}")
        if (out := kernel.out(moved.stream)) != moved.out.dtype.value:
            return Refusal(f"{moved.stream.name} becomes {out}, its result is {moved.out.type}")
    return None


def _blocks(kernel: QkNormRopeKernel, stream: Stream) -> list[int]:
    """The widths of the tiles of a row."""
    return [tile.block for tile in stream_tiles(stream, kernel.rotation)[0]]


def _is_across(kernel: QkNormRopeKernel, stream: Stream) -> bool:
    return stream.normed and kernel.scope == "row"


def _row_elements(kernel: QkNormRopeKernel, stream: Stream) -> int:
    """Elements that one block must hold at least: of a row, or of all heads of a token."""
    rows = next_power_of_two(stream.heads) if _is_across(kernel, stream) else 1
    return rows * sum(_blocks(kernel, stream))


def _fewest_warps(kernel: QkNormRopeKernel) -> int:
    """Warps that the widest row keeps busy."""
    widest = max(_row_elements(kernel, s) for s in kernel.streams)
    return max(1, min(16, next_power_of_two(widest // (32 * THREAD))))


def _rows(kernel: QkNormRopeKernel, stream: Stream, warps: int) -> int:
    """Rows of a block: as many as give each thread 16 bytes of the narrowest tile."""
    blocks, threads = _blocks(kernel, stream), 32 * warps
    vector = 16 // DType(kernel.dtype).itemsize
    wanted = threads * vector // min(blocks)
    most = threads * MOST // sum(blocks)
    rows = _power_of_two(min(wanted, most))
    return max(rows, next_power_of_two(stream.heads)) if _is_across(kernel, stream) else rows


def _power_of_two(value: int) -> int:
    """The largest power of two that is no larger, at least 1."""
    return 1 << max(0, value.bit_length() - 1)


def _launch(
    op: Op,
    plain: QkNormRopeKernel,
    found: HeadOperands,
    layouts: LayoutMap,
    warps: Sequence[int],
    when: When,
) -> Launch:
    """The launch with each number of warps, the first one first."""
    named = found.dims
    tokens = dim(named["B"] * named["S"])
    dims = {name: named.get(name, 0) for name, _ in plain.dims}
    dims["tokens"] = tokens
    if not plain.flat:
        dims["length"] = named["S"]
    made: list[Launch] = []
    for each in warps:
        rows = tuple(_rows(plain, s, each) for s in plain.streams)
        kernel = dataclasses.replace(plain, rows=rows, warps=each)
        grid = dim(sum(_grid(kernel, i, tokens) for i in range(len(rows))))
        made.append(launch(kernel, found.buffers, dims, (grid,), layouts, work(op), when=when))
    return dataclasses.replace(made[0], others=tuple(made[1:]))


def _grid(kernel: QkNormRopeKernel, index: int, tokens: Dim) -> Dim:
    """Blocks of one stream."""
    stream, rows = kernel.streams[index], kernel.rows[index]
    if _is_across(kernel, stream):
        return ceil_div(tokens, rows // next_power_of_two(stream.heads))
    return ceil_div(dim(tokens * stream.heads), rows)
