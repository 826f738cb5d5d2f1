"""Imports every module that lowers ops for CPUs, so that all lowerings are registered."""

from __future__ import annotations

from fuseline.codegen.cpu import (
    lower_adapters,
    lower_attention,
    lower_experts,
    lower_index,
    lower_latent,
    lower_linear,
    lower_mla,
    lower_pointwise,
    lower_route,
    lower_rows,
    lower_select,
)

__all__ = [
    "lower_adapters",
    "lower_attention",
    "lower_experts",
    "lower_index",
    "lower_latent",
    "lower_linear",
    "lower_mla",
    "lower_pointwise",
    "lower_route",
    "lower_rows",
    "lower_select",
]
