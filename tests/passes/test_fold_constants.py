"""Constants fold where they are spelled in the graph, to the bits that torch would give."""

from __future__ import annotations

import pytest

from fuseline.ir.text import parse_func, print_func
from fuseline.passes.dce import Dce
from fuseline.passes.fold_constants import FoldConstants
from fuseline.testing import assert_no_rewrite, assert_rewrites, run_passes

FOLD = [FoldConstants(), Dce()]


def folds(before: list[str], after: list[str], arguments: str = "%x: f32[B, 3]") -> None:
    texts = ["\n".join([f"func @f({arguments}) {{", *b, "return %y }"]) for b in (before, after)]
    assert_rewrites(FOLD, *texts)


def keeps(lines: list[str], arguments: str = "%x: f32[B, 3]") -> None:
    text = "\n".join([f"func @f({arguments}) {{", *lines, "return %y }"])
    assert_no_rewrite(FOLD, text, None)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("f64", "0.001"), ("f32", "0.0010000000474974513"), ("bf16", "0.00099945068359375")],
)
def test_arithmetic_rounds_as_torch_does(dtype: str, value: str) -> None:
    folds(
        [
            f"%a = full {{value = 0.001, shape = (B, 3), dtype = {dtype}}}",
            "%b = full {value = 1, dtype = i64}",
            "%y = mul %a, %b",
        ],
        [f"%y = full {{value = {value}, shape = (B, 3), dtype = {dtype}}}"],
    )


def test_views_of_uniform_tensors() -> None:
    folds(
        [
            "%a = full {value = -inf, shape = (4, 6), dtype = f32}",
            "%b = reshape %a {shape = (2, 12)}",
            "%c = permute %b {dims = (1, 0)}",
            "%d = slice %c {axis = 0, start = 2, stop = 12, step = 3}",
            "%e = reshape %d {shape = (1, 8)}",
            "%y = expand %e {shape = (B, 8)}",
        ],
        ["%y = full {value = -inf, shape = (B, 8), dtype = f32}"],
    )


def test_concat_of_equal_uniform_tensors() -> None:
    zero = "full {value = 0.0, shape = (B, 2), dtype = f32}"
    folds(
        [f"%a = {zero}", f"%b = {zero}", "%y = concat [%a, %b] {axis = 1}"],
        ["%y = full {value = 0.0, shape = (B, 4), dtype = f32}"],
    )


def test_no_concat_of_different_uniform_tensors() -> None:
    keeps(
        [
            "%a = full {value = 0.0, shape = (B, 2), dtype = f32}",
            "%b = full {value = -0.0, shape = (B, 2), dtype = f32}",
            "%y = concat [%a, %b] {axis = 1}",
        ]
    )


def test_sizes_stay_sizes() -> None:
    folds(
        [
            "%a = full {value = B, dtype = i64}",
            "%b = full {value = 1, dtype = i64}",
            "%c = add %a, %b",
            "%y = mul %c, %a",
        ],
        ["%y = full {value = <B**2 + B>, dtype = i64}"],
    )


def test_affine_iota() -> None:
    folds(
        [
            "%i = iota {length = 12}",
            "%two = full {value = 2, dtype = i64}",
            "%b = full {value = B, dtype = i64}",
            "%a = mul %two, %i",
            "%c = add %a, %b",
            "%d = sub %c, %two",
            "%y = slice %d {axis = 0, start = 3, stop = 9, step = 2}",
        ],
        ["%y = iota {length = 3, start = <B + 4>, step = 4}"],
    )


def test_small_iota_changes_integer_type() -> None:
    folds(
        ["%i = iota {length = 12}", "%y = cast %i {dtype = i8}"],
        ["%y = iota {length = 12, dtype = i8}"],
    )


def test_no_iota_where_it_may_overflow_or_round() -> None:
    keeps(["%i = iota {length = 200}", "%y = cast %i {dtype = i8}"])
    keeps(["%i = iota {length = B}", "%y = cast %i {dtype = i32}"])
    keeps(["%i = iota {length = 12}", "%y = cast %i {dtype = f32}"])
    keeps(
        [
            "%i = iota {length = 12, dtype = f32}",
            "%h = full {value = 2, dtype = i64}",
            "%y = mul %i, %h",
        ]
    )


def test_absorbing_and_neutral_masks() -> None:
    arguments = "%x: bool[B, 1, 3], %z: bool[3, 3]"
    true, false = (
        f"%t = full {{value = {v}, shape = (3, 3), dtype = bool}}" for v in ("true", "false")
    )
    folds([true, "%y = logical_and %t, %x"], ["%y = expand %x {shape = (B, 3, 3)}"], arguments)
    folds(
        [true, "%a = logical_and %z, %t", "%y = logical_or %x, %a"],
        ["%y = logical_or %x, %z"],
        arguments,
    )
    folds(
        [false, "%y = logical_and %z, %t"],
        ["%y = full {value = false, shape = (3, 3), dtype = bool}"],
        arguments,
    )


def test_known_choices() -> None:
    folds(
        [
            "%t = full {value = true, shape = (3,), dtype = bool}",
            "%z = full {value = 0.0, dtype = f32}",
            "%a = where %t, %x, %z",
            "%y = exp %a",
        ],
        ["%y = exp %x"],
    )


def test_no_folding_of_parameters_and_buffers() -> None:
    """What a table holds can change between calls."""
    arguments = """%f: f32[4] = buffer "inv_freq" #abc, %w: f32[4] = const "w" #abd"""
    keeps(["%a = mul %f, %w", "%y = cos %a"], arguments)


def test_no_folding_of_what_is_not_defined() -> None:
    """Division by zero fails when it runs, as it does in torch, and not in the compiler."""
    func = parse_func("""func @f() {
      %a = full {value = 1, dtype = i64}
      %z = full {value = 0, dtype = i64}
      %y = floor_div %a, %z
      return %y
    }""")
    before = print_func(func)
    run_passes(FOLD, func)
    assert print_func(func) == before


CHOSEN = "%v, %chosen = topk %x {k = 2, axis = 1} : f32[B, 2], i64[B, 2]"


@pytest.mark.parametrize(
    ("comparison", "number", "answer"),
    [
        ("ge", "3", "false"),
        ("gt", "2", "false"),
        ("lt", "3", "true"),
        ("le", "2", "true"),
        ("ge", "0", "true"),
        ("eq", "3", "false"),
        ("ne", "-1", "true"),
    ],
)
def test_an_index_is_below_the_number_of_its_choices(
    comparison: str, number: str, answer: str
) -> None:
    folds(
        [
            CHOSEN,
            "%turned = permute %chosen {dims = (1, 0)}",
            "%sorted, %order = sort %turned {axis = 0}",
            f"%n = full {{value = {number}, dtype = i64}}",
            f"%y = {comparison} %sorted, %n",
        ],
        [f"%y = full {{value = {answer}, shape = (2, B), dtype = bool}}"],
    )


@pytest.mark.parametrize(
    ("comparison", "number"), [("ge", "2"), ("lt", "2"), ("gt", "0"), ("eq", "1"), ("ne", "0")]
)
def test_no_answer_inside_the_range(comparison: str, number: str) -> None:
    keeps(
        [CHOSEN, f"%n = full {{value = {number}, dtype = i64}}", f"%y = {comparison} %chosen, %n"]
    )


def test_bounds_that_an_index_keeps_anyway() -> None:
    """What transformers up to 5.19 does to every choice of experts, for those of other devices."""
    folds(
        [
            CHOSEN,
            "%zero = full {value = 0, dtype = i64}",
            "%last = full {value = 2, dtype = i64}",
            "%low = maximum %chosen, %zero",
            "%y = minimum %low, %last",
        ],
        ["%v, %y = topk %x {k = 2, axis = 1} : f32[B, 2], i64[B, 2]"],
    )


@pytest.mark.parametrize("bound", ["minimum %chosen, %one", "maximum %chosen, %one"])
def test_no_bound_dropped_that_cuts(bound: str) -> None:
    keeps([CHOSEN, "%one = full {value = 1, dtype = i64}", f"%y = {bound}"])


def test_no_answer_for_indices_that_are_given() -> None:
    keeps(["%n = full {value = 3, dtype = i64}", "%y = ge %x, %n"], "%x: i64[B]")
