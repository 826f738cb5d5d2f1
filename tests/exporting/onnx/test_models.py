"""Whole models of transformers, written as ONNX and run by onnxruntime and read back in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import onnx
import pytest
import torch
from torch import Tensor, nn

import fuseline
from fuseline.exporting.onnx.file import Written
from fuseline.frontend.onnx import import_onnx
from fuseline.frontend.onnx.data import from_numpy
from fuseline.onnx_run import compile_onnx
from tests.onnx.models import mini_lm, vision_transformer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EXAMPLE = (3, 5)
SIZES = ((1, 1), (2, 17), (4, 8))
"""Batches and lengths, none of which is the example's."""

BATCH, LENGTH = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=1, max=99)
SMALL: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4,
}  # fmt: skip


def inputs_of(batch: int, length: int, *, mask: bool) -> dict[str, Tensor]:
    """Tokens, of which the last batch has two fewer where there are so many."""
    g = torch.Generator().manual_seed(batch * 100 + length)
    found = {"input_ids": torch.randint(0, 128, (batch, length), generator=g)}
    if mask:
        found["attention_mask"] = torch.ones(batch, length, dtype=torch.int64)
        if length > 3:
            found["attention_mask"][-1, -2:] = 0
    return found


def holds(
    model: nn.Module, path: Path, *, mask: bool = False, back: bool = True, **options: Any
) -> Written:
    """onnxruntime gives what eager gives, and so does the file once it is read back in."""
    import onnxruntime

    example = inputs_of(*EXAMPLE, mask=mask)
    dims = {name: {0: BATCH, 1: LENGTH} for name in example}
    found = fuseline.export_onnx(
        model.eval(), (), example, path=path, dynamic_shapes=dims, **options
    )
    session = cast("Any", onnxruntime).InferenceSession(str(path))
    program = import_onnx(path)
    compiled = compile_onnx(program) if back else None
    for size in SIZES:
        given = inputs_of(*size, mask=mask)
        with torch.no_grad():
            want = model(**given)[0]
        arrays = {name: t.numpy() for name, t in given.items()}
        each = [from_numpy(session.run(None, arrays)[0]), next(iter(program.run(given).values()))]
        each += [] if compiled is None else [next(iter(compiled(given).values()))]
        for got in each:
            atol = 5e-6 * float(want.abs().max())
            torch.testing.assert_close(got, want, atol=atol, rtol=0)
    return found


def test_qwen3_with_qk_norm(tmp_path: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    cast("Any", torch).manual_seed(0)
    config = Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=16, use_cache=False)
    found = holds(cast("Any", Qwen3ForCausalLM)(config), tmp_path / "m.onnx")
    assert found.functions == {"AddRmsNorm": 4, "GatedMlp": 2, "QkNormRope": 2}
    assert found.operators["Attention"] == 2
    assert found.operators["RotaryEmbedding"] == 2
    assert "Where" not in found.operators  # causality is said, and no mask


@pytest.mark.parametrize("dense", [False, True])
def test_qwen3_with_experts(tmp_path: Path, dense: bool) -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    cast("Any", torch).manual_seed(0)
    config = cast("Any", Qwen3MoeConfig)(
        **SMALL, moe_intermediate_size=32, num_experts=8, num_experts_per_tok=2,
        num_key_value_heads=2, head_dim=16, use_cache=False,
    )  # fmt: skip
    model = cast("Any", Qwen3MoeForCausalLM)(config)
    found = holds(model, tmp_path / "m.onnx", back=dense, dense_experts=dense)
    assert found.functions == {"AddRmsNorm": 4, "Moe": 2, "QkNormRope": 2, "Route": 2}
    assert ("NonZero" in found.operators) is not dense


@pytest.mark.parametrize("dense", [False, True])
def test_deepseek_with_latents_groups_and_shared_experts(tmp_path: Path, dense: bool) -> None:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    cast("Any", torch).manual_seed(0)
    config = cast("Any", DeepseekV3Config)(
        **(SMALL | {"num_hidden_layers": 3}), moe_intermediate_size=32, n_routed_experts=8,
        n_shared_experts=1, num_experts_per_tok=2, n_group=4, topk_group=2,
        first_k_dense_replace=1, num_key_value_heads=4, q_lora_rank=24, kv_lora_rank=16,
        qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16, use_cache=False,
    )  # fmt: skip
    model = cast("Any", DeepseekV3ForCausalLM)(config)
    for name, buffer in model.named_buffers():
        if "correction" in name:
            buffer.normal_(std=0.1)
    found = holds(model, tmp_path / "m.onnx", back=dense, dense_experts=dense)
    calls = found.functions
    assert {name: calls[name] for name in ("LatentAttention", "MlaProjection", "Moe", "Route")} == {
        "LatentAttention": 3,
        "MlaProjection": 3,
        "Moe": 2,
        "Route": 2,
    }


def test_bert(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    cast("Any", torch).manual_seed(0)
    model = cast("Any", BertModel)(BertConfig(**SMALL))
    found = holds(model, tmp_path / "m.onnx", mask=True)
    assert found.operators["LayerNormalization"] == 5
    assert found.operators["Attention"] == 2
    assert found.operators["Gelu"] == 2


def test_an_embedding_model_with_trained_weights(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2, from the package that ships it."""
    found = holds(mini_lm(), tmp_path / "m.onnx", mask=True, embed_weights=False)
    assert found.operators["Attention"] == 6
    assert found.beside is not None


def test_a_vision_transformer(tmp_path: Path) -> None:
    import onnxruntime

    vit: Any = vision_transformer()
    path = tmp_path / "m.onnx"
    found = fuseline.export_onnx(
        vit, (), {"pixel_values": torch.zeros(3, 3, 32, 32)}, path=path,
        dynamic_shapes={"pixel_values": {0: BATCH}},
    )  # fmt: skip
    assert found.operators["Conv"] == 1
    session = cast("Any", onnxruntime).InferenceSession(str(path))
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))
        got = from_numpy(session.run(None, {"pixel_values": x.numpy()})[0])
        with torch.no_grad():
            torch.testing.assert_close(got, vit(x)[0], atol=1e-5, rtol=1e-5)


def test_bfloat16_reads_back(tmp_path: Path) -> None:
    """The file keeps its type; no runtime at hand computes with it on a CPU."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    cast("Any", torch).manual_seed(0)
    config = Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=16, use_cache=False)
    model = cast("Any", Qwen3ForCausalLM)(config).to(torch.bfloat16).eval()
    path = tmp_path / "m.onnx"
    example = inputs_of(*EXAMPLE, mask=False)
    dims = {"input_ids": {0: BATCH, 1: LENGTH}}
    fuseline.export_onnx(model, (), example, path=path, dynamic_shapes=dims)
    kinds = {i.data_type for i in cast("Any", onnx).load(path).graph.initializer}
    assert onnx.TensorProto.BFLOAT16 in kinds
    given = inputs_of(2, 17, mask=False)
    with torch.no_grad():
        want = model(**given)[0]
        wide = model.float()(**given)[0]
    (got,) = import_onnx(path).run(given).values()
    ours, eagers = ((t.float() - wide).norm() for t in (got, want))
    assert float(ours) <= 1.5 * float(eagers) + float(wide.norm()) * 2**-8


def test_gpt_oss_with_sinks_windows_and_biases(tmp_path: Path) -> None:
    from transformers import GptOssConfig, GptOssForCausalLM

    cast("Any", torch).manual_seed(0)
    config = cast("Any", GptOssConfig)(
        **SMALL, num_key_value_heads=2, head_dim=16, use_cache=False, num_local_experts=4,
        num_experts_per_tok=2, sliding_window=4,
    )  # fmt: skip
    model = cast("Any", GptOssForCausalLM)(config)
    for parameter in model.parameters():  # biases and sinks begin as 0
        torch.nn.init.normal_(parameter, std=0.05)
    found = holds(model, tmp_path / "m.onnx", back=False)
    assert {"Attention", "Attention_2", "Moe"} <= set(found.functions)


def test_gemma3_with_windows_in_float16(tmp_path: Path) -> None:
    """A mask of causality and window, and norms that round last; at most eager's own error."""
    import onnxruntime
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    cast("Any", torch).manual_seed(0)
    config = cast("Any", Gemma3TextConfig)(
        **SMALL, num_key_value_heads=2, head_dim=16, use_cache=False, sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    model = cast("Any", Gemma3ForCausalLM)(config).half().eval()
    path = tmp_path / "m.onnx"
    example = inputs_of(*EXAMPLE, mask=False)
    dims = {"input_ids": {0: BATCH, 1: LENGTH}}
    fuseline.export_onnx(model, (), example, path=path, dynamic_shapes=dims)
    session = cast("Any", onnxruntime).InferenceSession(str(path))
    given = inputs_of(2, 17, mask=False)
    with torch.no_grad():
        eager = model(**given)[0]
        wide = model.float()(**given)[0]
    got = from_numpy(session.run(None, {"input_ids": given["input_ids"].numpy()})[0])
    ours, eagers = (float((t.float() - wide).norm()) for t in (got, eager))
    assert ours <= 1.5 * eagers + float(wide.norm()) * 2**-11
