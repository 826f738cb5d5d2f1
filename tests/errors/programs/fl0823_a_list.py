"""Inputs in a list, which have no names."""

from pathlib import Path
from typing import Any, cast

import torch
from onnx import TensorProto, helper

from fuseline.frontend.onnx import import_onnx


def program(tmp: Path) -> None:
    make = cast("Any", helper)
    x, y = (make.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    graph = make.make_graph([make.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 21)])
    import_onnx(model).run(cast("Any", [torch.ones(4)]))
