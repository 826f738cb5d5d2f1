"""Lowerings onto the row kernels: norms, and norm with rotation of queries and keys."""

from __future__ import annotations

import dataclasses

from fuseline.codegen.cpu.norm import NormKernel
from fuseline.codegen.cpu.qk_norm_rope import QkNormRopeKernel
from fuseline.codegen.cpu.rope import rope
from fuseline.codegen.head_operands import (
    HeadOperands,
    merged_operands,
    qk_operands,
    rope_operands,
)
from fuseline.codegen.lower import Launch, Lowered, Refusal, lowers, work
from fuseline.codegen.norms import NormOperands, merged_norm_operands, norm_operands
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.fused import AddRmsNorm, QkNormRope, QkNormRopeWrite
from fuseline.ir.ops.merged_rows import MergedRows
from fuseline.ir.ops.raised import LayerNorm, RmsNorm, Rope
from fuseline.ir.types import Dim, dim


@lowers(RmsNorm, LayerNorm, AddRmsNorm)
def lower_norm(op: RmsNorm | LayerNorm | AddRmsNorm, layouts: LayoutMap) -> Lowered:
    """A norm over the last dim, with the residual add before it where there is one."""
    found = norm_operands(op, layouts)
    if not isinstance(found, NormOperands):
        return found
    return [_norm(found, work(op))]


def _norm(found: NormOperands, effort: Dim) -> Launch:
    kernel = NormKernel(**dataclasses.asdict(found.norm))
    dims: list[Dim] = [found.rows.outer, found.rows.inner]
    for pair in found.rows.strides:
        dims += pair
    buffers = (*found.sources, *found.parameters, *found.results)
    return Launch(kernel, buffers, tuple(dims), effort)


@lowers(QkNormRope, QkNormRopeWrite)
def lower_qk_norm_rope(op: QkNormRope | QkNormRopeWrite, layouts: LayoutMap) -> Lowered:
    """Norm and rotation of queries and keys, and the write into a static cache."""
    found = qk_operands(op, layouts)
    if not isinstance(found, HeadOperands):
        return found
    try:
        kernel = QkNormRopeKernel(
            dtype=found.dtype,
            streams=found.streams,
            rotation=found.rotation,
            kind="layer" if op.norm == "layer" else "rms",
            eps=op.eps,
            offset=op.offset,
            cast=op.cast,
            scope=op.scope,
            order=op.order,
        )
    except ValueError as error:
        return Refusal(str(error))
    return [Launch(kernel, found.buffers, tuple(found.dims.values()), work(op))]


@lowers(Rope)
def lower_rope(op: Rope, layouts: LayoutMap) -> Lowered:
    """Rotation alone, of heads by token or tokens by head."""
    found = rope_operands(op, layouts)
    if not isinstance(found, HeadOperands):
        return found
    try:
        return [_rope(found, work(op))]
    except ValueError as error:
        return Refusal(str(error))


def _rope(found: HeadOperands, effort: Dim) -> Launch:
    """The rotation of one stream.

    Raises:
        ValueError: a rotation that has no meaning.

    """
    assert found.rotation is not None, "a rope has tables"
    stream = found.moved[0].stream
    kernel = rope(found.dtype, stream.heads, stream.width, found.rotation)
    return Launch(kernel, found.buffers, tuple(found.dims.values()), effort)


@lowers(MergedRows)
def lower_merged_rows(op: MergedRows, layouts: LayoutMap) -> Lowered:
    """Each row by its own kernel: here a launch is a call of a function, and costs next to nothing,
    while the kernel of norms keeps all workers and vectors of a row of its width busy.
    """
    all_rows = merged_operands(op, layouts)
    if not isinstance(all_rows, HeadOperands):
        return all_rows
    launches: list[Launch] = []
    for i in range(len(op.xs)):
        found = merged_norm_operands(op, i, layouts)
        if not isinstance(found, NormOperands):
            return found
        launches.append(_norm(found, _share(op, i)))
    try:
        for i, moved in enumerate(all_rows.moved[len(op.xs) :], len(op.xs)):
            one = dataclasses.replace(all_rows, moved=(moved,))
            launches.append(_rope(one, _share(op, i)))
    except ValueError as error:
        return Refusal(str(error))
    return launches


def _share(op: MergedRows, index: int) -> Dim:
    """The work of one row, as of an op of its own."""
    x, y = op.rows[index].tensor, op.ys[index].tensor
    return dim(4 * (x.nbytes + y.nbytes) + 4 * x.numel)
