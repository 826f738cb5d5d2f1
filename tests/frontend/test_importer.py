"""Each family of ops: imported, and evaluated with eager's very values, at sizes not traced."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fuseline.frontend.builder import IMPORTERS
from fuseline.frontend.captured import InputKind
from fuseline.frontend.importer import import_captured
from fuseline.ir.core import Func, Origin
from fuseline.ir.types import BufferType, IntType
from tests.frontend.helpers import calls, capture, mark_dynamic, one, ops, randn, record

Program = Callable[[Any, Any], Any]

POINTWISE: dict[str, Program] = {
    "arithmetic": lambda x, y: (x + y) * 2 - y / 3 + (1 - x),
    "numbers": lambda x, y: 1e-6 + x * 0.1 - 7,
    "powers": lambda x, y: x**2 + x.abs() ** 0.5 + x.pow(3) + (x.abs() + 1) ** -0.5 + (x + 9) ** -1,
    "other powers": lambda x, y: x.abs() ** 1.7 + 2.0**y,
    "square": lambda x, y: x.square() + x.pow(1),
    "roots": lambda x, y: torch.rsqrt(x.abs() + 1) + x.abs().sqrt() + (x + 9).reciprocal(),
    "exponentials": lambda x, y: x.exp() + x.abs().log() + x.abs().log1p(),
    "trigonometry": lambda x, y: x.sin() + x.cos() + x.tanh() + x.erf(),
    "activations": lambda x, y: F.silu(x) + F.gelu(x) + F.gelu(y, approximate="tanh") + x.sigmoid(),
    "more activations": lambda x, y: F.softplus(x) + x.relu() + F.relu(y),
    "rounding": lambda x, y: x.floor() + y.ceil() + x.sign() + (-y),
    "extremes": lambda x, y: torch.maximum(x, y) - torch.minimum(x, y),
    "clamps": lambda x, y: x.clamp(-0.5, 0.5) + y.clamp(min=0.1) + x.clamp_max(0.2),
    "comparisons": lambda x, y: (x < y) | (x >= 0.5) & (y != x) ^ (x == y) | (x <= y) & (x > 0),
    "logic": lambda x, y: ~(x > 0) | torch.logical_and(x > 0, y > 0) | torch.logical_not(x),
    "where": lambda x, y: torch.where(x > y, x, 0.0) + torch.where(x > 0, y, x),
    "masked fill": lambda x, y: x.masked_fill(y > 0, float("-inf")).masked_fill(y < 0, 2.0),
    "casts": lambda x, y: x.double().float() + y.to(torch.int64) + x.half().to(x.dtype),
    "integers": lambda x, y: (x * 9).long() // 2 + (y * 9).int() % 3 + 1,
    "integers and floats": lambda x, y: (x * 9).long() * 0.5 + (y > 0) * 2,
    "type of another": lambda x, y: x.double().type_as(y) + y,
}

VIEWS: dict[str, Program] = {
    "reshapes": lambda x, y: x.view(-1, 2, 3).flatten(1).unflatten(1, (3, 2)) + 1,
    "permutations": lambda x, y: x.t().contiguous() + x.transpose(-1, 0) + x.permute(1, 0),
    "new dims": lambda x, y: x[None, :, None].squeeze(0).squeeze(1) + x.unsqueeze(0),
    "slices": lambda x, y: x[1:, :-1] + x[:-1, 1:] + x[..., 0:-1][1:],
    "steps": lambda x, y: x[:, ::2] + x[:, 1::2],
    "rows": lambda x, y: x[0] + x[-1] + x[1:2, None, 3],
    "concatenation": lambda x, y: torch.cat([x, y, x[:1]], 0) + torch.cat([y, x, y[-1:]]),
    "stacking": lambda x, y: torch.stack([x, y], -1) + torch.stack([y, x], 2),
    "splits": lambda x, y: sum(x.split(2, -1)) + sum(y.chunk(3, -1)),
    "unequal splits": lambda x, y: x.split([1, 5], 1)[1] + y.split([5, 1], 1)[0],
    "unbinding": lambda x, y: sum(x.unbind(1)) + 0,
    "expansion": lambda x, y: x[:, None].expand(-1, 3, -1) + y.expand(2, -1, -1)[0][:, None],
    "repetition": lambda x, y: x.repeat(2, 3) + y.tile(2, 3),
    "repeated heads": lambda x, y: x[:, None, :, None].expand(-1, 2, -1, 3).reshape(-1, 12, 3) * 2,
    "interleaved repeats": lambda x, y: x.repeat_interleave(2, 1) + y.repeat_interleave(2, -1),
    "padding": lambda x, y: F.pad(x, (1, 2, 0, 1), value=3.0) + F.pad(y, (2, 1, 1, 0)),
    "cropping": lambda x, y: F.pad(x, (-1, 0)) + F.pad(y, (0, -1)),
    "rolling": lambda x, y: x.roll(-1, 0) + y.roll(2, 1),
    "rotation": lambda x, y: torch.cat((-x[..., 3:], x[..., :3]), -1) * y,
    "moved dims": lambda x, y: x[None].movedim(0, 1) + y[None].movedim(0, 1),
}

CREATION: dict[str, Program] = {
    "filled": lambda x, y: x + torch.zeros_like(x) + torch.ones(6) + torch.full((1,), 2.5),
    "new": lambda x, y: x + x.new_ones(6) + x.new_zeros((x.shape[0], 1)) + x.new_full((), 3),
    "ranges": lambda x, y: x + torch.arange(6) + torch.arange(x.shape[0])[:, None],
    "stepped ranges": lambda x, y: x + torch.arange(1, 13, 2) + torch.arange(0.0, 6.0),
    "triangles": lambda x, y: x.tril() + y.triu(1) + torch.ones(6, 6).tril(-1)[:1],
    "sizes as values": lambda x, y: x * x.shape[0] + torch.full((6,), x.shape[0]),
}

REDUCTIONS: dict[str, Program] = {
    "sums": lambda x, y: x.sum(-1) + x.sum() + (x > 0).sum(1) + x.sum(-1, dtype=torch.float64),
    "means": lambda x, y: x.mean(-1, keepdim=True) + y.pow(2).mean(-1, keepdim=True) + x.mean(),
    "extremes": lambda x, y: x.amax(-1) + y.amin(1) + x.max() + y.min(),
    "largest and where": lambda x, y: x.max(-1).values + y.max(1, keepdim=True).indices[:, 0],
    "tests": lambda x, y: (x > 9).any() | (x > -9).all(-1) | (y > 0).any(1),
    "argmax": lambda x, y: x.argmax(-1) + y.argmax(-1, keepdim=True)[:, 0] + x.argmax(),
    "running sums": lambda x, y: (
        x.cumsum(-1) + (y > 0).cumsum(0) + (y > 0).cumsum(1, dtype=torch.int32)
    ),
    "softmax": lambda x, y: x.softmax(-1) + F.softmax(y, dim=-1, dtype=torch.float32),
    "top k": lambda x, y: x.topk(3, -1).values + y.topk(3, sorted=False).indices.sort(-1)[0],
    "sorting": lambda x, y: x.sort(-1, descending=True)[0] + y.sort(dim=1, stable=True).indices,
}

PRODUCTS: dict[str, Program] = {
    "linear": lambda x, y: F.linear(x, x.new_ones(4, 6), x.new_ones(4)) + F.linear(y, y[:4]),
    "products": lambda x, y: x @ y.t() + torch.mm(x, y.t()) + torch.matmul(x[None], y.t())[0],
    "batches": lambda x, y: torch.bmm(x[None], y.t()[None]) + torch.einsum("id,jd->ij", x, y),
    "addmm": lambda x, y: torch.addmm(x.new_ones(5), x, y[:5].t()),
    "attention": lambda x, y: F.scaled_dot_product_attention(
        x[None, None], y[None, None], x[None, None]
    ),
    "masked attention": lambda x, y: F.scaled_dot_product_attention(
        x[None, None], y[None, None], x[None, None], attn_mask=x @ y.t() > -1, scale=0.3
    ),
    "causal attention": lambda x, y: F.scaled_dot_product_attention(
        x.view(-1, 2, 3)[None], y.view(-1, 2, 3)[None], y.view(-1, 2, 3)[None], is_causal=True
    ),
    "rms norm": lambda x, y: F.rms_norm(x, (6,), y[0], 1e-5) + F.rms_norm(y, (6,)),
}

INDEXING: dict[str, Program] = {
    "embedding": lambda x, y: F.embedding((y[:, :2] > 0).long(), x),
    "lists": lambda x, y: x[(y[:, 0] > 0).long()] + x[:, (y[0] > 0).long()],
    "grids": lambda x, y: x[(y[:, :1] > 0).long(), torch.arange(6)[None]],
    "index select": lambda x, y: x.index_select(1, torch.tensor([4, 0, 4])),
    "gather": lambda x, y: x.gather(1, (y > 0).long()),
    "scatter": lambda x, y: x.scatter(1, y.argsort(-1), y) + x.scatter(1, x[:, :1].long() * 0, 3.0),
    "index copy": lambda x, y: x.index_copy(0, torch.tensor([1, 0]), y[:2]),
    "index put": lambda x, y: x.index_put((torch.tensor([1, 0]),), y[:2], accumulate=True),
    "slice scatter": lambda x, y: x.slice_scatter(y[:, 1:3], 1, 2, 4).select_scatter(y[0], 0, -1),
}

FAMILIES = {
    f"{family}: {name}": program
    for family, programs in {
        "pointwise": POINTWISE,
        "view": VIEWS,
        "create": CREATION,
        "reduce": REDUCTIONS,
        "matmul": PRODUCTS,
        "index": INDEXING,
    }.items()
    for name, program in programs.items()
}

KEPT = {"index: scatter": ["aten.argsort.default"]}
"""Programs with a call that the IR has no op for, on purpose."""

POWERS = {"pointwise: powers", "pointwise: other powers"}
"""Torch rounds a power by how it was called, on some processors: a number or a tensor of one."""


@pytest.mark.parametrize("name", FAMILIES)
def test_imported_programs_have_eagers_values(name: str) -> None:
    program = FAMILIES[name]
    compiled, recording = record(program, dynamic=None)
    for rows, dtype in ((5, torch.float32), (9, torch.float32), (7, torch.bfloat16)):
        x, y = randn(rows, 6, dtype=dtype, seed=1), randn(rows, 6, dtype=dtype, seed=2)
        mark_dynamic(x, y)
        with torch.no_grad():
            expected, found = program(x, y), compiled(x, y)
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        rounding = torch.finfo(dtype).eps if name in POWERS else 0.0
        torch.testing.assert_close(found, expected, rtol=rounding, atol=0.0)
    assert len(recording.funcs) == 2, "one func for each element type, and for both sizes"
    for func in recording.funcs:
        assert set(calls(func)) <= set(KEPT.get(name, [])), calls(func)
        assert recording.captured[0].road != "aot"


def imported(program: Callable[..., Any], *args: Any) -> Func:
    return import_captured(capture(program, *args))


def test_layer_norm_is_close_to_eager() -> None:
    """Its reference is spelled out, so that the order of additions differs from torch's kernel."""

    def program(x: Tensor, w: Tensor) -> Tensor:
        return F.layer_norm(x, (6,), w, w, 1e-5)

    compiled, recording = record(program)
    x, w = randn(7, 6), randn(6)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, w), program(x, w))
    assert ops(recording.funcs[0]) == ["layer_norm"]


def test_squares_have_one_spelling() -> None:
    x = randn(6, 6)
    assert (
        ops(imported(one(lambda x: x.pow(2)), x))
        == ops(imported(one(lambda x: x * x), x))
        == ["mul"]
    )


def test_no_op_for_what_changes_nothing() -> None:
    func = imported(
        one(lambda x: x.float().contiguous().clone().detach()[:, :].view(6, 6) + 1), randn(6, 6)
    )
    assert ops(func) == ["add"]


def test_a_written_input_is_a_buffer() -> None:
    def program(cache: Tensor, x: Tensor) -> Tensor:
        cache[:, 1:3] = x
        return cache * 2

    func = imported(program, randn(4, 5), randn(4, 2))
    (buffer,) = [a for a in func.args if isinstance(a.type, BufferType)]
    assert buffer.origin == Origin("input", "cache")
    assert ops(func) == ["read", "slice_scatter", "mul", "write"]


def test_arguments_are_the_flat_inputs_in_order() -> None:
    captured = capture(one(lambda x: x.sum(-1)), randn(4, 5))
    func = import_captured(captured)
    kinds = [isinstance(a.type, IntType) for a in func.args]
    assert kinds == [i.kind is InputKind.SYMBOL for i in captured.inputs]
    assert [str(r) for r in func.symbols.values()] == ["2..", "2.."]


def test_ops_carry_their_place() -> None:
    func = imported(one(lambda x: F.silu(x) * 2), randn(4, 5))
    assert all(
        op.loc is not None and op.loc.source.startswith("test_importer.py") for op in func.ops
    )


def test_unknown_ops_are_kept_whole() -> None:
    program = one(lambda x: torch.i0(x) + torch.logcumsumexp(x, 0))
    compiled, recording = record(program)
    with torch.no_grad():
        found = compiled(randn(6, 6))
    assert torch.equal(found, program(randn(6, 6)))
    assert calls(recording.funcs[0]) == ["aten.i0.default", "aten.logcumsumexp.default"]


def test_kept_calls_carry_constants_and_lists() -> None:
    def program(x: Tensor) -> Tensor:
        wide, tall = torch.meshgrid(x[0], x[:, 0], indexing="ij")
        ends = torch.linspace(0, 1, 6, dtype=torch.float64)
        return ends + torch.cdist(wide, tall)

    compiled, recording = record(program)
    x = randn(6, 6)
    with torch.no_grad():
        assert torch.equal(compiled(x), program(x))
    assert "aten.linspace.default" in calls(recording.funcs[0])


def test_a_type_that_the_ir_lacks_leaves_the_program_to_aten() -> None:
    program = one(lambda x: torch.view_as_real(vars(torch)["fft"].fft(x)).sum(-1))
    compiled, recording = record(program)
    x = randn(4, 6)
    with torch.no_grad():
        assert torch.equal(compiled(x), program(x))
    assert not recording.funcs
    (reason,) = [v for k, v in compiled.report().stats.items() if k.startswith("plain ATen")]
    assert "complex" in str(reason)


def test_no_importer_is_registered_for_an_overload_that_torch_lacks() -> None:
    families = {"Tensor_Scalar", "Scalar_Tensor", "Scalar", "Tensor", "default"}
    missing: list[str] = []
    importlib.import_module("transformers.integrations.moe")  # registers an op of its own
    for name in IMPORTERS:
        namespace, packet, overload = name.split(".")
        found = getattr(getattr(torch.ops, namespace), packet, None)
        if found is None or (overload not in found.overloads() and overload not in families):
            missing.append(name)
    assert not missing


def test_a_copy_to_another_device_is_kept_whole() -> None:
    """Where the program names the device that its operand is on, only the type changes."""
    program = one(lambda x: x.to(device="meta", dtype=torch.float64))
    assert ops(import_captured(capture(program, randn(3, 4).to("meta")))) == ["cast"]
    assert calls(import_captured(capture(program, randn(3, 4)))) == ["aten._to_copy.default"]
