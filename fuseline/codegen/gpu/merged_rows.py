"""Norms and rotations of rows of the same tokens, in Triton: one launch."""

from __future__ import annotations

from fuseline.codegen.gpu.qk_norm_rope import QkNormRopeKernel


class MergedRowsKernel(QkNormRopeKernel, template="triton/merged_rows.py.jinja"):
    """`QkNormRopeKernel` over streams of one head, ``row0``, ``row1``, ...: normed or turned."""
