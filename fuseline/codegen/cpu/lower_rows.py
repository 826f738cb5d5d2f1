"""Lowerings onto the row kernels: norms, and norm with rotation of queries and keys."""

from __future__ import annotations

import dataclasses

from fuseline.codegen.cpu.norm import NormKernel
from fuseline.codegen.cpu.qk_norm_rope import QkNormRopeKernel
from fuseline.codegen.cpu.rope import rope
from fuseline.codegen.head_operands import HeadOperands, qk_operands, rope_operands
from fuseline.codegen.lower import Launch, Lowered, Refusal, lowers, work
from fuseline.codegen.norms import NormOperands, norm_operands
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.fused import AddRmsNorm, QkNormRope, QkNormRopeWrite
from fuseline.ir.ops.raised import LayerNorm, RmsNorm, Rope
from fuseline.ir.types import Dim


@lowers(RmsNorm, LayerNorm, AddRmsNorm)
def lower_norm(op: RmsNorm | LayerNorm | AddRmsNorm, layouts: LayoutMap) -> Lowered:
    """A norm over the last dim, with the residual add before it where there is one."""
    found = norm_operands(op, layouts)
    if not isinstance(found, NormOperands):
        return found
    kernel = NormKernel(**dataclasses.asdict(found.norm))
    dims: list[Dim] = [found.rows.outer, found.rows.inner]
    for pair in found.rows.strides:
        dims += pair
    buffers = (*found.sources, *found.parameters, *found.results)
    return [Launch(kernel, buffers, tuple(dims), work(op))]


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
    assert found.rotation is not None, "a rope has tables"
    stream = found.moved[0].stream
    try:
        kernel = rope(found.dtype, stream.heads, stream.width, found.rotation)
    except ValueError as error:
        return Refusal(str(error))
    return [Launch(kernel, found.buffers, tuple(found.dims.values()), work(op))]
