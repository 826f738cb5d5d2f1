"""Imports every module that lowers ops, so that all lowerings are registered."""

from __future__ import annotations

from fuseline.codegen import (
    lower_attention,
    lower_index,
    lower_latent,
    lower_linear,
    lower_mla,
    lower_pointwise,
    lower_rows,
)

__all__ = [
    "lower_attention",
    "lower_index",
    "lower_latent",
    "lower_linear",
    "lower_mla",
    "lower_pointwise",
    "lower_rows",
]
