"""Imports every module that lowers ops for GPUs, so that all lowerings are registered."""

from __future__ import annotations

from fuseline.codegen.gpu import (
    lower_adapters,
    lower_attention,
    lower_experts,
    lower_heads,
    lower_index,
    lower_latent,
    lower_linear,
    lower_pointwise,
    lower_route,
    lower_rows,
    lower_select,
)

__all__ = [
    "lower_adapters",
    "lower_attention",
    "lower_experts",
    "lower_heads",
    "lower_index",
    "lower_latent",
    "lower_linear",
    "lower_pointwise",
    "lower_route",
    "lower_rows",
    "lower_select",
]
