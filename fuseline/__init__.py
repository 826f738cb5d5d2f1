"""fuseline compiles PyTorch language models, and says what it fused and what it did not.

The names below are the whole public API. They are loaded when first used: importing fuseline
imports neither torch nor a compiler, and writes nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from fuseline._version import __version__

if TYPE_CHECKING:
    from fuseline.artifact.load import load
    from fuseline.config import Config
    from fuseline.entry import compile, explain
    from fuseline.errors import Diagnostic, FuselineError, FuselineWarning, InternalError
    from fuseline.exporting import export
    from fuseline.exporting.onnx import export_onnx
    from fuseline.logs import set_log_level
    from fuseline.report import KernelRecord, PassRecord, Report, Site

_HOMES = {
    "compile": "fuseline.entry",
    "explain": "fuseline.entry",
    "export": "fuseline.exporting",
    "export_onnx": "fuseline.exporting.onnx",
    "load": "fuseline.artifact.load",
    "Config": "fuseline.config",
    "Diagnostic": "fuseline.errors",
    "FuselineError": "fuseline.errors",
    "FuselineWarning": "fuseline.errors",
    "InternalError": "fuseline.errors",
    "set_log_level": "fuseline.logs",
    "KernelRecord": "fuseline.report",
    "PassRecord": "fuseline.report",
    "Report": "fuseline.report",
    "Site": "fuseline.report",
}

__all__ = [
    "compile",
    "explain",
    "export",
    "export_onnx",
    "load",
    "Config",
    "Report",
    "Site",
    "KernelRecord",
    "PassRecord",
    "Diagnostic",
    "FuselineError",
    "FuselineWarning",
    "InternalError",
    "set_log_level",
    "__version__",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'fuseline' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
