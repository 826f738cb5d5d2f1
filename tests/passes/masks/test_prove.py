"""What masks mean: proven limits become attributes, and what is left says why."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fuseline.ir.core import Func, Value
from fuseline.ir.evaluate import call_reference
from fuseline.ir.ops.create import Iota
from fuseline.ir.ops.pointwise import Where
from fuseline.ir.ops.view import Reshape
from fuseline.ir.text import parse_func
from fuseline.ir.types import DType, substitute
from fuseline.passes.apply import schedule
from fuseline.passes.masks.prove import Meaning, Refused, Scores, prove
from fuseline.passes.masks.terms import Applied
from tests.passes.masks.random_masks import MaskMaker

MINIMUM = torch.finfo(torch.float32).min


def _func(body: str, arguments: str = "") -> Func:
    return parse_func(
        f"""func @f({arguments}) where S in 1.., T in 1.., B in 1.. {{
      %iq = iota {{length = S}}
      %ik = iota {{length = T}}
      %k = reshape %ik {{shape = (1, 1, 1, T)}}
      {body}
      return %mask
    }}""".replace("1.. ,", "1..,")
    )


def _prove(
    body: str,
    arguments: str = "%x: f32[B, S, T]",
    *,
    how: str = "keep",
    sinks: bool = False,
) -> tuple[Meaning | Refused, Func]:
    func = _func(body, arguments)
    batch, queries, keys = func.args[0].shape
    scores = Scores(batch, 4, queries, keys)
    return prove(func, [Applied(func.returns[0], how)], scores, sinks=sinks), func


def _meaning(
    body: str, arguments: str = "%x: f32[B, S, T]", *, how: str = "keep", sinks: bool = False
) -> Meaning:
    found, _ = _prove(body, arguments, how=how, sinks=sinks)
    assert isinstance(found, Meaning), found
    return found


def test_no_proof_of_a_mask_with_more_dims() -> None:
    """prophetnet: two streams of queries beside the batch."""
    body = "%n = full {value = 0.0, dtype = f32}\n%mask = expand %n {shape = (B, 2, 4, S, T)}"
    found, _ = _prove(body, how="add")
    assert isinstance(found, Refused)
    assert found.reason == "a mask f32[B, 2, 4, S, T] has more dims than batch, head, query and key"


PLAIN_ROWS = "%q = reshape %iq {shape = (1, 1, S, 1)}"
CACHE_ROWS = """%p = add %iq, %n
      %q = reshape %p {shape = (1, 1, S, 1)}"""
COUNTED = "%x: f32[B, S, T], %n: i64[]"


def test_causal_from_the_start() -> None:
    found = _meaning(f"{PLAIN_ROWS}\n%mask = le %k, %q")
    assert found == Meaning(causal=True, held=("k <= q",))


def test_causal_up_to_the_cache_position() -> None:
    """The positions are the value that the model itself computed."""
    found, func = _prove(f"{CACHE_ROWS}\n%mask = le %k, %q", COUNTED)
    assert isinstance(found, Meaning)
    assert found.causal
    assert found.mask is None
    assert found.positions is func.ops[3].results[0]
    assert found.held == ("k <= %n + q",)


def test_causal_at_positions_of_each_batch_row() -> None:
    arguments = "%x: f32[B, S, T], %p: i64[B, S]"
    found, func = _prove("%q = reshape %p {shape = (B, 1, S, 1)}\n%mask = ge %q, %k", arguments)
    assert isinstance(found, Meaning)
    assert found.positions is func.args[1]


def test_sliding_window_beside_causal() -> None:
    found = _meaning(
        f"""{CACHE_ROWS}
      %w = full {{value = 5, dtype = i64}}
      %low = sub %q, %w
      %new = gt %k, %low
      %old = le %k, %q
      %mask = bitwise_and %new, %old""",
        COUNTED,
    )
    assert (found.causal, found.window, found.mask) == (True, 5, None)
    assert set(found.held) == {"k <= %n + q", "%n + q <= k + 4"}


def test_the_narrower_of_two_windows_counts() -> None:
    found = _meaning(f"""{PLAIN_ROWS}
      %d = sub %q, %k
      %one = full {{value = 7, dtype = i64}}
      %two = full {{value = 3, dtype = i64}}
      %a = lt %d, %one
      %b = le %d, %two
      %ab = logical_and %a, %b
      %c = le %k, %q
      %mask = logical_and %c, %ab""")
    assert found.window == 4


def test_window_on_both_sides_is_causal_further_on() -> None:
    """``|q - k| <= 2`` is ``k <= q + 2`` and ``k > q + 2 - 5``."""
    found, func = _prove(f"""{PLAIN_ROWS}
      %d = sub %q, %k
      %near = abs %d
      %c = full {{value = 2, dtype = i64}}
      %mask = le %near, %c""")
    assert isinstance(found, Meaning)
    assert (found.causal, found.window) == (True, 5)
    assert found.positions is not None
    assert isinstance(found.positions.owner, Iota)
    assert found.positions.owner.start == 2
    assert found.positions.owner not in func


def test_bounded_by_a_length_is_causal_at_one_position() -> None:
    found = _meaning("%mask = lt %k, %n", COUNTED)
    assert found.causal
    assert found.positions is not None
    assert str(found.positions.type) == "i64[S]"


def test_a_mask_that_hides_nothing_is_dropped() -> None:
    found = _meaning(f"""{PLAIN_ROWS}
      %zero = full {{value = 0, dtype = i64}}
      %a = ge %q, %zero
      %t = full {{value = T, dtype = i64}}
      %b = lt %k, %t
      %mask = bitwise_and %a, %b""")
    assert found == Meaning()


def test_a_window_as_long_as_a_full_cache_is_dropped() -> None:
    """A sliding cache that is full: its first key is the oldest one that is visible."""
    func = parse_func("""func @f(%n: int<N>, %x: f32[2, 1, 5]) where N in 5.. {
      %p = full {value = N, shape = (1, 1, 1, 1), dtype = i64}
      %ik = iota {length = 5, start = <Max(0, N - 4)>}
      %k = reshape %ik {shape = (1, 1, 1, 5)}
      %w = full {value = 5, dtype = i64}
      %low = sub %p, %w
      %new = gt %k, %low
      %old = le %k, %p
      %mask = bitwise_and %new, %old
      return %mask
    }""")
    applied = [Applied(func.returns[0], "keep")]
    assert prove(func, applied, Scores(2, 4, 1, 5)) == Meaning()


def test_chunks_of_a_prompt_beside_a_full_sliding_cache() -> None:
    """The keys are the last ones of the cache and the new ones: queries stand 4 keys further on."""
    func = parse_func("""func @f(%n: int<N>, %x: f32[2, S, S + 4]) where N in 5.., S in 1.. {
      %iq = iota {length = S, start = N}
      %q = reshape %iq {shape = (1, 1, S, 1)}
      %ik = iota {length = <S + 4>, start = <Max(0, N - 4)>}
      %k = reshape %ik {shape = (1, 1, 1, <S + 4>)}
      %w = full {value = 5, dtype = i64}
      %low = sub %q, %w
      %new = gt %k, %low
      %old = le %k, %q
      %mask = bitwise_and %new, %old
      return %mask
    }""")
    batch, queries, keys = func.args[1].shape
    found = prove(func, [Applied(func.returns[0], "keep")], Scores(batch, 4, queries, keys))
    assert isinstance(found, Meaning)
    assert (found.causal, found.window, found.mask) == (True, 5, None)
    assert found.positions is not None
    assert isinstance(found.positions.owner, Iota)
    assert found.positions.owner.start == 4


def test_padding_stays_as_a_row_of_keys() -> None:
    found = _meaning(
        f"""{PLAIN_ROWS}
      %ib = iota {{length = B}}
      %b = reshape %ib {{shape = (B, 1, 1, 1)}}
      %seen = cast %pad {{dtype = bool}}
      %row = index %seen, [%b, %k] {{axes = (0, 1)}}
      %old = le %k, %q
      %both = bitwise_and %old, %row
      %mask = expand %both {{shape = (B, 1, S, T)}}""",
        "%x: f32[B, S, T], %pad: i64[B, T]",
    )
    assert found.causal
    assert found.mask is not None
    assert str(found.mask.type) == "bool[B, 1, 1, T]"
    assert isinstance(found.mask.owner, Reshape)
    assert found.details == {
        "mask": "kept: %pad[b, k] != 0: depends on data or is no limit on the key"
    }


def test_padding_beyond_the_keys_is_sliced() -> None:
    found = _meaning(
        """%ib = iota {length = B}
      %b = reshape %ib {shape = (B, 1, 1, 1)}
      %mask = index %pad, [%b, %k] {axes = (0, 1)}""",
        "%x: f32[B, S, T], %pad: bool[B, T + 3]",
    )
    assert found.mask is not None
    assert str(found.mask.type) == "bool[B, 1, 1, T]"


def test_chunks_stay_beside_what_is_proven() -> None:
    found = _meaning(f"""{PLAIN_ROWS}
      %c = full {{value = 4, dtype = i64}}
      %cq = floor_div %q, %c
      %ck = floor_div %k, %c
      %same = eq %cq, %ck
      %old = le %k, %q
      %mask = bitwise_and %same, %old""")
    assert found.causal
    assert found.mask is not None
    assert "(k)//4 == (q)//4" in found.details["mask"]


def test_an_upper_limit_above_another_is_dropped() -> None:
    found = _meaning(f"""{PLAIN_ROWS}
      %s = full {{value = S, dtype = i64}}
      %some = lt %k, %s
      %old = le %k, %q
      %mask = bitwise_and %some, %old""")
    assert found == Meaning(causal=True, held=("k <= q",))


def test_a_second_upper_limit_stays() -> None:
    found = _meaning(
        f"""{PLAIN_ROWS}
      %old = le %k, %q
      %some = lt %k, %n
      %mask = bitwise_and %old, %some""",
        COUNTED,
    )
    assert found.causal
    assert found.mask is not None
    assert "a second upper limit" in found.details["mask"]


def test_an_alternative_is_not_taken_apart() -> None:
    found = _meaning(
        f"""{PLAIN_ROWS}
      %old = le %k, %q
      %start = lt %k, %n
      %mask = bitwise_or %old, %start""",
        COUNTED,
    )
    assert not found.causal
    assert found.mask is not None


def test_what_depends_on_the_head_stays() -> None:
    found = _meaning(f"""{PLAIN_ROWS}
      %ih = iota {{length = 4}}
      %h = reshape %ih {{shape = (1, 4, 1, 1)}}
      %late = add %q, %h
      %mask = le %k, %late""")
    assert not found.causal
    assert "depends on the head" in found.details["mask"]


# -- numbers to add, and rows that see no key -----------------------------------------------


ADDED = """%zero = full {value = 0.0, dtype = f32}
      %fill = full {value = FILL, dtype = f32}
      %mask = where %see, %zero, %fill"""


def _added(see: str, fill: float) -> str:
    return f"{see}\n{ADDED.replace('FILL', repr(fill))}"


@pytest.mark.parametrize("fill", [-math.inf, MINIMUM, -65504.0])
def test_numbers_that_hide_are_a_condition(fill: float) -> None:
    """Every row sees key 0, so that the fill has no weight whatever it is."""
    found = _meaning(_added(f"{PLAIN_ROWS}\n%see = le %k, %q", fill), how="add")
    assert found == Meaning(causal=True, held=("k <= q",))


def test_numbers_that_still_count_stay() -> None:
    found = _meaning(_added(f"{PLAIN_ROWS}\n%see = le %k, %q", -10000.0), how="add")
    assert not found.causal
    assert found.mask is not None
    assert "numbers to add" in found.details["mask"]


def test_a_finite_fill_stays_where_a_row_may_be_empty() -> None:
    """Then the softmax gives all keys equal weights, where the op would give zeros."""
    see = f"{CACHE_ROWS}\n%see = le %k, %q"
    found, func = _prove(_added(see, MINIMUM), COUNTED, how="add")
    assert isinstance(found, Meaning)
    assert found.mask is func.returns[0]
    assert not found.causal
    assert "a row may see no key" in found.details["mask"]


def test_an_infinite_fill_is_taken_apart_all_the_same() -> None:
    see = f"{CACHE_ROWS}\n%see = le %k, %q"
    assert _meaning(_added(see, -math.inf), COUNTED, how="add").causal


def test_sinks_make_no_row_empty() -> None:
    see = f"{CACHE_ROWS}\n%see = le %k, %q"
    assert _meaning(_added(see, MINIMUM), COUNTED, how="add", sinks=True).causal


def test_places_that_are_written_are_in_range() -> None:
    """Eager fails for a write out of bounds, so a row sees the key written at its position."""
    see = f"""{CACHE_ROWS}
      %see = le %k, %q
      %new = index_copy %cache, %p, %rows {{axis = 1}}"""
    arguments = f"{COUNTED}, %cache: f32[B, T, 3], %rows: f32[B, S, 3]"
    found = _meaning(_added(see, MINIMUM), arguments, how="add")
    assert found.causal
    assert found.mask is None


def test_writes_to_another_place_prove_nothing() -> None:
    see = f"""{CACHE_ROWS}
      %see = le %k, %q
      %new = index_copy %cache, %iq, %rows {{axis = 1}}"""
    arguments = f"{COUNTED}, %cache: f32[B, T, 3], %rows: f32[B, S, 3]"
    assert not _meaning(_added(see, MINIMUM), arguments, how="add").causal


def test_biases_stay_beside_a_proven_mask() -> None:
    see = f"{PLAIN_ROWS}\n%see = le %k, %q"
    body = _added(see, -math.inf).replace("%mask =", "%hide =") + "\n%mask = add %hide, %bias"
    found, func = _prove(body, "%x: f32[B, S, T], %bias: f32[1, 4, S, T]", how="add")
    assert isinstance(found, Meaning)
    assert found.causal
    assert found.mask is func.args[1]


def test_two_finite_masks_are_refused() -> None:
    func = _func(_added(f"{CACHE_ROWS}\n%see = le %k, %q", MINIMUM), COUNTED)
    batch, queries, keys = func.args[0].shape
    mask = func.returns[0]
    assert isinstance(mask.owner, Where)
    both = [Applied(mask, "add"), Applied(mask.owner.condition, "keep", MINIMUM)]
    found = prove(func, both, Scores(batch, 4, queries, keys))
    assert isinstance(found, Refused)
    assert "2 masks with a finite fill" in found.reason


# -- against the actual mask ----------------------------------------------------------------


def _visible(meaning: Meaning, tensors: dict[Value, Tensor], sizes: dict[str, int]) -> Tensor:
    """The mask that a meaning stands for, ``[B or 1, 1, Sq, Sk]``."""
    queries, keys = sizes["queries"], sizes["keys"]
    visible = torch.ones(1, 1, queries, keys, dtype=torch.bool)
    rows = torch.arange(queries)
    if meaning.positions is not None:
        rows = _made(meaning.positions, tensors, sizes)
        assert meaning.positions.dtype is DType.I64
    rows, columns = rows.reshape(-1, 1, queries, 1), torch.arange(keys)
    if meaning.causal:
        visible = visible & (columns <= rows)
    if meaning.window is not None:
        visible = visible & (columns > rows - meaning.window)
    if meaning.mask is not None:
        visible = visible & _made(meaning.mask, tensors, sizes)
    return visible


def _made(value: Value, tensors: dict[Value, Tensor], sizes: dict[str, int]) -> Tensor:
    """A value that exists, or that new ops make."""
    op = value.owner
    if value not in tensors and op is not None:
        for operand in op.operands:
            _made(operand, tensors, sizes)
        results = call_reference(op, tensors, sizes)
        tensors.update(zip(op.results, results, strict=True))
    return tensors[value]


@pytest.mark.parametrize("seed", range(150))
def test_meanings_of_random_masks_are_the_masks(seed: int) -> None:
    program = MaskMaker(seed).program()
    func = program.func
    scores = Scores(program.batch, 2, program.queries, program.keys)
    meaning = prove(func, [Applied(program.mask, "keep")], scores)
    assert isinstance(meaning, Meaning)
    assert [*schedule(func)] == [*func.ops], "the func was edited"
    sizes = program.sizes | {
        "queries": substitute(program.queries, program.sizes),
        "keys": substitute(program.keys, program.sizes),
    }
    for attempt in range(3):
        tensors = dict(zip(func.args, program.arguments(10 * seed + attempt), strict=True))
        actual = {v: t for v, t in tensors.items() if isinstance(t, Tensor)}
        want = _made(program.mask, actual, sizes)
        got = _visible(meaning, actual, sizes)
        assert torch.equal(got.expand(want.shape), want), meaning


def test_most_random_masks_lose_a_term() -> None:
    """Otherwise the test above would hold for a prover that proves nothing."""
    proven = 0
    for seed in range(100):
        program = MaskMaker(seed).program()
        scores = Scores(program.batch, 2, program.queries, program.keys)
        meaning = prove(program.func, [Applied(program.mask, "keep")], scores)
        proven += isinstance(meaning, Meaning) and (meaning.causal or meaning.mask is None)
    assert proven > 60
