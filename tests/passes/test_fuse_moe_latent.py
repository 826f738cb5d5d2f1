"""fuse-moe: experts between two projections, and the branch beside all of them."""

from __future__ import annotations

import pytest

from fuseline.ir.ops.experts import Moe
from fuseline.ir.text import parse_func
from fuseline.passes.fuse_gated_mlp import FuseGatedMlp
from fuseline.passes.fuse_linear_add import FuseLinearAdd
from fuseline.passes.fuse_moe import FuseMoe
from fuseline.passes.merge_linears import MergeLinears
from fuseline.passes.raise_route import RaiseRoute
from fuseline.testing import run_passes
from tests.passes.moe_cases import EXPERTS, MLP, alone, func, fuses, moe

LATENT = ["%lat = linear %rows, %fc", EXPERTS.replace("%rows", "%lat")]
BACK = "%k = linear %r, %bc"
WIDE = "%y = reshape %k {{shape = (B, S, 8)}}"


def latent(*lines: str, made: str = "%m") -> list[str]:
    """The lines after the pass: the moe between its projections, and what is beside."""
    return [LATENT[0], *lines, moe("", made=made).replace("%rows", "%lat")]


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("first", ["%y, %s", "%s, %y"])
def test_gated_branch_beside_latent_experts(dtype: str, first: str) -> None:
    """The branch reads the x before the projection and is added behind the one back."""
    site = fuses(
        [*LATENT, BACK, WIDE, MLP, f"%n = add {first}"],
        [
            *latent("%s = gated_mlp %rows, %sg, %su, %sd"),
            "%k = linear %m, %bc",
            "%t = add %s, %k",
            "%n = reshape %t {{shape = (B, S, 8)}}",
        ],
        dtype,
        result="%n",
    )
    assert site.details["latent"] == "8 to 8 and back to 8"
    assert site.details["shared"] == (
        "silu MLP of 7 on the x before the projection, the result added behind the one back"
    )


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_branch_without_a_gate_beside_latent_experts(dtype: str) -> None:
    """nemotron_h; with biases, which the branch may have here."""
    mlp = ["%a = linear {}, %su, %b", "%t = relu %a", "%q = mul %t, %t", "%s = linear %q, %sd"]
    site = fuses(
        [*LATENT, BACK, WIDE, *(t.format("%x") for t in mlp), "%o = add %y, %s"],
        [
            *latent(*(t.format("%rows") for t in mlp)),
            "%k = linear %m, %bc",
            "%n = add %s, %k",
            "%o = reshape %n {{shape = (B, S, 8)}}",
        ],
        dtype,
    )
    assert site.details["shared"].startswith("relu2 MLP of 7 on the x before the projection")


def test_weighed_branch_and_average_beside_latent_experts() -> None:
    gate = ["%q = linear {0}, %g", "%p = sigmoid %q", "%e = mul %p, %s"]
    half = ["%c = full {{value = 0.5, dtype = bf16}}", "%o = mul %n, %c"]
    site = fuses(
        [*LATENT, BACK, WIDE, MLP, *(t.format("%x") for t in gate), "%n = add %y, %e", *half],
        [
            *latent(
                *(t.format("%rows") for t in gate[:2]),
                "%s = gated_mlp %rows, %sg, %su, %sd",
                gate[2],
            ),
            "%k = linear %m, %bc",
            "%t = add %e, %k",
            "%n = reshape %t {{shape = (B, S, 8)}}",
            *half,
        ],
        "bf16",
    )
    assert site.details["shared"].startswith("silu MLP of 7, gated on the x before")
    assert site.details["shared"].endswith(", the sum times 0.5")


def test_dims_of_one_that_move_behind_latent_experts() -> None:
    """What einsum leaves of a product with the weights of all experts."""
    views = [
        "%r1 = reshape %r {{shape = (<B*S>, 1, 8)}}",
        "%r2 = permute %r1 {{dims = (0, 2, 1)}}",
        "%r3 = reshape %r2 {{shape = (<B*S>, 8)}}",
        BACK.replace("%r", "%r3"),
    ]
    site = fuses(
        [*LATENT, *views, MLP.replace("%x", "%rows"), "%o = add %k, %s"],
        [
            *latent("%s = gated_mlp %rows, %sg, %su, %sd"),
            BACK.replace("%r", "%m"),
            "%o = add %s, %k",
        ],
    )
    assert site.details["latent"] == "8 to 8 and back to 8"


def test_branch_with_views_inside_keeps_its_own_x() -> None:
    """Beside latent experts: the views name the extents of the x that the branch reads."""
    mlp = [
        "%a = linear %x, %su",
        "%f = reshape %a {{shape = (<B*S>, 7)}}",
        "%t = relu %f",
        "%s = linear %t, %sd",
    ]
    fuses(
        [*LATENT, BACK, *mlp, "%o = add %k, %s"],
        [*latent(*mlp), "%k = linear %m, %bc", "%o = add %s, %k"],
    )


def test_latent_experts_are_one_site_with_what_is_merged() -> None:
    """Router, projection and branch read one x: their products merge, and count as parts."""
    mlp = ["%a = linear %x, %su", "%t = relu %a", "%q = mul %t, %t", "%s = linear %q, %sd"]
    router = ["%lo = linear %rows, %rt", "%rw, %ri = topk %lo {{k = 2, axis = 1}}"]
    experts = LATENT[1].replace("%i, %w", "%ri, %rw")
    text = func(*router, LATENT[0], experts, BACK, WIDE, *mlp, "%o = add %y, %s")
    passes = [RaiseRoute(), FuseMoe(), MergeLinears(), FuseLinearAdd()]
    run = run_passes(passes, parse_func(text))
    names = [op.name for op in run.func if op.name not in ("reshape", "relu", "mul")]
    assert names == ["merged_linear", "route", "linear", "moe", "linear_add"]
    ((site, op),) = run.located()
    assert (site.pattern, site.status) == ("moe", "fused")
    assert isinstance(op, Moe)
    assert site.details["swallowed"] == "route; merged_linear"


def test_gated_branch_beside_latent_experts_is_swallowed() -> None:
    text = func(*LATENT, BACK, WIDE, MLP, "%o = add %y, %s")
    run = run_passes([FuseMoe(), FuseGatedMlp(), MergeLinears()], parse_func(text))
    (site,) = run.sites()
    assert (site.pattern, site.details["swallowed"]) == ("moe", "gated_mlp")


def between(before: list[str], reason: str, result: str = "%o") -> None:
    """The experts are fused between their projections, and the branch stays, for a reason."""
    site = alone(*LATENT, BACK, WIDE, *before, result=result)
    assert site.details["latent"] == "8 to 8 and back to 8"
    assert site.details["shared"] == f"apart: {reason}"


def test_no_branch_beside_latent_experts() -> None:
    other = "%s = gated_mlp %z, %sg, %su, %sd"
    between([other, "%o = add %y, %s"], "reads z, the experts x")
    between([MLP, "%o = add %y, %s"], "the result of gated_mlp has other readers", "%o, %s")
    mlp = ["%a = linear %x, %su", "%t = relu %a", "%s = linear %t, %sd", "%o = add %y, %s"]
    between(mlp, "the result of relu inside of it is read by the return", "%o, %t")
    norm = ["%n = rms_norm %s", "%o = add %y, %n"]
    between([MLP, *norm], "added as the norm of its result")
    norm = ["%n = rms_norm %y", "%o = add %n, %s"]
    between([MLP, *norm], "added to the norm of the experts' result")
