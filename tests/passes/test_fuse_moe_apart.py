"""fuse-moe: branches that stay beside the experts, and why."""

from __future__ import annotations

import pytest

from tests.passes.moe_cases import MLP, ROUTED, WIDE_GATE, alone, apart


def test_no_branch_of_another_x() -> None:
    other = "%s = gated_mlp %z, %sg, %su, %sd"
    apart([ROUTED, other, "%o = add %y, %s"], "reads z, the experts x")
    mixed = ["%a = linear %x, %sg", "%v = linear %z, %su", "%t = tanh %a", "%k = mul %t, %v"]
    apart([ROUTED, *mixed, "%s = linear %k, %sd", "%o = add %y, %s"], "reads z, the experts x")


def test_no_branch_behind_norms() -> None:
    """gemma4: a dense MLP in parallel, both results normalised before they are added."""
    norms = ["%yn = rms_norm %y", "%sn = rms_norm %s"]
    site = apart(
        [ROUTED, "%s = gated_mlp %z, %sg, %su, %sd", *norms, "%o = add %sn, %yn"],
        "added to the norm of the experts' result",
    )
    assert "latent" not in site.details
    apart([ROUTED, MLP, norms[1], "%o = add %sn, %y"], "added as the norm of its result")


def test_no_branch_over_another_norm() -> None:
    """gemma4: experts and dense MLP each norm the residual stream, and their results."""
    lines = [
        "%xn = rms_norm %z",
        "%flat = reshape %xn {{shape = (<B*S>, 8)}}",
        ROUTED.replace("%rows", "%flat"),
        "%sn = rms_norm %z {{eps = 0.5}}",
        "%s = gated_mlp %sn, %sg, %su, %sd",
        "%yn = rms_norm %y",
        "%on = rms_norm %s",
        "%o = add %on, %yn",
    ]
    assert alone(*lines).details["shared"] == (
        "apart: added to the norm of the experts' result; added as the norm of its result; "
        "reads another norm of z than the experts"
    )


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["%n = mul %s, %c", "%o = add %y, %n"], "added as its result times 0.5"),
        (["%n = mul %z, %s", "%o = add %y, %n"], "added as its result times z"),
        (["%n = div %s, %c", "%o = add %y, %n"], "added as its result divided by 0.5"),
        (["%n = tanh %s", "%o = add %y, %n"], "added as tanh of its result"),
        (["%n = tanh %y", "%o = add %n, %s"], "added to tanh of the experts' result"),
        (["%n = add %z, %s", "%o = add %y, %n"], "added as its result plus z"),
        (["%n = add %z, %y", "%o = add %n, %s"], "added to the sum of the experts' result and z"),
    ],
)
def test_no_branch_behind_another_op(lines: list[str], reason: str) -> None:
    site = apart([ROUTED, MLP, "%c = full {{value = 0.5, dtype = f32}}", *lines], reason)
    assert site.details["shared"] == f"apart: {reason}"


def test_no_branch_whose_weight_is_not_rounded() -> None:
    lines = [
        *WIDE_GATE,
        "%p = sigmoid %q",
        "%sf = cast %s {{dtype = f32}}",
        "%k = mul %p, %sf",
        "%n = cast %k {{dtype = bf16}}",
        "%o = add %y, %n",
    ]
    reason = "added as its result in f32; added as its result times the result of sigmoid"
    apart([ROUTED, MLP, *lines], reason, "bf16")


def test_no_branch_behind_a_rounding_of_the_experts() -> None:
    """Experts that give float32, rounded before the sum."""
    lines = [
        ROUTED.replace("dtype = {0}", "dtype = f32"),
        MLP,
        "%n = cast %y {{dtype = bf16}}",
        "%o = add %n, %s",
    ]
    assert alone(*lines, dtype="bf16").details["shared"] == (
        "apart: added to the experts' result in bf16; of bf16, the experts take bf16 and give f32"
    )


def test_no_branch_of_batched_products() -> None:
    """inkling: several shared experts, each weighed between its products, and summed."""
    lines = [
        "%b1 = reshape %rows {{shape = (1, <B*S>, 8)}}",
        "%w1 = reshape %sg {{shape = (1, 8, 7)}}",
        "%w2 = reshape %sd {{shape = (1, 7, 8)}}",
        "%h = matmul %b1, %w1",
        "%t = silu %h",
        "%q = matmul %t, %w2",
        "%n = sum %q {{axes = (0,)}}",
        "%s = reshape %n {{shape = (B, S, 8)}}",
    ]
    apart([ROUTED, *lines, "%o = add %y, %s"], "made by matmul: no MLP that the op has")


def test_no_branch_in_the_residual_stream() -> None:
    """What earlier layers added to it is not the experts' neighbour."""
    stream = ["%s = gated_mlp %z, %sg, %su, %sd", "%res = add %z, %s"]
    assert "shared" not in alone(*stream, ROUTED, "%o = add %res, %y").details


def test_no_second_factor_of_the_experts() -> None:
    scaled = ["%c = full {{value = 2.5, dtype = f32}}", "%n = mul %y, %c", "%k = mul %c, %n"]
    apart([ROUTED, MLP, *scaled, "%o = add %k, %s"], "added to the experts' result times 2.5")


def test_no_factor_of_what_is_rounded_before() -> None:
    """The product is wider than the experts' result."""
    lines = [
        "%c = full {{value = 2.5, dtype = f32}}",
        "%k = cast %y {{dtype = f32}}",
        "%n = mul %k, %c",
        "%v = cast %n {{dtype = bf16}}",
    ]
    apart([ROUTED, MLP, *lines, "%o = add %v, %s"], "the experts' result times 2.5", "bf16")


def test_no_branch_with_biases() -> None:
    biased = "%s = gated_mlp %x, %sg, %su, %sd, %b, %b"
    apart([ROUTED, biased, "%o = add %y, %s"], "its products have biases")


def test_no_branch_that_is_read_elsewhere() -> None:
    site = alone(ROUTED, MLP, "%o = add %y, %s", result="%o, %s")
    assert site.details["shared"] == "apart: the result of gated_mlp has other readers"


def test_no_branch_whose_inside_is_read_elsewhere() -> None:
    mlp = ["%a = linear %x, %su", "%t = relu %a", "%q = mul %t, %t", "%s = linear %q, %sd"]
    lines = [ROUTED, *mlp, "%o = add %y, %s"]
    apart(lines, "inside of it is read by the return", result="%o, %t")


def test_no_branch_whose_weights_cannot_be_packed() -> None:
    twice = "%s = gated_mlp %x, %sg, %sg, %sd"
    apart([ROUTED, twice, "%o = add %y, %s"], "gate sg is read 2 times")


def test_no_branch_of_another_type() -> None:
    """Experts that give float32 beside a narrow branch: the sum is another one."""
    experts = ROUTED.replace("dtype = {0}", "dtype = f32")
    wide = ["%sf = cast %s {{dtype = f32}}", "%o = add %y, %sf"]
    apart([experts, MLP, *wide], "of bf16, the experts take bf16 and give f32", "bf16")
