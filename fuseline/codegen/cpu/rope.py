"""Rotation of heads by itself."""

from __future__ import annotations

from fuseline.codegen.cpu.qk_norm_rope import QkNormRopeKernel
from fuseline.codegen.heads import Rotation, Stream


class RopeKernel(QkNormRopeKernel, template="cpp/rope.cpp.jinja"):
    """The rotation of `QkNormRopeKernel` without a norm; its one stream is called ``x``.

    x is ``[B, S, heads, width]`` with any strides; a value ``[B, H, S, D]`` is the same with its
    strides exchanged. Buffers: x, x_out, cos, sin; dims: B, S, x_b, x_t, x_h, x_out_b, x_out_t,
    x_out_h, cos_b, cos_t, sin_b, sin_t.
    """


def rope(dtype: str, heads: int, width: int, rotation: Rotation) -> RopeKernel:
    """The kernel of one `rope` op on ``heads`` heads of ``width`` elements."""
    return RopeKernel(dtype, (Stream("x", heads, width, normed=False),), rotation)
