"""Experts that compute every token become those that were chosen, where the others give 0."""

from __future__ import annotations

import pytest

from fuseline.passes.raise_experts import RaiseExperts
from fuseline.testing import assert_no_rewrite, assert_rewrites

ARGUMENTS = "%x: {0}[T, 8], %l: {0}[T, 5], %w: {0}[5, 8, 24], %d: {0}[5, 12, 8], %b: {0}[5, 24]"
TOPK = "%s, %i = topk %l {k = 2, axis = 1}"
GATE = [
    TOPK,
    "%base = full {value = -inf, shape = (T, 5), dtype = {0}}",
    "%logits = scatter %base, %i, %s {axis = 1}",
    "%gate = sigmoid %logits",
]
COPIES = [
    "%x1 = reshape %x {shape = (1, T, 1, 8)}",
    "%x2 = expand %x1 {shape = (5, T, 1, 8)}",
    "%x3 = reshape %x2 {shape = (<5*T>, 8)}",
    "%gt = permute %gate {dims = (1, 0)}",
    "%g1 = reshape %gt {shape = (<5*T>, 1)}",
    "%xw = mul %x3, %g1",
    "%rows = reshape %xw {shape = (5, T, 8)}",
]
UP = ["%h = matmul %rows, %w"]
INNER = [
    "%g = slice %h {axis = 2, stop = 12}",
    "%u = slice %h {axis = 2, start = 12, stop = 24}",
    "%a = silu %g",
    "%m = mul %u, %a",
    "%o = matmul %m, %d",
]
SUM = ["%y = sum %o {axes = (0,)}"]
DENSE = [*GATE, *COPIES, *UP, *INNER, *SUM]
BODY = "func @body(%gate: {0}[12], %up: {0}[12]) { %a = silu %gate %m = mul %up, %a return %m }"


def func(dtype: str, *lines: str, arguments: str = ARGUMENTS) -> str:
    """The text of a func that returns %y."""
    text = "\n".join(lines)
    return f"func @f({arguments}) {{ {text}\n return %y }}".replace("{0}", dtype)


def raised(dtype: str, weights: str, bias: str = "", weigh: str = "output") -> str:
    """The op that takes the place of all."""
    given = ", ".join(
        [
            f"experts = 5, transposed = true, body = {BODY.replace('{0}', dtype)}",
            f'weigh = "{weigh}", combine = "experts", dtype = {dtype}',
        ]
    )
    return f"%y = experts %x, %i, {weights}, [%w], [%d]{bias} {{{given}}}"


def without(lines: list[str], *names: str) -> list[str]:
    """Lines without those that define some values."""
    return [line for line in lines if line.split(" =")[0] not in names]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_weights_on_what_goes_in(dtype: str) -> None:
    """llama4: what was not chosen goes in as 0, and the activation keeps it 0."""
    assert_rewrites(
        RaiseExperts(),
        func(dtype, *DENSE),
        func(dtype, TOPK, "%p = sigmoid %s", raised(dtype, "%p", weigh="input")),
        exact=False,
    )


@pytest.mark.parametrize("layout", ["expert first", "token first"])
def test_weights_on_what_comes_out(layout: str) -> None:
    """Biases do no harm there: what comes out is multiplied by 0."""
    lines = [
        TOPK,
        "%base = full {value = 0.0, shape = (T, 5), dtype = {0}}",
        "%gate = scatter %base, %i, %s {axis = 1}",
        "%x1 = reshape %x {shape = (1, T, 8)}",
        "%rows = expand %x1 {shape = (5, T, 8)}",
        "%p = matmul %rows, %w",
        "%b1 = reshape %b {shape = (5, 1, 24)}",
        "%h = add %p, %b1",
        *INNER,
    ]
    if layout == "expert first":
        lines += [
            "%gt = permute %gate {dims = (1, 0)}",
            "%g1 = reshape %gt {shape = (5, T, 1)}",
            "%ow = mul %o, %g1",
            "%y = sum %ow {axes = (0,)}",
        ]
    else:
        lines += [
            "%ot = permute %o {dims = (1, 0, 2)}",
            "%g1 = reshape %gate {shape = (T, 5, 1)}",
            "%ow = mul %ot, %g1",
            "%y = sum %ow {axes = (1,)}",
        ]
    after = func("f32", TOPK, raised("f32", "%s", bias=", %b"))
    assert_rewrites(RaiseExperts(), func("f32", *lines), after, exact=False)


def test_weights_from_one_hot_vectors() -> None:
    """``(one_hot(indices) * weights[..., None]).sum(1)`` is 0 where nothing was chosen."""
    gate = [
        TOPK,
        "%i1 = reshape %i {shape = (T, 2, 1)}",
        "%each = iota {length = 5}",
        "%hit = eq %i1, %each",
        "%hot = cast %hit {dtype = {0}}",
        "%s1 = reshape %s {shape = (T, 2, 1)}",
        "%hs = mul %hot, %s1",
        "%gate = sum %hs {axes = (1,)}",
    ]
    lines = [*gate, *COPIES, *UP, *INNER, *SUM]
    after = func("f32", TOPK, raised("f32", "%s", weigh="input"))
    assert_rewrites(RaiseExperts(), func("f32", *lines), after, exact=False)


def miss(lines: list[str], reason: str | None, arguments: str = ARGUMENTS) -> None:
    """The lines stay as they are, for a reason."""
    assert_no_rewrite(RaiseExperts(), func("f32", *lines, arguments=arguments), reason)


def test_no_experts_of_which_all_count() -> None:
    some = [line.replace("-inf", "-3.0") for line in DENSE]
    miss(some, "experts that were not chosen have the weight 0.0474")
    soft = [TOPK, "%gate = softmax %l {axis = 1}", *DENSE[len(GATE) :]]
    miss(soft, "which does not choose some of them")


def test_no_experts_whose_activation_makes_something_of_0() -> None:
    lines = [line.replace("silu", "cos").replace("mul %u, %a", "add %u, %a") for line in DENSE]
    miss(lines, "the activation does not map 0 to 0")


def test_no_experts_with_a_bias_where_nothing_goes_in() -> None:
    bias = ["%p = matmul %rows, %w", "%b1 = reshape %b {shape = (5, 1, 24)}", "%h = add %p, %b1"]
    miss([*GATE, *COPIES, *bias, *INNER, *SUM], "experts with a bias give more than 0")


def test_no_experts_that_may_be_chosen_twice() -> None:
    """A scatter counts one of them, the op both."""
    lines = ["%i = concat [%j, %k] {axis = 1}", "%s = slice %l {axis = 1, stop = 2}"]
    one = [f"%v{n}, %{n} = topk %l {{k = 1, axis = 1}}" for n in "jk"]
    miss([*one, *lines, *DENSE[1:]], "may choose an expert twice for one token")


def test_no_word_about_one_product_by_matrices() -> None:
    """An absorbed projection of attention looks like this."""
    miss(["%r = reshape %x {shape = (1, T, 8)}", "%y = matmul %r, %w"], None)
