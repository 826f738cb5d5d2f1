"""The versions of the standard operators that are written."""

from __future__ import annotations

import importlib
from typing import Any

from fuseline import errors

OLDEST = 23
"""The first version of the standard operators that has the norms, rotations and attention."""


def check_version(opset: int | None) -> int:
    """The version to write: the oldest that will do, where none is asked for.

    Raises:
        LoadError: FL0802, without the package onnx, or with one that is too old.
        UsageError: FL0101, for a version that the package does not have, or that is too old.

    """
    try:
        onnx: Any = importlib.import_module("onnx")
    except ImportError:
        hint = "pip install fuseline[onnx]"
        raise errors.MISSING_PACKAGE.error("onnx", hint=hint) from None
    newest: int = onnx.defs.onnx_opset_version()
    if newest < OLDEST:
        raise errors.MISSING_PACKAGE.error(
            "onnx",
            found=f"version {onnx.__version__}",
            expected="1.18 or newer",
            hint="pip install 'onnx>=1.18'",
        )
    version = OLDEST if opset is None else opset
    if not OLDEST <= version <= newest:
        expected = f"{OLDEST} to {newest}, the newest that the package onnx has"
        raise errors.INVALID_OPTION.error("opset", found=str(version), expected=expected)
    return version


__all__ = ["OLDEST", "check_version"]
