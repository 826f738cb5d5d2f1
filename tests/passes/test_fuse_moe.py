"""fuse-moe: experts and the branch beside them, with every rounding kept."""

from __future__ import annotations

import pytest

from fuseline.assemble import packed_operands
from fuseline.ir.ops.experts import Moe
from fuseline.ir.text import parse_func
from fuseline.passes.fuse_moe import FuseMoe
from fuseline.passes.raise_experts import RaiseExperts
from fuseline.passes.raise_route import RaiseRoute
from fuseline.passes.rewrite import Pass
from fuseline.testing import assert_no_rewrite, assert_rewrites, run_passes
from tests.passes.moe_cases import (
    EXPERTS,
    GATED,
    MLP,
    ROUTED,
    SHAPED,
    SHARED,
    SQUARED,
    WIDE_GATE,
    func,
    fuses,
    moe,
)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("first", ["%y, %s", "%s, %y"])
def test_plain_branch(dtype: str, first: str) -> None:
    """deepseek, glm4_moe: in either order, over x before it is flattened."""
    site = fuses(
        [ROUTED, MLP, f"%o = add {first}"],
        [moe(SHARED, ", " + GATED), SHAPED],
        dtype,
    )
    assert site.details["shared"] == "silu MLP of 7"
    assert site.details["experts"] == "2 of 5, 6 wide"
    assert site.details["activation"] == "relu of up"
    assert site.details["router"] == "apart: the indices come from argument i"


def test_weights_of_gate_and_up_are_packed() -> None:
    run = assert_rewrites(
        FuseMoe(),
        func(ROUTED, MLP, "%o = add %y, %s"),
        func(moe(SHARED, ", " + GATED), SHAPED),
    )
    (op,) = [o for o in run.func.ops if isinstance(o, Moe)]
    assert packed_operands(op) == [op.shared_up]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("order", ["%p, %s", "%s, %p"])
def test_branch_weighed_by_a_sigmoid(dtype: str, order: str) -> None:
    """qwen2_moe, qwen3_next."""
    gate = ["%q = linear %x, %g", "%p = sigmoid %q"]
    site = fuses(
        [ROUTED, MLP, *gate, f"%k = mul {order}", "%o = add %y, %k"],
        [
            "%q = linear %x, %g",
            "%e = reshape %q {{shape = (<B*S>, 1)}}",
            moe(f"{SHARED}, %e", ", " + GATED),
            SHAPED,
        ],
        dtype,
    )
    assert site.details["shared"] == "silu MLP of 7, gated"


@pytest.mark.parametrize(
    ("lines", "logits"),
    [
        (["%q = linear %x, %g", "%qf = cast %q {{dtype = f32}}", "%p = sigmoid %qf"], 1),
        ([*WIDE_GATE, "%p = sigmoid %q"], 3),
    ],
    ids=["sigmoid", "logits"],
)
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_branch_weighed_by_a_sigmoid_in_float32(lines: list[str], logits: int, dtype: str) -> None:
    """The sigmoid is rounded to the branch's type, as the op rounds it."""
    site = fuses(
        [
            ROUTED,
            MLP,
            *lines,
            "%pc = cast %p {{dtype = {0}}}",
            "%k = mul %pc, %s",
            "%o = add %y, %k",
        ],
        [
            *lines[:logits],
            "%e = reshape %q {{shape = (<B*S>, 1)}}",
            moe(f"{SHARED}, %e", ", " + GATED),
            SHAPED,
        ],
        dtype,
    )
    assert site.details["shared"] == "silu MLP of 7, gated"


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_branch_without_a_gate(dtype: str) -> None:
    """nemotron_h without latent experts: squared ReLU between two products."""
    mlp = ["%a = linear %x, %su", "%t = relu %a", "%q = mul %t, %t", "%s = linear %q, %sd"]
    site = fuses(
        [ROUTED, *mlp, "%o = add %y, %s"],
        [moe(", [%su], %sd", ", " + SQUARED), SHAPED],
        dtype,
    )
    assert site.details["shared"] == "relu2 MLP of 7"


def test_branch_of_two_products_with_any_activation() -> None:
    """step3p7: gate and up are clamped; no gated_mlp has that."""
    lines = [
        "%c = full {{value = 1.5, dtype = f32}}",
        "%a = linear %rows, %sg",
        "%t = silu %a",
        "%n = minimum %t, %c",
        "%v = linear %rows, %su",
        "%k = mul %n, %v",
        "%s = linear %k, %sd",
    ]
    body = """shared_body = func @body(%gate: {0}[7], %up: {0}[7]) {{
      %s = silu %gate
      %c = full {{value = 1.5, dtype = f32}}
      %n = minimum %s, %c
      %m = mul %n, %up
      return %m
    }}"""
    fuses(
        [EXPERTS, *lines, "%o = add %r, %s"],
        [moe(SHARED, ", " + body, made="%o")],
    )


@pytest.mark.parametrize(
    "average",
    [
        "%c = full {{value = 2.0, dtype = f32}}\n%o = div %n, %c",
        "%c = full {{value = 0.5, dtype = f32}}\n%o = mul %c, %n",
    ],
)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_average(average: str, dtype: str) -> None:
    """cohere2_moe; the sum is rounded, then the half."""
    site = fuses(
        [ROUTED, MLP, "%n = add %y, %s", average],
        [moe(SHARED, f", {GATED}, factor = 0.5"), SHAPED],
        dtype,
    )
    assert site.details["shared"] == "silu MLP of 7, the sum times 0.5"


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("average", [False, True])
def test_factor_of_the_experts(dtype: str, average: bool) -> None:
    """laguna scales what the experts give, not the sum; each result is rounded."""
    scaled = ["%c = full {{value = 2.5, dtype = f32}}", "%n = mul %y, %c"]
    lines = ["%o = add %n, %s"]
    if average:
        lines = ["%k = add %n, %s", "%e = full {{value = 0.3, dtype = f32}}", "%o = mul %k, %e"]
    factors = ", routed_factor = 2.5" + ", factor = 0.3" * average
    site = fuses(
        [ROUTED, MLP, *scaled, *lines], [moe(SHARED, f", {GATED}{factors}"), SHAPED], dtype
    )
    words = "silu MLP of 7, the experts' result times 2.5" + ", the sum times 0.3" * average
    assert site.details["shared"] == words


def test_no_factor_of_a_division_that_rounds_otherwise() -> None:
    third = ["%c = full {{value = 3.0, dtype = f32}}", "%o = div %n, %c"]
    fuses(
        [ROUTED, MLP, "%n = add %y, %s", *third],
        [moe(SHARED, ", " + GATED), "%n = reshape %m {{shape = (B, S, 8)}}", *third],
    )


def test_sum_in_float32_rounded_once() -> None:
    """hy_v3: what torch does with two bfloat16 summands, spelled out."""
    wide = ["%yf = cast %y {{dtype = f32}}", "%sf = cast %s {{dtype = f32}}"]
    fuses(
        [ROUTED, MLP, *wide, "%n = add %yf, %sf", "%o = cast %n {{dtype = bf16}}"],
        [moe(SHARED, ", " + GATED), SHAPED],
        "bf16",
    )


def test_no_branch_at_all() -> None:
    """mixtral: what is added is the residual stream."""
    site = fuses(
        [ROUTED, "%o = add %z, %y"],
        [moe(""), "%n = reshape %m {{shape = (B, S, 8)}}", "%o = add %z, %n"],
    )
    assert "shared" not in site.details


def test_router_is_swallowed() -> None:
    """One site for the block: the route op goes into the replacement."""
    topk, route = "topk %l {{k = 2, axis = 1}}", 'route %l {{k = 2, score = "none"}}'
    experts, fused = (t.replace("%i, %w", "%ri, %rw") for t in (EXPERTS, moe("", made="%r")))
    passes: list[Pass] = [RaiseRoute(), FuseMoe()]
    run = assert_rewrites(
        passes,
        func(f"%rw, %ri = {topk}", experts, result="%r, %ri, %rw"),
        func(f"%rw, %ri = {route}", fused, result="%r, %ri, %rw"),
    )
    (site,) = run.sites()
    assert (site.pattern, site.status) == ("moe", "fused")
    assert site.details["router"] == "top 2 of 5, in f32"
    assert site.details["swallowed"] == "route"


def test_no_fuse_of_expert_weights_that_cannot_be_packed() -> None:
    """Gate and up apart lie side by side in the kernel: they must be parameters of their own."""
    experts = EXPERTS.replace("gated = false, ", "").replace("[%u]", "[%u, %u]")
    experts = experts.replace("%h: {0}[6]", "%h: {0}[6], %k: {0}[6]")
    assert_no_rewrite(
        FuseMoe(), func(experts, result="%r"), "weight comes from argument u, not from a parameter"
    )


def test_a_miss_of_experts_that_were_raised_is_a_miss_of_the_report() -> None:
    """Gate and up apart, and not parameters: found by one pass, and left by the other."""
    sides = [
        f"%{side}w = index %{side}, [%ids] {{axes = (0,)}}\n%{side}p = matmul %{side}w, %rows\n"
        f"%{side}h = reshape %{side}p {{shape = (<2*T>, 6)}}"
        for side in "gu"
    ]
    newline = "\n"
    text = f"""func @f(%x: f32[T, 8], %l: f32[T, 5], %g: f32[5, 6, 8], %u: f32[5, 6, 8],
        %d: f32[5, 8, 6]) {{
      %s, %i = topk %l {{k = 2, axis = 1}}
      %ids = reshape %i {{shape = (<2*T>,)}}
      %x1 = reshape %x {{shape = (T, 1, 8)}}
      %x2 = expand %x1 {{shape = (T, 2, 8)}}
      %rows = reshape %x2 {{shape = (<2*T>, 8, 1)}}
      {newline.join(sides)}
      %a = silu %gh
      %m = mul %a, %uh
      %inner = reshape %m {{shape = (<2*T>, 6, 1)}}
      %dg = index %d, [%ids] {{axes = (0,)}}
      %q = matmul %dg, %inner
      %o = reshape %q {{shape = (<2*T>, 8)}}
      %s1 = reshape %s {{shape = (<2*T>, 1)}}
      %ow = mul %o, %s1
      %grid = reshape %ow {{shape = (T, 2, 8)}}
      %y = sum %grid {{axes = (1,)}}
      return %y
    }}"""
    run = run_passes([RaiseExperts(), FuseMoe()], parse_func(text))
    (site,) = run.sites()
    assert (site.pattern, site.status) == ("moe", "missed")
    assert site.reason == "weight comes from argument g, not from a parameter"
