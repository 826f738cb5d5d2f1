"""Rotation of heads by itself, in Triton."""

from __future__ import annotations

from fuseline.codegen.gpu.qk_norm_rope import QkNormRopeKernel


class RopeKernel(QkNormRopeKernel, template="triton/rope.py.jinja"):
    """The rotation of `QkNormRopeKernel` without a norm; its one stream is called ``x``."""
