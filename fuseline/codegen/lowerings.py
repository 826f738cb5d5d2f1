"""Imports every module that lowers ops, so that all lowerings are registered."""

from __future__ import annotations

from fuseline.codegen.cpu import lowerings as cpu
from fuseline.codegen.gpu import lowerings as gpu

__all__ = ["cpu", "gpu"]
