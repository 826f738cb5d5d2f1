"""A loop over experts, each on the tokens that chose it, becomes one op."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest

from fuseline.passes.raise_experts import RaiseExperts
from fuseline.testing import assert_no_rewrite, assert_rewrites
from tests.passes.expert_cases import AFTER, COUNT, TOPK, ZEROS, arguments

End: TypeAlias = Callable[[int], list[str]]

SIZES = ", ".join(f"u{e} in 0.." for e in range(COUNT))


def places(e: int) -> list[str]:
    """Who chose an expert: its tokens, and their slots."""
    return [
        f"%n{e} = full {{value = {e}, dtype = i64}}",
        f"%m{e} = eq %i, %n{e}",
        (
            f'%h{e} = aten.call [%m{e}] {{target = "aten.nonzero.default", args = ($0,), '
            f"types = (i64[u{e}, 2],)}}"
        ),
        f"%c{e} = slice %h{e} {{axis = 1, start = 0, stop = 1}}",
        f"%token{e} = reshape %c{e} {{shape = (u{e},)}}",
        f"%k{e} = slice %h{e} {{axis = 1, start = 1, stop = 2}}",
        f"%slot{e} = reshape %k{e} {{shape = (u{e},)}}",
    ]


def product(e: int) -> list[str]:
    """The rows of an expert's tokens through the expert, %o{e}."""
    return [
        f"%r{e} = index %x, [%token{e}] {{axes = (0,)}}",
        f"%p{e} = linear %r{e}, %g{e}",
        f"%a{e} = silu %p{e}",
        f"%q{e} = linear %r{e}, %u{e}",
        f"%b{e} = mul %a{e}, %q{e}",
        f"%o{e} = linear %b{e}, %d{e}",
    ]


def weighed(e: int) -> list[str]:
    """The rows times their weights, %ow{e}."""
    return [
        f"%w{e} = index %s, [%token{e}, %slot{e}] {{axes = (0, 1)}}",
        f"%v{e} = reshape %w{e} {{shape = (u{e}, 1)}}",
        f"%ow{e} = mul %o{e}, %v{e}",
    ]


def added(e: int) -> list[str]:
    """The addition to %t{e}, by ``index_add``."""
    return [
        (
            f"%t{e + 1} = aten.call [%t{e}, %token{e}, %ow{e}] "
            '{target = "aten.index_add.default", args = ($0, 0, $1, $2), types = (DTYPE[T, 8],)}'
        )
    ]


def put(e: int) -> list[str]:
    """The addition to %t{e} as ``total[token] += rows`` traces."""
    return [
        f"%y{e} = index %t{e}, [%token{e}] {{axes = (0,)}}",
        f"%z{e} = add %y{e}, %ow{e}",
        f"%t{e + 1} = index_put %t{e}, [%token{e}], %z{e} {{axes = (0,)}}",
    ]


def accumulated(e: int) -> list[str]:
    """The addition to %t{e} by ``index_put`` with ``accumulate``."""
    given = "{axes = (0,), accumulate = true}"
    return [f"%t{e + 1} = index_put %t{e}, [%token{e}], %ow{e} {given}"]


def loop(end: End = added, count: int = COUNT) -> list[str]:
    """The loop over experts."""
    lines = [TOPK, ZEROS]
    for e in range(count):
        lines += [*places(e), *product(e), *weighed(e), *end(e)]
    return lines


def func(lines: list[str], dtype: str = "f32", result: str = "%t3") -> str:
    """The text of a func."""
    head = f"func @f({arguments()}) where {SIZES}"
    text = "\n".join(lines)
    return f"{head} {{ {text}\n return {result} }}".replace("DTYPE", dtype)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("end", [added, put, accumulated])
def test_a_loop_becomes_one_op(end: End, dtype: str) -> None:
    """However it adds: each addition is rounded as before."""
    assert_rewrites(RaiseExperts(), func(loop(end), dtype), func(AFTER, dtype), exact=False)


def mask(e: int) -> list[str]:
    """The loop's body with a boolean mask over the tokens in the place of their numbers."""
    picks = 'target = "aten.index.Tensor", args = ($0, ($1,))'
    return [
        *places(e)[:2],
        f"%any{e} = any %m{e} {{axes = (1,)}}",
        f"%r{e} = aten.call [%x, %any{e}] {{{picks}, types = (DTYPE[u{e}, 8],)}}",
        *product(e)[1:],
        f"%w{e} = aten.call [%s, %m{e}] {{{picks}, types = (DTYPE[u{e}],)}}",
        *weighed(e)[1:],
        f"%y{e} = aten.call [%t{e}, %any{e}] {{{picks}, types = (DTYPE[u{e}, 8],)}}",
        f"%z{e} = add %y{e}, %ow{e}",
        (
            f"%t{e + 1} = aten.call [%t{e}, %any{e}, %z{e}] "
            '{target = "aten.index_put.default", args = ($0, ($1,), $2), types = (DTYPE[T, 8],)}'
        ),
    ]


def test_boolean_masks() -> None:
    """``total[mask] += expert(x[mask]) * weights[selected == e, None]``."""
    lines = [TOPK, ZEROS, *(line for e in range(COUNT) for line in mask(e))]
    assert_rewrites(RaiseExperts(), func(lines), func(AFTER), exact=False)


def test_weights_of_all_experts() -> None:
    """A column of scores that were never gathered is gathered."""
    scores = "%f = softmax %l {axis = 1}"
    lines = [scores, TOPK, ZEROS]
    for e in range(COUNT):
        lines += [
            *places(e)[:-2],
            *product(e),
            f"%j{e} = slice %f {{axis = 1, start = {e}, stop = {e + 1}}}",
            f"%v{e} = index %j{e}, [%token{e}] {{axes = (0,)}}",
            *weighed(e)[2:],
            *added(e),
        ]
    gathered = "%w = gather %f, %i {axis = 1}"
    after = [scores, TOPK, gathered, AFTER[1].replace("%i, %s", "%i, %w")]
    assert_rewrites(RaiseExperts(), func(lines), func(after), exact=False)


def passing_on(lines: list[str], e: int) -> list[str]:
    """The loop, with an expert that gives back the rows it gets."""
    kept = [line for line in lines if line not in product(e)[1:]]
    return [line.replace(f"%ow{e} = mul %o{e},", f"%ow{e} = mul %r{e},") for line in kept]


def test_experts_that_pass_their_rows_on() -> None:
    """As LongCat-Flash has them: the numbers behind those of the experts."""
    after = [AFTER[0], AFTER[1].replace(", %g2, %u2", "").replace(", %d2", "")]
    after[1] = after[1].replace("experts = 3,", "experts = 2, identities = 1,")
    assert_rewrites(RaiseExperts(), func(passing_on(loop(), 2)), func(after), exact=False)


def test_no_experts_behind_those_that_pass_their_rows_on() -> None:
    reason = "expert 2 has products, and the one before it has none"
    miss(passing_on(loop(), 1), reason)
    miss(passing_on(passing_on(passing_on(loop(), 2), 1), 0), "expert 0 has no products")


def miss(lines: list[str], reason: str | None, result: str = "%t3") -> None:
    """The lines stay as they are, for a reason."""
    assert_no_rewrite(RaiseExperts(), func(lines, result=result), reason)


def replaced(old: str, new: str, end: End = added) -> list[str]:
    """The loop with something else in it."""
    lines = [line.replace(old, new) for line in loop(end)]
    assert lines != loop(end)
    return lines


def test_no_loop_in_another_order() -> None:
    lines = replaced("%n1 = full {value = 1", "%n1 = full {value = 2")
    lines = [line.replace("%n2 = full {value = 2", "%n2 = full {value = 1") for line in lines]
    miss(lines, "the experts are added in the order [0, 2, 1]")


def test_no_loop_that_leaves_an_expert_out() -> None:
    reason = "the result of topk, which does not choose among the 2 of the loop"
    miss(loop(count=2), reason, result="%t2")


def test_no_loop_that_begins_with_something() -> None:
    miss(replaced(ZEROS, "%t0 = exp %x"), "begins with the result of exp, not with zeros")


def test_no_loop_that_writes_over() -> None:
    lines = replaced(
        "%t2 = index_put %t1, [%token1], %z1", "%t2 = index_put %t1, [%token1], %ow1", put
    )
    miss(lines, "expert 1 writes over what the ones before it gave to its tokens")


def test_no_loop_whose_tokens_differ() -> None:
    """Rows of one expert, added to the tokens of another, or read by another order."""
    other = replaced("%r1 = index %x, [%token1]", "%r1 = index %x, [%token0]")
    miss(other, "expert 1 reads the result of index, which does not pick the rows of its tokens")
    slots = replaced("%w1 = index %s, [%token1, %slot1]", "%w1 = index %s, [%slot1, %token1]")
    miss(slots, "which does not pick the weights of its tokens")
    x = [line.replace("%r2 = index %x", "%r2 = index %z") for line in loop()]
    miss(["%z = exp %x", *x], "expert 2 reads another x")


def test_no_loop_whose_experts_differ() -> None:
    miss(replaced("%a1 = silu", "%a1 = relu"), "the activation of expert 1 is another")
    miss(
        replaced("%ow1 = mul %o1, %v1", "%ow1 = exp %o1"), "expert 1 adds comes from the result of"
    )
    scores = [line.replace("%w2 = index %s", "%w2 = index %e") for line in loop()]
    miss([scores[0], "%e = exp %s", *scores[1:]], "expert 2 is weighed by other weights")


def test_no_loop_that_is_read_inside() -> None:
    miss(loop(), "inside of the experts is read by the return", result="%t3, %t2")
    miss([*loop(), "%e = exp %b1"], "is read by exp", result="%t3, %e")


def test_no_loop_of_experts_that_may_be_chosen_twice() -> None:
    twice = [
        "%s1, %i1 = topk %l {axis = 1, k = 1}",
        "%s = concat [%s1, %s1] {axis = 1}",
        "%i = concat [%i1, %i1] {axis = 1}",
    ]
    miss([*twice, *loop()[1:]], "the result of concat may choose an expert twice for one token")


def test_no_word_about_other_additions() -> None:
    """Rows picked by something else than experts' numbers."""
    lines = [line.replace("eq %i", "gt %i") for line in loop()]
    miss(lines, None)
