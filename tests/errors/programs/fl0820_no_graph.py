"""A model without a graph."""

from pathlib import Path

import onnx

from fuseline.frontend.onnx import import_onnx


def program(tmp: Path) -> None:
    import_onnx(onnx.ModelProto())
