"""Norms, rotation and cache writes of the rows before attention over a latent, in one launch."""

from __future__ import annotations

from fuseline.codegen.cpu.qk_norm_rope import QkNormRopeKernel
from fuseline.codegen.heads import Rotation, Stream
from fuseline.ir.ops.raised import CastPoint


class MlaProjectionKernel(QkNormRopeKernel, template="cpp/mla_projection.cpp.jinja"):
    """`QkNormRopeKernel` over streams of one head: ``latent``, ``shared`` and ``q``.

    They differ in width and in what is done to them, and share their tokens: one pass reads the
    columns of a merged projection and writes each row where it belongs, into a cache or not.
    """


def mla_projection(
    dtype: str,
    *,
    latent: Stream | None,
    shared: Stream | None,
    q: Stream | None,
    rotation: Rotation | None,
    eps: float = 1e-6,
    offset: float = 0.0,
    cast: CastPoint = "before_weight",
) -> MlaProjectionKernel:
    """The kernel of one `mla_projection` op, over those of its rows that it has."""
    streams = tuple(s for s in (latent, shared, q) if s is not None)
    return MlaProjectionKernel(dtype, streams, rotation, "rms", eps, offset, cast)
