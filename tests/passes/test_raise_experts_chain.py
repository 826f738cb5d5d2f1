"""Experts in a list of modules, each weighed on every token and added up, become one op."""

from __future__ import annotations

import pytest

from fuseline.passes.raise_experts import RaiseExperts
from fuseline.testing import assert_no_rewrite, assert_rewrites
from tests.passes.expert_cases import AFTER, COUNT, TOPK, ZEROS, arguments

GATE = [
    TOPK,
    "%base = full {value = 0.0, shape = (T, 3), dtype = DTYPE}",
    "%gate = scatter %base, %i, %s {axis = 1}",
    ZEROS,
]


def expert(e: int, weight: str | None = None) -> list[str]:
    """The lines of one expert, added to %t{e}."""
    return [
        weight or f"%w{e} = slice %gate {{axis = 1, start = {e}, stop = {e + 1}}}",
        f"%p{e} = linear %x, %g{e}",
        f"%a{e} = silu %p{e}",
        f"%q{e} = linear %x, %u{e}",
        f"%m{e} = mul %a{e}, %q{e}",
        f"%o{e} = linear %m{e}, %d{e}",
        f"%ow{e} = mul %w{e}, %o{e}",
        f"%t{e + 1} = add %t{e}, %ow{e}",
    ]


EXPERTS = [line for e in range(COUNT) for line in expert(e)]
CHAIN = [*GATE, *EXPERTS]


def func(lines: list[str], dtype: str = "f32", result: str = "%t3", given: str = "") -> str:
    """The text of a func."""
    text = "\n".join(lines)
    return f"func @f({given or arguments()}) {{ {text}\n return {result} }}".replace("DTYPE", dtype)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_columns_of_scattered_weights(dtype: str) -> None:
    """Each addition is rounded as before."""
    assert_rewrites(RaiseExperts(), func(CHAIN, dtype), func(AFTER, dtype), exact=False)


@pytest.mark.parametrize("first", [True, False])
def test_weights_chosen_by_comparison(first: bool) -> None:
    """``(weights * (indices == e)).sum(-1)``; the sum begins with the first expert, or with 0."""
    lines = [TOPK] if first else [TOPK, GATE[-1]]
    for e in range(COUNT):
        lines += [
            f"%n{e} = full {{value = {e}, dtype = i64}}",
            f"%eq{e} = eq %i, %n{e}",
            f"%hot{e} = cast %eq{e} {{dtype = f32}}",
            f"%each{e} = mul %s, %hot{e}",
            *expert(e, f"%w{e} = sum %each{e} {{axes = (1,), keepdim = true}}"),
        ]
    if first:
        lines = [line.replace("%t1, ", "%ow0, ") for line in lines if "%t1 =" not in line]
    assert_rewrites(RaiseExperts(), func(lines), func(AFTER), exact=False)


def miss(lines: list[str], reason: str | None, given: str = "", result: str = "%t3") -> None:
    """The lines stay as they are, for a reason."""
    assert_no_rewrite(RaiseExperts(), func(lines, given=given, result=result), reason)


def test_no_experts_whose_matrices_cannot_be_packed() -> None:
    """One is pinned; one is shared between two experts; one is no parameter."""
    pinned = arguments(' pinned "has hooks"')
    miss(CHAIN, "of expert 1 a weight experts.1.g is pinned: has hooks", pinned)
    shared = [line.replace("%d1", "%d0") for line in CHAIN]
    miss(shared, "of expert 0 a weight experts.0.d is read 2 times")
    inputs = arguments().replace(' = param "experts.2.d"', "")
    miss(CHAIN, "of expert 2 a weight comes from argument d2", inputs)


def swapped(one: int, other: int) -> list[str]:
    """The lines with two experts' weights taken for one another."""
    places = {e: f"start = {e}, stop = {e + 1}" for e in (one, other)}
    return [
        line.replace(places[one], "HERE")
        .replace(places[other], places[one])
        .replace("HERE", places[other])
        for line in CHAIN
    ]


def test_the_first_two_in_any_order() -> None:
    """Their sum is the same: the op takes them in the order of their numbers."""
    after = [AFTER[0], AFTER[1].replace("%g0, %u0, %g1, %u1", "%g1, %u1, %g0, %u0")]
    after[1] = after[1].replace("[%d0, %d1", "[%d1, %d0")
    assert_rewrites(RaiseExperts(), func(swapped(0, 1)), func(after), exact=False)


def test_no_experts_in_another_order() -> None:
    miss(swapped(1, 2), "the experts are added in the order [0, 2, 1]")


def test_no_experts_that_differ() -> None:
    relu = [line.replace("%a1 = silu", "%a1 = relu") for line in CHAIN]
    miss(relu, "the activation of expert 1 is another than that of the first")
    other = [line.replace("%p2 = linear %x", "%p2 = linear %z") for line in CHAIN]
    miss(["%z = exp %x", *other], "expert 2 reads another x")


def test_no_experts_that_are_read_inside() -> None:
    miss(CHAIN, "the result of add inside of the experts is read by the return", result="%t3, %t2")
    miss([*CHAIN, "%e = exp %m1"], "is read by exp", result="%t3, %e")


def test_no_experts_of_which_all_count() -> None:
    ones = [
        line.replace("value = 0.0, shape = (T, 3)", "value = 0.5, shape = (T, 3)") for line in CHAIN
    ]
    miss(ones, "experts that were not chosen have the weight 0.5, not 0")


def test_no_experts_that_are_added_to_something() -> None:
    """The first additions would be rounded otherwise."""
    begun = [*GATE[:-1], "%t0 = exp %x", *EXPERTS]
    miss(begun, "the sum of the experts begins with the result of exp, not with zeros")


def test_no_word_about_branches_with_other_weights() -> None:
    miss(["%gate = softmax %l {axis = 1}", GATE[-1], *EXPERTS], None)
