"""ONNX models to IR; needs the package ``onnx`` (``pip install fuseline[onnx]``)."""

from fuseline.frontend.onnx.importer import NeedsInput, import_onnx
from fuseline.frontend.onnx.program import OnnxProgram

__all__ = ["NeedsInput", "OnnxProgram", "import_onnx"]
