"""A model whose result has a size that only the data tells."""

from pathlib import Path

from onnx import TensorProto, helper

from fuseline.frontend.onnx import import_onnx
from fuseline.onnx_run import compile_onnx


def program(tmp: Path) -> None:
    del tmp
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 4])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, [2, "n"])
    graph = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["y"], name="find")], "g", [x], [y]
    )
    compile_onnx(import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])))
