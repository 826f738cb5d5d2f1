"""A model for operators of long ago."""

from pathlib import Path

from onnx import TensorProto, helper

from fuseline.frontend.onnx import import_onnx


def program(tmp: Path) -> None:
    del tmp
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [3]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [x], [y])
    import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 6)]))
