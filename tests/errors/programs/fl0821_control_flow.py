"""A loop, which only the data ends."""

from pathlib import Path

from onnx import TensorProto, helper

from fuseline.frontend.onnx import import_onnx


def program(tmp: Path) -> None:
    del tmp
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])
    count = helper.make_tensor_value_info("count", TensorProto.INT64, [])
    step, more = helper.make_tensor_value_info("i", TensorProto.INT64, []), "more"
    names = [helper.make_tensor_value_info(more, TensorProto.BOOL, []), x]
    body = helper.make_graph(
        [helper.make_node("Identity", [n], [f"{n}_out"]) for n in (more, "x")],
        "body",
        [step, *names],
        [
            helper.make_tensor_value_info("more_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x_out", TensorProto.FLOAT, [3]),
        ],
    )
    loop = helper.make_node("Loop", ["count", "", "x"], ["y"], name="repeat", body=body)
    graph = helper.make_graph([loop], "g", [x, count], [helper.make_empty_tensor_value_info("y")])
    import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
