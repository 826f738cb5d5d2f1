"""raise-route: routers in every spelling of the field become one op with the same bits."""

from __future__ import annotations

import pytest

from fuseline.passes.raise_route import RaiseRoute
from fuseline.testing import assert_no_rewrite, assert_rewrites

EXPERTS = """%y = experts %x, {indices}, {weights}, [%u], [%d] {{experts = 6, gated = false,
  dtype = f32, body = func @body(%h: f32[B, 5]) {{
    %a = relu %h
    return %a
  }}}}
return %y"""

HEAD = """func @f(%x: f32[T, 8], %l: {0}[T, 6], %u: f32[6, 5, 8], %d: f32[6, 8, 5],
  %c: {1}[6] = param "c") {{"""


def func(
    *lines: str,
    dtype: str = "f32",
    bias: str = "f32",
    indices: str = "%i",
    weights: str = "%w",
) -> str:
    """The text of experts whose indices and weights are made by some lines."""
    experts = EXPERTS.format(indices=indices, weights=weights)
    return "\n".join([HEAD.format(dtype, bias), *lines, experts, "}"])


def raises(lines: list[str], route: str, *after: str, dtype: str = "f32", bias: str = "f32") -> str:
    """The lines become ``%w, %i = route`` and what stays after it; gives the site's router."""
    weights = "%z" if after else "%w"
    run = assert_rewrites(
        RaiseRoute(),
        func(*lines, dtype=dtype, bias=bias, weights="%z" if after else "%w"),
        func(f"%w, %i = route {route}", *after, dtype=dtype, bias=bias, weights=weights),
    )
    (site,) = run.sites()
    assert (site.pattern, site.status) == ("route", "fused")
    assert ("weights" in site.details) == bool(after)
    return site.details["router"]


SUM = [
    "%t = sum %g {axes = (1,), keepdim = true}",
    "%e = full {value = 1e-20, dtype = f32}",
    "%n = add %t, %e",
    "%w = div %g, %n",
]


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("ordered", ["true", "false"])
def test_softmax_in_float32_and_top_k(dtype: str, ordered: str) -> None:
    """qwen3_moe, jamba: the logits are widened where they are narrow, the weights rounded back."""
    order = f"ordered = {ordered}"
    lines = ["%s = softmax %f {axis = 1}", f"%w, %i = topk %s {{k = 2, axis = 1, {order}}}"]
    if dtype == "f32":
        lines = [line.replace("%f", "%l") for line in lines]
        end, rounded = "", "f32"
    else:
        lines = ["%f = cast %l {dtype = f32}", lines[0], lines[1].replace("%w", "%v")]
        lines.append(f"%w = cast %v {{dtype = {dtype}}}")
        end, rounded = f", weight_dtype = {dtype}", dtype
    assert rounded == dtype
    raises(lines, f"%l {{k = 2, {order}{end}}}", dtype=dtype)


def test_weights_divided_by_their_sum() -> None:
    """mixtral, olmoe."""
    found = raises(
        [
            "%s = softmax %l {axis = 1}",
            "%g, %i = topk %s {k = 3, axis = 1}",
            "%t = sum %g {axes = (1,), keepdim = true}",
            "%w = div %g, %t",
        ],
        '%l {k = 3, normalize = "sum"}',
    )
    assert found == "top 3 of 6, softmax, divided by their sum, in f32"


@pytest.mark.parametrize("score", ["sigmoid", "sqrt_softplus"])
@pytest.mark.parametrize("bias", ["f32", "bf16"])
def test_correction_for_the_selection_only(score: str, bias: str) -> None:
    """hy_v3, deepseek_v4: the sum and an epsilon, then a factor; a narrow bias is widened."""
    wide = bias == "f32"
    lines = ["%s = sigmoid %l"] if score == "sigmoid" else ["%p = softplus %l", "%s = sqrt %p"]
    lines += [] if wide else ["%b = cast %c {dtype = f32}"]
    lines += [
        f"%k = add %s, {'%c' if wide else '%b'}",
        "%v, %i = topk %k {k = 2, axis = 1, ordered = false}",
        "%g = gather %s, %i {axis = 1}",
        *SUM[:-1],
        "%q = div %g, %n",
        "%r = full {value = 2.5, dtype = f32}",
        "%w = mul %q, %r",
    ]
    found = raises(
        lines,
        f'%l, %c {{k = 2, score = "{score}", ordered = false, normalize = "sum", eps = 1e-20,'
        " scale = 2.5}",
        bias=bias,
    )
    assert found == f"top 2 of 6, {score}, corrected, divided by their sum, times 2.5, in f32"


def test_narrow_scores_with_a_wide_correction() -> None:
    """lfm2_moe: sigmoid in the model's dtype, the bias in float32."""
    raises(
        [
            "%s = sigmoid %l",
            "%f = cast %s {dtype = f32}",
            "%k = add %f, %c",
            "%v, %i = topk %k {k = 2, axis = 1}",
            "%w = gather %s, %i {axis = 1}",
        ],
        '%l, %c {k = 2, score = "sigmoid", dtype = bf16, weight_dtype = bf16}',
        dtype="bf16",
    )


def test_correction_of_one_more_dim_and_a_lower_bound() -> None:
    """ernie4_5_moe keeps its bias as ``[1, E]`` and clamps the sum."""
    head = HEAD.replace("%c: {1}[6]", "%c: {1}[1, 6]").format("f32", "f32")
    lines = [
        "%s = softmax %l {axis = 1}",
        "%b = reshape %c {shape = (6,)}",
        "%k = add %s, %b",
        "%v, %i = topk %k {k = 2, axis = 1}",
        "%g = gather %s, %i {axis = 1}",
        "%t = sum %g {axes = (1,), keepdim = true}",
        "%e = full {value = 0.5, dtype = f32}",
        "%n = maximum %t, %e",
        "%w = div %g, %n",
    ]
    end = EXPERTS.format(indices="%i", weights="%w")
    route = [
        lines[1],
        '%w, %i = route %l, %b {k = 2, normalize = "sum", floor = 0.5}',
    ]
    assert_rewrites(
        RaiseRoute(), "\n".join([head, *lines, end, "}"]), "\n".join([head, *route, end, "}"])
    )


def test_softmax_of_the_chosen_logits() -> None:
    """gpt_oss, in the model's dtype."""
    raises(
        ["%v, %i = topk %l {k = 3, axis = 1}", "%w = softmax %v {axis = 1}"],
        '%l {k = 3, score = "none", dtype = bf16, normalize = "softmax", weight_dtype = bf16}',
        dtype="bf16",
    )


@pytest.mark.parametrize("first", [True, False])
def test_softmax_in_float32_of_the_chosen_logits(first: bool) -> None:
    """granitemoe widens all logits, cohere2_moe those that are chosen: the same comparisons."""
    widen = ["%f = cast %l {dtype = f32}", "%v, %i = topk %f {k = 2, axis = 1}"]
    later = ["%o, %i = topk %l {k = 2, axis = 1}", "%v = cast %o {dtype = f32}"]
    raises(
        [*(widen if first else later), "%s = softmax %v {axis = 1}", "%w = cast %s {dtype = bf16}"],
        '%l {k = 2, score = "none", normalize = "softmax", weight_dtype = bf16}',
        dtype="bf16",
    )


@pytest.mark.parametrize("first", [True, False])
def test_sigmoid_in_float32_of_the_chosen_logits(first: bool) -> None:
    """llama4 compares logits in the model's dtype and takes the sigmoid of those it chose."""
    widen = ["%f = cast %l {dtype = f32}", "%v, %i = topk %f {k = 2, axis = 1}"]
    later = ["%o, %i = topk %l {k = 2, axis = 1}", "%v = cast %o {dtype = f32}"]
    router = raises(
        [*(widen if first else later), "%s = sigmoid %v", "%w = cast %s {dtype = bf16}"],
        '%l {k = 2, score = "none", normalize = "sigmoid", weight_dtype = bf16}',
        dtype="bf16",
    )
    assert router == "top 2 of 6, sigmoid of the chosen, in f32"


def test_sigmoid_of_logits_that_round_to_one_score() -> None:
    """The logits decide: large ones differ, and their sigmoids are all 1."""
    import torch

    logits = torch.tensor([[20.0, 30.0, 25.0, 1.0, 50.0, 50.0], [-1.0, -200.0, 0.0, 3.0, 3.0, 2.0]])
    text = func("%v, %i = topk %l {k = 3, axis = 1}", "%w = sigmoid %v")
    route = '%w, %i = route %l {k = 3, score = "none", normalize = "sigmoid"}'
    assert_rewrites(RaiseRoute(), text, func(route), sizes={"T": 2}, given={"l": logits})


def grouped(
    groups: int, top: int, score: str, fill: str, compared: str, *, ordered: str = "false"
) -> list[str]:
    """The lines that put ``fill`` in place of what lies outside of the best groups, as %m."""
    each = 6 // groups
    best = {
        "top2": [
            "%bv, %bi = topk %by {k = 2, axis = 2}",
            "%gs = sum %bv {axes = (2,)}",
        ],
        "max": ["%gs = amax %by {axes = (2,)}"],
    }
    return [
        f"%by = reshape {compared} {{shape = (T, {groups}, {each})}}",
        *best[score],
        f"%gv, %gi = topk %gs {{k = {top}, axis = 1, ordered = {ordered}}}",
        f"%zero = full {{value = 0.0, shape = (T, {groups}), dtype = f32}}",
        "%one = full {value = 1.0, dtype = f32}",
        "%marks = scatter %zero, %gi, %one {axis = 1}",
        f"%m3 = reshape %marks {{shape = (T, {groups}, 1)}}",
        f"%me = expand %m3 {{shape = (T, {groups}, {each})}}",
        "%m2 = reshape %me {shape = (T, 6)}",
        "%mb = cast %m2 {dtype = bool}",
        "%no = logical_not %mb",
        f"%fill = full {{value = {fill}, dtype = f32}}",
        f"%m = where %no, %fill, {compared}",
    ]


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("negated", [False, True])
def test_best_groups_as_a_dim_of_their_own(outside: bool, negated: bool) -> None:
    """``masked_fill`` before the groups are flattened; marks of the best, or of all others."""
    marks = f"full {{value = {str(outside).lower()}, shape = (T, 3), dtype = bool}}"
    keeps = outside == negated
    mask = "%m3" if not negated else "%mn"
    found = raises(
        [
            "%s = sigmoid %l",
            "%k = add %s, %c",
            "%by = reshape %k {shape = (T, 3, 2)}",
            "%bv, %bi = topk %by {k = 2, axis = 2}",
            "%gs = sum %bv {axes = (2,)}",
            "%gv, %gi = topk %gs {k = 2, axis = 1}",
            f"%every = {marks}",
            f"%mark = full {{value = {str(not outside).lower()}, dtype = bool}}",
            "%marks = scatter %every, %gi, %mark {axis = 1}",
            "%m3 = reshape %marks {shape = (T, 3, 1)}",
            *(["%mn = logical_not %m3"] if negated else []),
            "%fill = full {value = -inf, dtype = f32}",
            f"%mb = where {mask}, {'%by, %fill' if keeps else '%fill, %by'}",
            "%m = reshape %mb {shape = (T, 6)}",
            "%v, %i = topk %m {k = 3, axis = 1, ordered = false}",
            "%g = gather %s, %i {axis = 1}",
            *SUM,
        ],
        '%l, %c {k = 3, score = "sigmoid", groups = 3, top_groups = 2, group_score = "top2",'
        ' ordered = false, normalize = "sum", eps = 1e-20}',
    )
    assert found.startswith("top 3 of 6, in 2 of 3 groups, sigmoid, corrected")


@pytest.mark.parametrize("fill", ["-inf", "0.0"])
@pytest.mark.parametrize("ordered", ["true", "false"])
def test_best_groups_by_their_two_best(fill: str, ordered: str) -> None:
    """deepseek_v3, glm4_moe; beam sorts."""
    group_fill = "" if fill == "-inf" else ", group_fill = 0.0"
    found = raises(
        [
            "%s = sigmoid %l",
            "%k = add %s, %c",
            *grouped(3, 2, "top2", fill, "%k", ordered=ordered),
            "%v, %i = topk %m {k = 3, axis = 1, ordered = false}",
            "%g = gather %s, %i {axis = 1}",
            *SUM,
        ],
        '%l, %c {k = 3, score = "sigmoid", groups = 3, top_groups = 2, group_score = "top2",'
        f' ordered = false, normalize = "sum", eps = 1e-20{group_fill}}}',
    )
    assert found.startswith("top 3 of 6, in 2 of 3 groups, sigmoid, corrected")


def test_best_groups_by_their_largest_score() -> None:
    """deepseek_v2: no correction, and the weights are the values compared, the zeros included."""
    raises(
        [
            "%s = softmax %l {axis = 1}",
            *grouped(2, 1, "max", "0.0", "%s"),
            "%g, %i = topk %m {k = 4, axis = 1, ordered = false}",
            "%r = full {value = 1.5, dtype = f32}",
            "%w = mul %g, %r",
        ],
        "%l {k = 4, groups = 2, group_fill = 0.0, ordered = false, selected = true, scale = 1.5}",
    )


@pytest.mark.parametrize(("groups", "top"), [(1, 1), (3, 3)])
def test_all_groups_are_no_limit(groups: int, top: int) -> None:
    """nemotron_h: one group, spelled out."""
    raises(
        [
            "%s = sigmoid %l",
            "%k = add %s, %c",
            *grouped(groups, top, "top2", "-inf", "%k"),
            "%v, %i = topk %m {k = 2, axis = 1, ordered = false}",
            "%w = gather %s, %i {axis = 1}",
        ],
        '%l, %c {k = 2, score = "sigmoid", ordered = false}',
    )


def test_what_follows_stays() -> None:
    raises(
        ["%v, %i = topk %l {k = 2, axis = 1}", "%z = tanh %v"],
        '%l {k = 2, score = "none"}',
        "%z = tanh %w",
    )


def test_a_factor_before_the_sum_stays() -> None:
    """Only a sum and then a factor are the router's; another order of roundings is not."""
    tail = ["%t = sum %p {axes = (1,), keepdim = true}", "%z = div %p, %t"]
    raises(
        [
            "%s = sigmoid %l",
            "%v, %i = topk %s {k = 2, axis = 1}",
            "%r = full {value = 1.7, dtype = f32}",
            "%p = mul %v, %r",
            *tail,
        ],
        '%l {k = 2, score = "sigmoid", scale = 1.7}',
        *[line.replace("%p", "%w") for line in tail],
    )


def test_a_vector_that_joins_the_logits_stays_in_front() -> None:
    """A router with a bias of its own: the sum is what top-k gives, not a correction."""
    lines = [
        "%b = add %l, %c",
        "%v, %i = topk %b {k = 2, axis = 1}",
        "%w = softmax %v {axis = 1}",
    ]
    assert_rewrites(
        RaiseRoute(),
        func(*lines),
        func(lines[0], '%w, %i = route %b {k = 2, score = "none", normalize = "softmax"}'),
    )


def test_weights_of_something_else_stay() -> None:
    """inkling: chosen by corrected scores, weighed by the logits."""
    lines = ["%w = gather %l, %i {axis = 1}"]
    run = assert_rewrites(
        RaiseRoute(),
        func("%s = sigmoid %l", "%v, %i = topk %s {k = 2, axis = 1}", *lines),
        func('%z, %i = route %l {k = 2, score = "sigmoid"}', *lines),
    )
    (site,) = run.sites()
    assert site.details["weights"].startswith("apart: ")


def test_other_readers_of_a_step_end_the_chain() -> None:
    head = HEAD.format("f32", "f32")
    lines = [
        "%s = softmax %l {axis = 1}",
        "%g, %i = topk %s {k = 2, axis = 1}",
    ]
    tail = ["%t = sum %g {axes = (1,), keepdim = true}", "%w = div %g, %t", "%o = exp %g"]
    end = EXPERTS.format(indices="%i", weights="%w").replace("return %y", "return %y, %o, %s")
    assert_rewrites(
        RaiseRoute(),
        "\n".join([head, *lines, *tail, end, "}"]),
        "\n".join([head, lines[0], "%g, %i = route %l {k = 2}", *tail, end, "}"]),
    )


def test_equal_scores_and_infinite_logits() -> None:
    """The same calls of torch: ties, infinities and NaN come out alike."""
    import torch

    logits = torch.tensor([[1.0] * 6, [float("-inf")] * 6, [0, 2, 2, float("inf"), 0, 0]])
    logits = torch.cat([logits, torch.full((1, 6), float("nan"))])
    lines = [
        "%s = sigmoid %l",
        "%k = add %s, %c",
        *grouped(3, 2, "top2", "-inf", "%k"),
        "%v, %i = topk %m {k = 3, axis = 1, ordered = false}",
        "%g = gather %s, %i {axis = 1}",
        *SUM,
    ]
    text = func(*lines)
    route = (
        '%w, %i = route %l, %c {k = 3, score = "sigmoid", groups = 3, top_groups = 2,'
        ' group_score = "top2", ordered = false, normalize = "sum", eps = 1e-20}'
    )
    zeros = torch.zeros(6)
    assert_rewrites(
        RaiseRoute(), text, func(route), sizes={"T": 4}, given={"l": logits, "c": zeros}
    )


def miss(lines: list[str], reason: str) -> None:
    assert_no_rewrite(RaiseRoute(), func(*lines), reason)


def test_no_route_of_indices_from_a_table() -> None:
    """deepseek_v4's first layers look their experts up."""
    miss(
        [
            "%i = full {value = 2, shape = (T, 2), dtype = i64}",
            "%w = gather %l, %i {axis = 1}",
        ],
        "the indices come from full, not from one top-k",
    )


def test_no_route_of_repeated_maxima() -> None:
    """phimoe: each expert is the largest of what an earlier choice left."""
    miss(
        [
            "%one = argmax %l {axis = 1, keepdim = true}",
            "%inf = full {value = -inf, dtype = f32}",
            "%m = scatter %l, %one, %inf {axis = 1}",
            "%two = argmax %m {axis = 1, keepdim = true}",
            "%i = concat [%one, %two] {axis = 1}",
            "%w = gather %l, %i {axis = 1}",
        ],
        "the indices come from concat, not from one top-k",
    )


def test_no_route_of_the_smallest() -> None:
    miss(["%w, %i = topk %l {k = 2, axis = 1, largest = false}"], "top-k takes the smallest")


def test_no_groups_of_another_value() -> None:
    """The mask is made of other scores than those it is put on: it stays, in front."""
    lines = [
        "%s = sigmoid %l",
        "%n = neg %s",
        *[
            line.replace("where %no, %fill, %n", "where %no, %fill, %s")
            for line in grouped(3, 2, "max", "0.0", "%n")
        ],
    ]
    assert_rewrites(
        RaiseRoute(),
        func(*lines, "%w, %i = topk %m {k = 2, axis = 1}"),
        func(*lines, '%w, %i = route %m {k = 2, score = "none"}'),
    )


def test_no_groups_of_marks_in_another_order() -> None:
    """Marks that alternate from expert to expert are not one a group."""
    lines = grouped(3, 2, "max", "0.0", "%l")
    swapped = {
        "%m3": "%m3 = reshape %marks {shape = (T, 1, 3)}",
        "%me": "%me = expand %m3 {shape = (T, 2, 3)}",
    }
    lines = [swapped.get(line.split(" = ")[0], line) for line in lines]
    assert_rewrites(
        RaiseRoute(),
        func(*lines, "%w, %i = topk %m {k = 2, axis = 1}"),
        func(*lines, '%w, %i = route %m {k = 2, score = "none"}'),
    )
