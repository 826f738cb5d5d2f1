"""A model without the file that its weights are in."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fuseline.frontend.onnx import import_onnx


def program(tmp: Path) -> None:
    make = cast("Any", helper)
    x, y = (make.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    weight = cast("Any", numpy_helper).from_array(np.ones(4, np.float32), "weight")
    graph = make.make_graph(
        [make.make_node("Add", ["x", "weight"], ["y"])], "g", [x], [y], [weight]
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 21)])
    save = cast("Any", onnx).save
    beside: dict[str, Any] = {"save_as_external_data": True, "size_threshold": 0}
    save(model, tmp / "model.onnx", location="model.data", **beside)
    (tmp / "model.data").unlink()
    import_onnx(tmp / "model.onnx")
