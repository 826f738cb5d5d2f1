"""Norms, rotation and cache writes of the rows before attention over a latent, in Triton."""

from __future__ import annotations

from fuseline.codegen.gpu.qk_norm_rope import QkNormRopeKernel


class MlaProjectionKernel(QkNormRopeKernel, template="triton/mla_projection.py.jinja"):
    """`QkNormRopeKernel` over streams of one head: ``latent``, ``shared`` and ``q``."""
