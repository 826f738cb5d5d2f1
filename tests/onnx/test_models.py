"""Whole models that torch.onnx exports, imported, compiled, and held against onnxruntime."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import onnx
import pytest
import torch
from torch import Tensor, nn

from fuseline.frontend.onnx import import_onnx
from fuseline.ir.verify import verify
from fuseline.onnx_run import CompiledOnnx, compile_onnx
from tests.onnx.models import by_onnxruntime, mini_lm, vision_transformer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SIZES = ((2, 9), (1, 1), (3, 17))
"""Batches and lengths; the first is the one that a model is exported with."""


class Tokens(nn.Module):
    """A model of transformers as a function of token ids and the mask of padding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        out = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return out.logits if hasattr(out, "logits") else out.last_hidden_state


def inputs_of(batch: int, length: int, vocabulary: int = 100) -> dict[str, Tensor]:
    """Tokens, of which the last batch has two fewer where there are so many."""
    g = torch.Generator().manual_seed(batch * 100 + length)
    ids = torch.randint(0, vocabulary, (batch, length), generator=g)
    mask = torch.ones(batch, length, dtype=torch.int64)
    if length > 3:
        mask[-1, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def exported(model: nn.Module, path: Path, *, opset: int, dynamo: bool) -> onnx.ModelProto:
    """The model in a file, with batch and length dynamic."""
    tokens, given = Tokens(model.eval()), tuple(inputs_of(*SIZES[0]).values())
    names = ["input_ids", "attention_mask"]
    export = cast("Any", torch.onnx).export
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own exporters
        if dynamo:
            dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")}
            shapes = dict.fromkeys(names, dims)
            found = export(tokens, given, dynamo=True, opset_version=opset, dynamic_shapes=shapes)
            found.save(path)
        else:
            axes = {name: {0: "batch", 1: "seq"} for name in names}
            export(
                tokens, given, str(path), dynamo=False, opset_version=opset, input_names=names,
                dynamic_axes=axes,
            )  # fmt: skip
    return cast("Any", onnx).load(path)


def holds(m: onnx.ModelProto, path: Path, *, scale: float = 2e-6) -> CompiledOnnx:
    """Both roads give what onnxruntime gives, at sizes that were not the example's too."""
    program = import_onnx(path)
    verify(program.func)
    compiled = compile_onnx(program)
    for size in SIZES:
        inputs = inputs_of(*size)
        for name, want in by_onnxruntime(m, inputs).items():
            atol = scale * float(want.abs().max())
            for found in (program.run(inputs), compiled(inputs)):
                torch.testing.assert_close(found[name], want, atol=atol, rtol=0)
    return compiled


def fused(compiled: CompiledOnnx, *patterns: str) -> Mapping[str, int]:
    report = compiled.report()
    return {p: report.count(p, status="fused") for p in patterns}


@pytest.mark.parametrize(("opset", "dynamo"), [(18, True), (17, False)])
def test_qwen3_with_qk_norm(tmp_path: Path, opset: int, dynamo: bool) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    cast("Any", torch).manual_seed(0)
    config = Qwen3Config(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, use_cache=False,
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    m = exported(cast("Any", Qwen3ForCausalLM)(config), path, opset=opset, dynamo=dynamo)
    compiled = holds(m, path)
    assert fused(compiled, "qk_norm", "attention", "gated_mlp", "merged_linear") == {
        "qk_norm": 2,
        "attention": 2,
        "gated_mlp": 2,
        "merged_linear": 2,
    }
    assert compiled.report().stats["host steps"] == 0


def test_qwen3_with_experts(tmp_path: Path) -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    cast("Any", torch).manual_seed(0)
    config = cast("Any", Qwen3MoeConfig)(
        vocab_size=128, hidden_size=64, intermediate_size=96, moe_intermediate_size=32,
        num_experts=8, num_experts_per_tok=2, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, use_cache=False, experts_implementation="batched_mm",
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    m = exported(cast("Any", Qwen3MoeForCausalLM)(config), path, opset=18, dynamo=True)
    assert fused(holds(m, path), "moe", "qk_norm") == {"moe": 2, "qk_norm": 2}


def test_an_embedding_model_with_trained_weights(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2, from the package that ships it."""
    path = tmp_path / "m.onnx"
    compiled = holds(exported(mini_lm(), path, opset=18, dynamo=True), path, scale=5e-6)
    assert fused(compiled, "attention", "merged_linear") == {"attention": 6, "merged_linear": 6}


def test_a_vision_transformer(tmp_path: Path) -> None:
    vit: Any = vision_transformer()
    path = tmp_path / "m.onnx"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cast("Any", torch.onnx).export(
            vit, (torch.zeros(2, 3, 32, 32),), dynamo=True, opset_version=18,
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
        ).save(path)  # fmt: skip
    m = cast("Any", onnx).load(path)
    program = import_onnx(path)
    compiled = compile_onnx(program)
    for batch in (1, 2, 5):
        g = torch.Generator().manual_seed(batch)
        inputs = {program.inputs[0]: torch.randn(batch, 3, 32, 32, generator=g)}
        for name, want in by_onnxruntime(m, inputs).items():
            for found in (program.run(inputs), compiled(inputs)):
                torch.testing.assert_close(found[name], want, atol=1e-5, rtol=1e-5)
