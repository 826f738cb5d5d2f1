"""A model of a version of the standard operators that the installed onnx does not have."""

from pathlib import Path
from typing import Any, cast
from unittest import mock

import onnx
from onnx import TensorProto, helper

from fuseline.frontend.onnx import import_onnx


def program(tmp: Path) -> None:
    make = cast("Any", helper)
    x, y = (make.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    graph = make.make_graph([make.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 99)])
    newest = mock.patch.object(cast("Any", onnx).defs, "onnx_opset_version", return_value=28)
    with newest, mock.patch.object(onnx, "__version__", "1.23.2"):
        import_onnx(model)
