"""The operators of onnxruntime, against onnxruntime."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fuseline.errors import LoadError
from fuseline.frontend.onnx import import_onnx
from fuseline.onnx_run import compile_onnx
from tests.onnx.models import assert_as_onnxruntime, by_onnxruntime, model, node

MS = "com.microsoft"


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.mark.parametrize("op", ["Gelu", "FastGelu", "QuickGelu"])
def test_activations(op: str) -> None:
    x = {"x": seeded(3, 17)}
    assert_as_onnxruntime(model([node(op, "x", "y", MS)], x, ["y"]), x, atol=2e-5)


@pytest.mark.parametrize("op", ["BiasGelu", "FastGelu"])
def test_activations_of_a_sum(op: str) -> None:
    x = {"x": seeded(3, 17), "b": seeded(17)}
    assert_as_onnxruntime(model([node(op, "x b", "y", MS)], x, ["y"]), x, atol=2e-5)


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_fused_matmul(trans_a: int, trans_b: int) -> None:
    a, b = seeded(2, 5, 7), seeded(2, 7, 3)
    x = {"a": a.mT.contiguous() if trans_a else a, "b": b.mT.contiguous() if trans_b else b}
    made = node("FusedMatMul", "a b", "y", MS, transA=trans_a, transB=trans_b, alpha=0.37)
    assert_as_onnxruntime(model([made], x, ["y"]), x, atol=1e-5)


def packed(values: Tensor, bits: int) -> Tensor:
    """Integers of the last dim, so many in a byte, the first in the low bits."""
    each = 8 // bits
    parts = values.reshape(*values.shape[:-1], -1, each).to(torch.int64)
    shifts = torch.arange(each) * bits
    return (parts << shifts).sum(-1).to(torch.uint8)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("columns", [64, 80])
def test_matmul_nbits(bits: int, zero_points: bool, columns: int) -> None:
    rows, block = 7, 32
    blocks = -(-columns // block)
    g = torch.Generator().manual_seed(bits)
    values = torch.randint(0, 2**bits, (rows, blocks, block), generator=g)
    weights = {"w": packed(values, bits), "s": seeded(rows, blocks).abs() + 0.1}
    if zero_points:
        width = -(-blocks * bits // 8) * 8 // bits
        points = torch.randint(0, 2**bits, (rows, width), generator=g)
        weights["z"] = packed(points, bits)
    made = node(
        "MatMulNBits", "x w s z" if zero_points else "x w s", "y", MS,
        K=columns, N=rows, bits=bits, block_size=block,
    )  # fmt: skip
    x = {"x": seeded(2, 3, columns)}
    assert_as_onnxruntime(model([made], x, ["y"], weights), x, atol=2e-3, rtol=1e-4)


def test_no_matmul_nbits_with_groups_of_their_own() -> None:
    weights = {"w": torch.zeros(4, 1, 16, dtype=torch.uint8), "s": torch.ones(4, 1)}
    weights["g"] = torch.arange(32, dtype=torch.int32)
    made = node("MatMulNBits", "x w s - g", "y", MS, K=32, N=4, bits=4, block_size=32)
    with pytest.raises(LoadError, match="FL0821 .*MatMulNBits.*g_idx"):
        import_onnx(model([made], {"x": seeded(1, 32)}, ["y"], weights))


def test_simplified_layer_norm() -> None:
    x = {"x": seeded(2, 3, 80)}
    made = node("SimplifiedLayerNormalization", "x w", "y", axis=-1, epsilon=1e-6)
    assert_as_onnxruntime(model([made], x, ["y"], {"w": seeded(80)}), x)


@pytest.mark.parametrize("biased", [False, True])
def test_skip_simplified_layer_norm(biased: bool) -> None:
    x = {"x": seeded(2, 3, 80), "s": seeded(2, 3, 80, seed=1)}
    weights = {"w": seeded(80)} | ({"b": seeded(80, seed=2)} if biased else {})
    names = "x s w b" if biased else "x s w"
    made = node("SkipSimplifiedLayerNormalization", names, "y - - sum", MS, epsilon=1e-6)
    assert_as_onnxruntime(model([made], x, ["y", "sum"], weights), x, compiled=True)


def test_skip_layer_norm() -> None:
    x = {"x": seeded(2, 3, 80), "s": seeded(2, 3, 80, seed=1)}
    weights = {"g": seeded(80), "b": seeded(80, seed=2), "c": seeded(80, seed=3)}
    made = node("SkipLayerNormalization", "x s g b c", "y - - sum", MS, epsilon=1e-6)
    assert_as_onnxruntime(model([made], x, ["y", "sum"], weights), x)


def tables(rows: int, half: int) -> dict[str, Tensor]:
    angles = torch.outer(torch.arange(rows), 1 / 100 ** (torch.arange(half) / half))
    return {"cos": angles.cos(), "sin": angles.sin()}


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("rank", [3, 4])
def test_rotary_embedding(interleaved: int, rank: int) -> None:
    x = seeded(2, 4, 5, 16) if rank == 4 else seeded(2, 5, 64)
    inputs = {"x": x, "p": torch.tensor([[0, 1, 2, 3, 4], [7, 2, 9, 1, 0]])}
    attributes = {"num_heads": 4} if rank == 3 else {}
    made = node("RotaryEmbedding", "x p cos sin", "y", MS, interleaved=interleaved, **attributes)
    assert_as_onnxruntime(model([made], inputs, ["y"], tables(12, 8)), inputs)


def test_rotary_embedding_from_one_position() -> None:
    inputs = {"x": seeded(2, 4, 5, 16), "p": torch.tensor([3])}
    made = node("RotaryEmbedding", "x p cos sin", "y", MS)
    assert_as_onnxruntime(model([made], inputs, ["y"], tables(12, 8)), inputs)


def grouped(
    batch: int, length: int, past: int, have: list[int], *, packed_inputs: bool = False
) -> dict[str, Tensor]:
    """Inputs of grouped attention: 4 heads over 2, of 16; ``have``: tokens of each batch."""
    inputs: dict[str, Tensor] = {}
    if packed_inputs:
        inputs["q"] = seeded(batch, length, 128)
    else:
        inputs |= {"q": seeded(batch, length, 64), "k": seeded(batch, length, 32, seed=1)}
        inputs["v"] = seeded(batch, length, 32, seed=2)
    inputs |= {"pk": seeded(batch, 2, past, 16, seed=3), "pv": seeded(batch, 2, past, 16, seed=4)}
    inputs["n"] = torch.tensor([h - 1 for h in have], dtype=torch.int32)
    inputs["t"] = torch.tensor(past + length, dtype=torch.int32)
    return inputs


@pytest.mark.parametrize("packed_inputs", [False, True])
@pytest.mark.parametrize(
    ("length", "past", "attributes"),
    [
        (5, 0, {}),
        (1, 6, {}),
        (1, 6, {"local_window_size": 3}),
        (5, 0, {"local_window_size": 2}),
        (1, 6, {"softcap": 2.0, "scale": 0.3}),
    ],
)
def test_group_query_attention(
    length: int, past: int, attributes: dict[str, Any], packed_inputs: bool
) -> None:
    have = [past + length] * 2
    inputs = grouped(2, length, past, have, packed_inputs=packed_inputs)
    names = "q - - pk pv n t cos sin" if packed_inputs else "q k v pk pv n t cos sin"
    made = node(
        "GroupQueryAttention", names, "y k1 v1", MS, num_heads=4, kv_num_heads=2, do_rotary=1,
        **attributes,
    )  # fmt: skip
    m = model([made], inputs, ["y", "k1", "v1"], tables(32, 8))
    assert_as_onnxruntime(m, inputs, atol=5e-6, compiled=not attributes)


def test_group_query_attention_of_batches_with_other_pasts() -> None:
    """The new key of each batch stands behind those that the batch has."""
    inputs = grouped(2, 1, 6, [7, 4])
    made = node(
        "GroupQueryAttention", "q k v pk pv n t", "y k1 v1", MS, num_heads=4, kv_num_heads=2
    )
    assert_as_onnxruntime(model([made], inputs, ["y"]), inputs, atol=5e-6, compiled=True)


@pytest.mark.parametrize("mask", ["none", "keys", "lengths", "bias"])
def test_multi_head_attention(mask: str) -> None:
    inputs = {"q": seeded(2, 5, 64), "k": seeded(2, 7, 64), "v": seeded(2, 7, 64, seed=1)}
    names = "q k v b"
    if mask == "keys":
        inputs["m"] = torch.tensor([[1] * 7, [1, 1, 1, 1, 0, 0, 0]], dtype=torch.int32)
        names += " m"
    elif mask == "lengths":
        inputs["m"] = torch.tensor([7, 4], dtype=torch.int32)
        names += " m"
    elif mask == "bias":
        inputs["m"] = seeded(1, 4, 5, 7)
        names += " - m"
    made = node("MultiHeadAttention", names, "y", MS, num_heads=4)
    m = model([made], inputs, ["y"], {"b": seeded(192)})
    assert_as_onnxruntime(m, inputs, atol=5e-6, compiled=mask == "keys")


def test_multi_head_attention_with_a_past() -> None:
    inputs = {"q": seeded(2, 1, 64), "k": seeded(2, 1, 64), "v": seeded(2, 1, 64, seed=1)}
    inputs |= {"pk": seeded(2, 4, 6, 16), "pv": seeded(2, 4, 6, 16, seed=1)}
    made = node("MultiHeadAttention", "q k v - - - pk pv", "y k1 v1", MS, num_heads=4)
    assert_as_onnxruntime(model([made], inputs, ["y", "k1", "v1"]), inputs, atol=5e-6)


def test_multi_head_attention_of_packed_operands() -> None:
    """Which onnxruntime has for GPUs only: they say the same as three operands."""
    packed_qkv = seeded(2, 5, 4, 3, 16)
    one = node("MultiHeadAttention", "q", "y", MS, num_heads=4)
    three = node("MultiHeadAttention", "q k v", "y", MS, num_heads=4)
    parts = {name: x.reshape(2, 5, 64) for name, x in zip("qkv", packed_qkv.unbind(3), strict=True)}
    found = import_onnx(model([one], {"q": packed_qkv}, ["y"])).run({"q": packed_qkv})
    wanted = by_onnxruntime(model([three], parts, ["y"]), parts)
    torch.testing.assert_close(found["y"], wanted["y"], atol=5e-6, rtol=2e-5)


def test_group_query_attention_with_sizes_that_a_run_gives() -> None:
    """One program for a prompt and for decode steps, as language models are exported."""
    shapes = {name: ("batch", "seq", n) for name, n in (("q", 64), ("k", 32), ("v", 32))}
    shapes |= dict.fromkeys(("pk", "pv"), ("batch", 2, "past", 16))
    shapes |= {"n": ("batch",), "t": ()}
    made = node(
        "GroupQueryAttention", "q k v pk pv n t cos sin", "y k1 v1", MS,
        num_heads=4, kv_num_heads=2, do_rotary=1,
    )  # fmt: skip
    inputs = grouped(2, 1, 6, [7, 7])
    m = model([made], inputs, ["y", "k1", "v1"], tables(32, 8), shapes=shapes)
    program = import_onnx(m)
    compiled = compile_onnx(program)
    for batch, length, past in ((2, 1, 6), (1, 5, 0), (3, 1, 11)):
        inputs = grouped(batch, length, past, [past + length] * batch)
        wanted = by_onnxruntime(m, inputs)
        for found in (program.run(inputs), compiled(inputs)):
            for name, want in wanted.items():
                torch.testing.assert_close(found[name], want, atol=5e-6, rtol=2e-5)
