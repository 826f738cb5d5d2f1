"""A run without one of the inputs."""

from pathlib import Path

import torch
from onnx import TensorProto, helper

from fuseline.frontend.onnx import import_onnx


def program(tmp: Path) -> None:
    del tmp
    a, b, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [3]) for n in "aby")
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["y"])], "g", [a, b], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    import_onnx(model).run({"a": torch.ones(3)})
