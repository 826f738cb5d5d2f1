"""A shape that is an input."""

from pathlib import Path

from onnx import TensorProto, helper

from fuseline.frontend.onnx import import_onnx


def program(tmp: Path) -> None:
    del tmp
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [6])
    shape = helper.make_tensor_value_info("shape", TensorProto.INT64, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b"])
    reshape = helper.make_node("Reshape", ["x", "shape"], ["y"], name="fold")
    graph = helper.make_graph([reshape], "g", [x, shape], [y])
    import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
