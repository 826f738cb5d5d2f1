"""Each canonical spelling: IR in, IR out, the same bits; and what must not be touched."""

from __future__ import annotations

import pytest

from fuseline.passes.canonicalize import Canonicalize
from fuseline.passes.dce import Dce
from fuseline.testing import assert_no_rewrite, assert_rewrites

CLEAN = [Canonicalize(), Dce()]


def func(arguments: str, *lines: str, returns: str = "%y") -> str:
    """The text of a func of a few lines."""
    return "\n".join([f"func @f({arguments}) {{", *lines, f"return {returns}", "}"])


def rewrites(arguments: str, before: list[str], after: list[str], returns: str = "%y") -> None:
    """The clean-up turns one body into the other; ``returns`` is read in the second alone."""
    assert_rewrites(
        CLEAN, func(arguments, *before), func(arguments, *after, returns=returns), exact=True
    )


def keeps(arguments: str, *lines: str) -> None:
    """The clean-up leaves a body alone."""
    assert_no_rewrite(CLEAN, func(arguments, *lines), None)


def scalar(value: str, dtype: str = "f32") -> str:
    """The line of a 0-d constant %c."""
    return f"%c = full {{value = {value}, dtype = {dtype}}}"


# -- casts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16", "i64", "bool"])
def test_cast_to_the_same_type_goes(dtype: str) -> None:
    rewrites(f"%x: {dtype}[B, 3]", [f"%y = cast %x {{dtype = {dtype}}}"], [], "%x")


@pytest.mark.parametrize(
    ("source", "middle", "target"),
    [
        ("bf16", "f32", "bf16"),
        ("f16", "f64", "f32"),
        ("i32", "i64", "f32"),
        ("bool", "f32", "i64"),
        ("i8", "bf16", "f32"),
        ("u8", "i16", "i64"),
    ],
)
def test_cast_of_an_exact_cast_is_one_cast(source: str, middle: str, target: str) -> None:
    after = [f"%y = cast %x {{dtype = {target}}}"] if source != target else []
    rewrites(
        f"%x: {source}[B, 3]",
        [f"%a = cast %x {{dtype = {middle}}}", f"%y = cast %a {{dtype = {target}}}"],
        after,
        "%y" if after else "%x",
    )


@pytest.mark.parametrize(
    ("source", "middle", "target"),
    [
        ("f32", "bf16", "f32"),
        ("f16", "bf16", "f32"),
        ("bf16", "f16", "f32"),
        ("i64", "f32", "i64"),
        ("i32", "u8", "i32"),
        ("i8", "u8", "i8"),
        ("i16", "f16", "i64"),
        ("f32", "bool", "f32"),
    ],
)
def test_no_joining_of_casts_that_lose_something(source: str, middle: str, target: str) -> None:
    keeps(
        f"%x: {source}[B, 3]",
        f"%a = cast %x {{dtype = {middle}}}",
        f"%y = cast %a {{dtype = {target}}}",
    )


def test_promotion_becomes_a_cast() -> None:
    rewrites(
        "%x: f32[B, 3], %w: bf16[3]",
        ["%y = mul %w, %x"],
        ["%v = cast %w {dtype = f32}", "%y = mul %v, %x"],
    )
    rewrites(
        "%x: i64[B, 3], %w: bf16[3]",
        ["%y = add %x, %w"],
        ["%v = cast %x {dtype = bf16}", "%y = add %v, %w"],
    )


def test_no_cast_of_a_scalar_operand() -> None:
    keeps("%x: bf16[B, 3]", scalar("0.1"), "%y = mul %x, %c")
    keeps("%x: bf16[B, 3], %s: f32[]", "%y = mul %x, %s")


# -- views ----------------------------------------------------------------------------------


def test_reshapes_join() -> None:
    rewrites(
        "%x: f32[B, 12]",
        [
            "%a = reshape %x {shape = (B, 3, 4)}",
            "%b = reshape %a {shape = (B, 3, 4)}",
            "%y = reshape %b {shape = (<3*B>, 4)}",
        ],
        ["%y = reshape %x {shape = (<3*B>, 4)}"],
    )
    rewrites(
        "%x: f32[B, 12]",
        ["%a = reshape %x {shape = (B, 1, 12)}", "%y = reshape %a {shape = (B, 12)}"],
        [],
        "%x",
    )


def test_permutes_compose() -> None:
    x = "%x: f32[B, 3, 4, 5]"
    rewrites(
        x,
        ["%a = permute %x {dims = (0, 2, 1, 3)}", "%y = permute %a {dims = (3, 0, 1, 2)}"],
        ["%y = permute %x {dims = (3, 0, 2, 1)}"],
    )
    twice = ["%a = permute %x {dims = (0, 2, 1, 3)}", "%y = permute %a {dims = (0, 2, 1, 3)}"]
    rewrites(x, twice, [], "%x")


def test_expands_join_and_vanish_under_broadcasting() -> None:
    rewrites(
        "%x: f32[1, 4]",
        ["%a = expand %x {shape = (3, 4)}", "%y = expand %a {shape = (2, 3, 4)}"],
        ["%y = expand %x {shape = (2, 3, 4)}"],
    )
    rewrites(
        "%x: f32[B, 4], %w: f32[4], %m: bool[1, 4]",
        [
            "%a = expand %w {shape = (B, 4)}",
            "%b = mul %x, %a",
            "%n = expand %m {shape = (B, 4)}",
            "%y = where %n, %b, %x",
        ],
        ["%b = mul %x, %w", "%y = where %m, %b, %x"],
    )


def test_no_expand_dropped_that_gives_the_shape() -> None:
    keeps("%x: f32[1, 4], %w: f32[4]", "%a = expand %x {shape = (3, 4)}", "%y = mul %a, %w")
    keeps("%x: bf16[B, 4], %w: f32[]", "%a = expand %w {shape = (B, 4)}", "%y = eq %a, %x")


def test_slices_join() -> None:
    rewrites(
        "%x: f32[B, 12]",
        [
            "%a = slice %x {axis = 1, stop = 12}",
            "%b = slice %a {axis = 1, start = 2, stop = 10}",
            "%y = slice %b {axis = 1, start = 1, stop = 7, step = 2}",
        ],
        ["%y = slice %x {axis = 1, start = 3, stop = 9, step = 2}"],
    )
    rewrites("%x: f32[B, 12]", ["%y = slice %x {axis = 0, stop = B}"], [], "%x")


def test_no_joining_of_slices_with_a_step_or_of_other_axes() -> None:
    stepped = "%a = slice %x {axis = 1, start = 0, stop = 12, step = 2}"
    keeps("%x: f32[4, 12]", stepped, "%y = slice %a {axis = 1, start = 1, stop = 4}")
    keeps(
        "%x: f32[4, 12]",
        "%a = slice %x {axis = 1, start = 2, stop = 9}",
        "%y = slice %a {axis = 0, start = 1, stop = 4}",
    )


def test_concat_of_one_and_empty_pad_go() -> None:
    rewrites("%x: f32[B, 4]", ["%y = concat [%x] {axis = 1}"], [], "%x")
    rewrites("%x: f32[B, 4]", ["%y = pad %x {axis = 1}"], [], "%x")


def test_slice_scatters_join() -> None:
    rewrites(
        "%x: f32[B, 8], %s: f32[B, 2]",
        [
            "%all = slice %x {axis = 0, stop = B}",
            "%a = slice %all {axis = 1, start = 2, stop = 7}",
            "%b = slice_scatter %a, %s {axis = 1, start = 1, stop = 3}",
            "%d = slice_scatter %all, %b {axis = 1, start = 2, stop = 7}",
            "%y = slice_scatter %x, %d {axis = 0, stop = B}",
        ],
        ["%y = slice_scatter %x, %s {axis = 1, start = 3, stop = 5}"],
    )


# -- arithmetic -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["add", "mul", "maximum", "minimum", "eq", "ne"])
def test_scalars_stand_on_the_right(name: str) -> None:
    rewrites(
        "%x: f32[B, 3]",
        [scalar("0.25"), f"%y = {name} %c, %x"],
        [scalar("0.25"), f"%y = {name} %x, %c"],
    )


@pytest.mark.parametrize(("name", "mirrored"), [("lt", "gt"), ("ge", "le")])
def test_comparisons_are_mirrored(name: str, mirrored: str) -> None:
    rewrites(
        "%x: f32[B, 3]",
        [scalar("0.25"), f"%y = {name} %c, %x"],
        [scalar("0.25"), f"%y = {mirrored} %x, %c"],
    )


def test_no_swapping_of_subtraction() -> None:
    keeps("%x: f32[B, 3]", scalar("0.25"), "%y = sub %c, %x")


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("line", ["mul %c, %x", "mul %x, %c", "div %x, %c", "pow %x, %c"])
def test_one_is_neutral(line: str, dtype: str) -> None:
    rewrites(f"%x: {dtype}[B, 3]", [scalar("1.0", "f64"), f"%y = {line}"], [], "%x")


def test_zero_is_neutral_where_it_keeps_the_sign_of_zero() -> None:
    rewrites("%x: i64[B, 3]", [scalar("0", "i64"), "%y = add %c, %x"], [], "%x")
    rewrites("%x: f32[B, 3]", [scalar("0.0"), "%y = sub %x, %c"], [], "%x")
    rewrites("%x: f32[B, 3]", [scalar("-0.0"), "%y = add %x, %c"], [], "%x")


def test_the_first_of_one_position_is_an_offset_of_zero() -> None:
    """A decode step adds ``arange(1)`` to the number of tokens in its cache."""
    at = "%i = iota {length = 1}"
    rewrites("%x: i64[]", [at, "%y = add %i, %x"], ["%y = reshape %x {shape = (1,)}"])
    rewrites("%x: i64[1]", [at, "%y = add %x, %i"], [], "%x")
    wide = ["%i = iota {length = 1, start = 4}", "%y = add %i, %x"]
    after = ["%c = full {value = 4, shape = (1,), dtype = i64}", "%y = add %c, %x"]
    rewrites("%x: i64[B]", wide, after)


def test_no_constant_for_one_position_that_is_not_an_integer() -> None:
    keeps("%x: f32[B]", "%i = iota {length = 1, dtype = f32}", "%y = add %x, %i")


def test_no_dropping_of_zero_added_to_a_float() -> None:
    """``-0.0 + 0.0`` is 0.0."""
    keeps("%x: f32[B, 3]", scalar("0.0"), "%y = add %x, %c")
    keeps("%x: f32[B, 3]", scalar("-0.0"), "%y = sub %x, %c")


def test_no_neutral_element_that_changes_the_type() -> None:
    keeps("%x: i64[B, 3]", scalar("1.0"), "%y = pow %x, %c")


def test_signs() -> None:
    x = "%x: f32[B, 3], %z: f32[B, 3]"
    rewrites(x, [scalar("-1.0"), "%y = mul %x, %c"], ["%y = neg %x"])
    rewrites(x, ["%a = neg %x", "%y = neg %a"], [], "%x")
    rewrites(x, ["%a = neg %x", "%y = abs %a"], ["%y = abs %x"])
    rewrites(x, ["%a = neg %x", "%y = add %z, %a"], ["%y = sub %z, %x"])
    rewrites(x, ["%a = neg %x", "%y = add %a, %z"], ["%y = sub %z, %x"])
    rewrites(x, ["%a = neg %x", "%y = sub %z, %a"], ["%y = add %z, %x"])


@pytest.mark.parametrize("dtype", ["f64", "f32", "bf16", "f16"])
def test_square_is_a_product(dtype: str) -> None:
    rewrites(f"%x: {dtype}[B, 3]", [scalar("2", "i64"), "%y = pow %x, %c"], ["%y = mul %x, %x"])


@pytest.mark.parametrize("dtype", ["f64", "f32", "bf16"])
@pytest.mark.parametrize(
    ("power", "name"), [("0.5", "sqrt"), ("-0.5", "rsqrt"), ("-1.0", "reciprocal")]
)
def test_roots_where_torch_takes_roots(dtype: str, power: str, name: str) -> None:
    rewrites(f"%x: {dtype}[B, 3]", [scalar(power, "f64"), "%y = pow %x, %c"], [f"%y = {name} %x"])


def test_no_roots_in_half_precision_where_torch_takes_powers() -> None:
    keeps("%x: f16[B, 3]", scalar("-0.5", "f64"), "%y = pow %x, %c")
    keeps("%x: f32[B, 3], %p: f32[3]", "%y = pow %x, %p")


def test_dims_of_one_that_einsum_moves_are_not_needed() -> None:
    rewrites(
        "%x: f32[B, 3, S, 5]",
        [
            "%a = reshape %x {shape = (B, 3, S, 5, 1)}",
            "%b = permute %a {dims = (0, 1, 3, 2, 4)}",
            "%y = reshape %b {shape = (<3*B>, 5, S)}",
        ],
        ["%p = permute %x {dims = (0, 1, 3, 2)}", "%y = reshape %p {shape = (<3*B>, 5, S)}"],
    )
    rewrites(
        "%x: f32[6, S, 5]",
        [
            "%a = reshape %x {shape = (2, 3, S, 1, 5)}",
            "%b = permute %a {dims = (0, 1, 2, 4, 3)}",
            "%y = reshape %b {shape = (2, 3, S, 5)}",
        ],
        ["%y = reshape %x {shape = (2, 3, S, 5)}"],
    )
    keeps(
        "%x: f32[6, 5]",
        "%a = reshape %x {shape = (2, 3, 1, 5)}",
        "%b = permute %a {dims = (1, 0, 2, 3)}",
        "%y = reshape %b {shape = (6, 5)}",
    )


def test_a_product_with_a_transposed_weight_is_a_linear() -> None:
    rewrites(
        "%x: f32[B, S, 6], %w: f32[5, 6]",
        ["%t = permute %w {dims = (1, 0)}", "%y = matmul %x, %t"],
        ["%y = linear %x, %w"],
    )
    for arguments, dims in (
        ("%x: f32[B, 2, 6], %w: f32[B, 5, 6]", "(0, 2, 1)"),
        ("%x: f32[4, S], %w: f32[8, T]", "(1, 0)"),  # not known to be equal
        ("%x: f32[4, 1], %w: f32[8, 1]", "(1, 0)"),
    ):
        keeps(arguments, f"%t = permute %w {{dims = {dims}}}", "%y = matmul %x, %t")
    keeps("%x: f32[B, 6], %w: f32[6, 5]", "%y = matmul %x, %w")


def test_logic() -> None:
    x = "%x: bool[B, 3], %z: bool[B, 3]"
    rewrites(x, ["%y = bitwise_and %x, %z"], ["%y = logical_and %x, %z"])
    rewrites(x, ["%y = bitwise_or %x, %z"], ["%y = logical_or %x, %z"])
    rewrites(x, ["%a = bitwise_not %x", "%y = logical_not %a"], [], "%x")
    rewrites(x, ["%y = where %x, %z, %z"], [], "%z")


def test_no_logic_for_bits_of_integers() -> None:
    keeps("%x: i64[B, 3], %z: i64[B, 3]", "%y = bitwise_and %x, %z")


def test_empty_operands_of_a_concat_go() -> None:
    rewrites(
        "%x: f32[B, 4], %z: f32[B, 3], %e: f32[B, 0]",
        ["%y = concat [%x, %e, %z] {axis = 1}"],
        ["%y = concat [%x, %z] {axis = 1}"],
    )


def test_filling_a_tensor_slice_by_slice_is_a_concat() -> None:
    """How deepseek_v3 builds its keys, once functional."""
    rewrites(
        "%x: f32[B, 4], %z: f32[B, 3]",
        [
            "%new = full {value = 0.0, shape = (B, 7), dtype = f32}",
            "%a = slice_scatter %new, %x {axis = 1, stop = 4}",
            "%y = slice_scatter %a, %z {axis = 1, start = 4, stop = 7}",
        ],
        ["%y = concat [%x, %z] {axis = 1}"],
    )


@pytest.mark.parametrize("start", [2, 5])
def test_no_concat_of_slices_with_gaps_or_overlaps(start: int) -> None:
    keeps(
        "%x: f32[B, 4], %z: f32[B, 3]",
        "%new = full {value = 1.0, shape = (B, 8), dtype = f32}",
        "%a = slice_scatter %new, %x {axis = 1, stop = 4}",
        f"%y = slice_scatter %a, %z {{axis = 1, start = {start}, stop = {start + 3}}}",
    )


def test_assignment_at_a_known_place() -> None:
    rewrites(
        "%x: f32[B, 4, 3], %z: f32[3]",
        [
            "%i = full {value = -1, shape = (1,), dtype = i64}",
            "%y = index_put %x, [%i], %z {axes = (1,)}",
        ],
        [
            "%e = expand %z {shape = (B, 1, 3)}",
            "%y = slice_scatter %x, %e {axis = 1, start = 3, stop = 4}",
        ],
    )


def test_replacing_what_one_operand_gave() -> None:
    rewrites(
        "%x: f32[B, 4], %z: f32[B, 3], %n: f32[B, 3]",
        [
            "%a = concat [%x, %z, %x] {axis = 1}",
            "%y = slice_scatter %a, %n {axis = 1, start = 4, stop = 7}",
        ],
        ["%y = concat [%x, %n, %x] {axis = 1}"],
    )


@pytest.mark.parametrize("start", [0, 1, 2])
def test_one_of_the_pairs_is_every_other_element(start: int) -> None:
    """How ``view_as_complex(x.reshape(..., 2))`` reads its parts."""
    rewrites(
        "%x: f32[B, 12]",
        [
            "%a = reshape %x {shape = (B, 4, 3)}",
            f"%b = slice %a {{axis = 2, start = {start}, stop = {start + 1}}}",
            "%y = reshape %b {shape = (B, 4)}",
        ],
        [f"%y = slice %x {{axis = 1, start = {start}, stop = {start + 10}, step = 3}}"],
    )


def test_every_other_element_of_a_row_that_was_split_at_once() -> None:
    """In float32 no cast stands between the split into heads and the one into pairs."""
    rewrites(
        "%x: f32[B, 24]",
        [
            "%a = reshape %x {shape = (B, 3, 4, 2)}",
            "%b = slice %a {axis = 3, start = 1, stop = 2}",
            "%y = reshape %b {shape = (B, 3, 4)}",
        ],
        [
            "%h = reshape %x {shape = (B, 3, 8)}",
            "%y = slice %h {axis = 2, start = 1, stop = 8, step = 2}",
        ],
    )


def test_no_stride_for_several_of_the_parts() -> None:
    keeps(
        "%x: f32[B, 12]",
        "%a = reshape %x {shape = (B, 4, 3)}",
        "%b = slice %a {axis = 2, start = 1, stop = 3}",
        "%y = reshape %b {shape = (B, 8)}",
    )


def test_ones_in_every_place_are_neutral() -> None:
    one = "%c = full {value = 1.0, shape = (B, 3), dtype = f32}"
    rewrites("%x: f32[B, 3]", [one, "%y = mul %c, %x"], [], "%x")
    keeps("%x: f32[3], %z: f32[B]", one, "%y = mul %c, %x")
