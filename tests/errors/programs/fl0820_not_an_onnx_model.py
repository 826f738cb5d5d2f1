"""A file that is no ONNX model."""

from pathlib import Path

from fuseline.frontend.onnx import import_onnx


def program(tmp: Path) -> None:
    (tmp / "model.onnx").write_bytes(b"\x08\x0a\xff")
    import_onnx(tmp / "model.onnx")
