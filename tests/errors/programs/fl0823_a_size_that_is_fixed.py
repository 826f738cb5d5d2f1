"""A range is asked for where the file has one size."""

from pathlib import Path
from typing import Any, cast

from onnx import TensorProto, helper

from fuseline.exporting.inputs import parse
from fuseline.frontend.onnx import import_onnx


def program(tmp: Path) -> None:
    make = cast("Any", helper)
    x, y = (make.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    graph = make.make_graph([make.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 21)])
    import_onnx(model, inputs=[parse("x:float32[1..8,1..4]")])
