"""Lowering of what stands before attention over a latent."""

from __future__ import annotations

from fuseline.codegen.cpu.mla_projection import mla_projection
from fuseline.codegen.head_operands import HeadOperands, mla_operands
from fuseline.codegen.lower import Launch, Lowered, Refusal, lowers, work
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.mla_projection import MlaProjection, MlaProjectionWrite


@lowers(MlaProjection, MlaProjectionWrite)
def lower_mla_projection(op: MlaProjection | MlaProjectionWrite, layouts: LayoutMap) -> Lowered:
    """One launch over the rows that the op has."""
    found = mla_operands(op, layouts)
    if not isinstance(found, HeadOperands):
        return found
    streams = {s.name: s for s in found.streams}
    try:
        kernel = mla_projection(
            found.dtype,
            latent=streams.get("latent"),
            shared=streams.get("shared"),
            q=streams.get("q"),
            rotation=found.rotation,
            eps=op.eps,
            offset=op.offset,
            cast=op.cast,
        )
    except ValueError as error:
        return Refusal(str(error))
    return [Launch(kernel, found.buffers, tuple(found.dims.values()), work(op))]
