"""fuse-moe: experts and the branch beside them, with every rounding kept."""

from __future__ import annotations

import pytest

from fuseline.assemble import packed_operands
from fuseline.ir.ops.experts import Moe
from fuseline.ir.text import parse_func
from fuseline.passes.fuse_gated_mlp import FuseGatedMlp
from fuseline.passes.fuse_linear_add import FuseLinearAdd
from fuseline.passes.fuse_moe import FuseMoe
from fuseline.passes.merge_linears import MergeLinears
from fuseline.passes.raise_experts import RaiseExperts
from fuseline.passes.raise_route import RaiseRoute
from fuseline.passes.rewrite import Pass
from fuseline.report import Site
from fuseline.testing import assert_no_rewrite, assert_rewrites, run_passes

HEAD = """func @f(%x: {0}[B, S, 8], %i: i64[B*S, 2], %w: {0}[B*S, 2], %u: {0}[5, 6, 8],
  %d: {0}[5, 8, 6], %sg: {0}[7, 8] = param "sg", %su: {0}[7, 8] = param "su",
  %sd: {0}[8, 7] = param "sd", %g: {0}[1, 8] = param "g", %b: {0}[7] = param "b",
  %z: {0}[B, S, 8], %l: {0}[B*S, 5], %fc: {0}[8, 8] = param "fc",
  %bc: {0}[8, 8] = param "bc", %rt: {0}[5, 8] = param "rt") {{
    %rows = reshape %x {{shape = (<B*S>, 8)}}"""
BODY = """body = func @body(%h: {0}[6]) {{
      %a = relu %h
      return %a
    }}"""
GATED = """shared_body = func @body(%gate: {0}[7], %up: {0}[7]) {{
      %s = silu %gate
      %m = mul %s, %up
      return %m
    }}"""
SQUARED = """shared_body = func @body(%up: {0}[7]) {{
      %r = relu %up
      %q = mul %r, %r
      return %q
    }}"""
EXPERTS = (
    """%r = experts %rows, %i, %w, [%u], [%d] {{
    experts = 5, gated = false, dtype = {0}, """
    + BODY
    + "}}"
)
ROUTED = EXPERTS + "\n%y = reshape %r {{shape = (B, S, 8)}}"
MLP = "%s = gated_mlp %x, %sg, %su, %sd"


def func(*lines: str, dtype: str = "f32", result: str = "%o") -> str:
    """The text of a func of some lines."""
    return "\n".join([HEAD, *lines, f"return {result}", "}}"]).format(dtype)


def moe(operands: str, attributes: str = "", *, made: str = "%m") -> str:
    """The text of the fused op."""
    given = "%rows, %i, %w, [%u], [%d], _, _"
    fixed = "experts = 5, gated = false, dtype = {0}, " + BODY
    return f"{made} = moe {given}{operands} {{{{{fixed}{attributes}}}}}"


def fuses(before: list[str], after: list[str], dtype: str = "f32", *, result: str = "%o") -> Site:
    """The pass makes of the lines before the lines after, bit for bit; gives the site."""
    texts = (func(*lines, dtype=dtype, result=result) for lines in (before, after))
    run = assert_rewrites(FuseMoe(), *texts)
    (site,) = run.sites()
    assert (site.pattern, site.status) == ("moe", "fused")
    return site


SHARED = ", [%sg, %su], %sd"
SHAPED = "%o = reshape %m {{shape = (B, S, 8)}}"


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


WIDE_GATE = [
    "%xf = cast %x {{dtype = f32}}",
    "%gf = cast %g {{dtype = f32}}",
    "%q = linear %xf, %gf",
]


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


def apart(before: list[str], reason: str, dtype: str = "f32") -> Site:
    """The routed part is fused alone; the branch stays, and the site says why."""
    text = func(*before, dtype=dtype)
    run = assert_rewrites(
        FuseMoe(),
        text,
        text.replace("experts %rows", "moe %rows"),
    )
    (site,) = (s for s in run.sites() if s.pattern == "moe")
    assert site.status == "fused"
    assert site.details["shared"].startswith("apart: ")
    assert reason in site.details["shared"]
    return site


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
    text = func(*lines)
    run = assert_rewrites(FuseMoe(), text, text.replace("experts %flat", "moe %flat"))
    (site,) = (s for s in run.sites() if s.pattern == "moe")
    assert site.details["shared"] == (
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
    text = func(*lines, dtype="bf16")
    run = assert_rewrites(FuseMoe(), text, text.replace("experts %rows", "moe %rows"))
    (site,) = run.sites()
    assert site.details["shared"] == (
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
    text = func(*stream, ROUTED, "%o = add %res, %y")
    run = assert_rewrites(FuseMoe(), text, text.replace("experts %rows", "moe %rows"))
    (site,) = run.sites()
    assert "shared" not in site.details


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
    text = func(*LATENT, BACK, WIDE, *before, result=result)
    run = assert_rewrites(FuseMoe(), text, text.replace("experts %lat", "moe %lat"))
    (site,) = (s for s in run.sites() if s.pattern == "moe")
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


def test_no_branch_with_biases() -> None:
    biased = "%s = gated_mlp %x, %sg, %su, %sd, %b, %b"
    apart([ROUTED, biased, "%o = add %y, %s"], "its products have biases")


def test_no_branch_that_is_read_elsewhere() -> None:
    before = func(ROUTED, MLP, "%o = add %y, %s", result="%o, %s")
    run = assert_rewrites(FuseMoe(), before, before.replace("experts %rows", "moe %rows"))
    assert run.sites()[0].details["shared"] == "apart: the result of gated_mlp has other readers"


def test_no_branch_whose_inside_is_read_elsewhere() -> None:
    mlp = ["%a = linear %x, %su", "%t = relu %a", "%q = mul %t, %t", "%s = linear %q, %sd"]
    before = func(ROUTED, *mlp, "%o = add %y, %s", result="%o, %t")
    run = assert_rewrites(FuseMoe(), before, before.replace("experts %rows", "moe %rows"))
    assert "inside of it is read by the return" in run.sites()[0].details["shared"]


def test_no_branch_whose_weights_cannot_be_packed() -> None:
    twice = "%s = gated_mlp %x, %sg, %sg, %sd"
    apart([ROUTED, twice, "%o = add %y, %s"], "gate sg is read 2 times")


def test_no_branch_of_another_type() -> None:
    """Experts that give float32 beside a narrow branch: the sum is another one."""
    experts = ROUTED.replace("dtype = {0}", "dtype = f32")
    wide = ["%sf = cast %s {{dtype = f32}}", "%o = add %y, %sf"]
    text = func(experts, MLP, *wide, dtype="bf16")
    run = assert_rewrites(FuseMoe(), text, text.replace("experts %rows", "moe %rows"))
    assert "of bf16, the experts take bf16 and give f32" in run.sites()[0].details["shared"]


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
