"""Rotary embeddings in every spelling become one op with the same bits, or a miss with a reason."""

from __future__ import annotations

import pytest

from fuseline.passes.canonicalize import Canonicalize
from fuseline.passes.cse import Cse
from fuseline.passes.dce import Dce
from fuseline.passes.raise_rope import RaiseRope
from fuseline.testing import assert_no_rewrite, assert_rewrites

RAISE = [Canonicalize(), Cse(), Dce(), RaiseRope()]
DTYPES = ("f32", "bf16", "f16")
X = "%x: {0}[B, 4, S, 16]"
FULL = "%cos: {0}[B, 1, S, 16], %sin: {0}[B, 1, S, 16]"
HALF = "%cos: {0}[B, 1, S, 8], %sin: {0}[B, 1, S, 8]"


def func(arguments: str, *lines: str) -> str:
    """The text of a func that returns %y."""
    return "\n".join([f"func @f({arguments}) {{", *lines, "return %y }"])


def rope(
    dtype: str, before: list[str], after: str, tables: str = FULL, x: str = X, keep: str = ""
) -> None:
    """The lines become one op with the given operands and attributes, ``keep`` before it."""
    arguments = f"{x}, {tables}".format(dtype)
    kept = [keep] if keep else []
    assert_rewrites(RAISE, func(arguments, *before), func(arguments, *kept, f"%y = rope {after}"))


def part(name: str, start: int, stop: int, step: int = 1, of: str = "%x") -> str:
    """The line of a slice of the last dim."""
    return f"{name} = slice {of} {{axis = 3, start = {start}, stop = {stop}, step = {step}}}"


def halves(x: str = "%x", start: int = 0, width: int = 16) -> list[str]:
    """Lines of %t, the turned row of ``rotate_half``."""
    middle = start + width // 2
    return [
        part("%x1", start, middle, of=x),
        part("%x2", middle, start + width, of=x),
        "%m = neg %x2",
        "%t = concat [%m, %x1] {axis = 3}",
    ]


def strided(dtype_shape: str = "B, 4, S, 16", of: str = "%x") -> list[str]:
    """Lines of %t, the turned row of interleaved pairs, as ``stack(...).flatten(-2)``."""
    *lead, width = dtype_shape.split(", ")
    pair = f"({', '.join(lead)}, {int(width) // 2}, 1)"
    return [
        part("%x1", 0, int(width) - 1, 2, of),
        part("%x2", 1, int(width), 2, of),
        "%m = neg %x2",
        f"%m1 = reshape %m {{shape = {pair}}}",
        f"%p1 = reshape %x1 {{shape = {pair}}}",
        "%s = concat [%m1, %p1] {axis = 4}",
        f"%t = reshape %s {{shape = ({dtype_shape})}}",
    ]


SUM = ["%a = mul %x, %cos", "%b = mul %t, %sin", "%y = add %a, %b"]


# -- whole rows -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotate_half(dtype: str) -> None:
    rope(dtype, [*halves(), *SUM], "%x, %cos, %sin {width = 16}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_interleaved_pairs(dtype: str) -> None:
    rope(dtype, [*strided(), *SUM], '%x, %cos, %sin {style = "interleaved", width = 16}')


def test_factors_and_products_in_any_order() -> None:
    lines = ["%a = mul %cos, %x", "%b = mul %sin, %t", "%y = add %b, %a"]
    rope("bf16", [*halves(), *lines], "%x, %cos, %sin {width = 16}")


@pytest.mark.parametrize(
    "lines",
    [
        ["%n = neg %x1", "%t = concat [%x2, %n] {axis = 3}", *SUM],
        ["%n = neg %x2", "%t = concat [%n, %x1] {axis = 3}", *SUM[:2], "%y = sub %a, %b"],
        [
            "%n = neg %x2",
            "%t = concat [%n, %x1] {axis = 3}",
            SUM[0],
            "%w = neg %sin",
            "%b = mul %t, %w",
            "%y = add %a, %b",
        ],
    ],
)
def test_rotation_the_other_way(lines: list[str]) -> None:
    """nanochat turns (a, b) to (b, -a)."""
    sliced = [part("%x1", 0, 8), part("%x2", 8, 16)]
    rope("bf16", [*sliced, *lines], "%x, %cos, %sin {width = 16, sign = -1}")


def test_tables_by_token_first() -> None:
    """``[B, S, H, D]`` rows with tables ``[S, 1, D]``."""
    rope(
        "bf16",
        [*halves(), *SUM],
        "%x, %cos, %sin {width = 16}",
        "%cos: {0}[S, 1, 16], %sin: {0}[S, 1, 16]",
        "%x: {0}[B, S, 4, 16]",
    )


def test_repeated_tables_are_read_once() -> None:
    """glm4 repeats each column of half a table; others concatenate it with itself."""
    spread = [
        line
        for name in ("cos", "sin")
        for line in (
            f"%{name}1 = reshape %{name} {{shape = (B, 1, S, 8, 1)}}",
            f"%{name}2 = expand %{name}1 {{shape = (B, 1, S, 8, 2)}}",
            f"%{name}3 = reshape %{name}2 {{shape = (B, 1, S, 16)}}",
        )
    ]
    total = ["%a = mul %x, %cos3", "%b = mul %t, %sin3", "%y = add %a, %b"]
    attributes = '%x, %cos, %sin {style = "interleaved", table = "half", width = 16}'
    rope("bf16", [*spread, *strided(), *total], attributes, HALF)
    doubled = [f"%{n}3 = concat [%{n}, %{n}] {{axis = 3}}" for n in ("cos", "sin")]
    attributes = '%x, %cos, %sin {table = "half", width = 16}'
    rope("bf16", [*doubled, *halves(), *total], attributes, HALF)


# -- half by half ---------------------------------------------------------------------------


def by_half(first: str, second: str) -> list[str]:
    """Lines of %u and %v, both halves of the result; %x1 and %x2 are the pairs' elements."""
    return [
        "%a = mul %x1, %cos",
        "%b = mul %x2, %sin",
        f"%u = {first} %a, %b",
        "%c = mul %x2, %cos",
        "%d = mul %x1, %sin",
        f"%v = {second} %c, %d",
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("signs", "sign"), [(("sub", "add"), 1), (("add", "sub"), -1)])
def test_halves_of_the_result(dtype: str, signs: tuple[str, str], sign: int) -> None:
    """gpt_oss."""
    rope(
        dtype,
        [
            part("%x1", 0, 8),
            part("%x2", 8, 16),
            *by_half(*signs),
            "%y = concat [%u, %v] {axis = 3}",
        ],
        f'%x, %cos, %sin {{table = "half", width = 16, sign = {sign}}}',
        HALF,
    )


def test_pairs_side_by_side_written_as_halves() -> None:
    """deepseek_v3 with rope_interleave."""
    rope(
        "bf16",
        [
            part("%x1", 0, 15, 2),
            part("%x2", 1, 16, 2),
            *by_half("sub", "add"),
            "%y = concat [%u, %v] {axis = 3}",
        ],
        '%x, %cos, %sin {style = "deinterleave", table = "half", width = 16}',
        HALF,
    )


def test_half_of_a_repeated_table_is_what_it_repeats() -> None:
    """deepseek_v3 repeats the angles, takes cosines, and reads the first half of these."""
    doubled = [
        line
        for name in ("cos", "sin")
        for line in (
            f"%{name}2 = concat [%{name}1, %{name}1] {{axis = 3}}",
            f"%{name} = slice %{name}2 {{axis = 3, start = 0, stop = 8}}",
        )
    ]
    rope(
        "bf16",
        [
            *doubled,
            part("%x1", 0, 15, 2),
            part("%x2", 1, 16, 2),
            *by_half("sub", "add"),
            "%y = concat [%u, %v] {axis = 3}",
        ],
        '%x, %cos1, %sin1 {style = "deinterleave", table = "half", width = 16}',
        HALF.replace("%cos", "%cos1").replace("%sin", "%sin1"),
    )


def test_pairs_side_by_side_written_so() -> None:
    stack = [f"%{n}1 = reshape %{n} {{shape = (B, 4, S, 8, 1)}}" for n in ("u", "v")]
    rope(
        "bf16",
        [
            part("%x1", 0, 15, 2),
            part("%x2", 1, 16, 2),
            *by_half("sub", "add"),
            *stack,
            "%s = concat [%u1, %v1] {axis = 4}",
            "%y = reshape %s {shape = (B, 4, S, 16)}",
        ],
        '%x, %cos, %sin {style = "interleaved", table = "half", width = 16}',
        HALF,
    )


def test_halves_of_full_tables() -> None:
    tables = [
        part(f"%{name}{i + 1}", 8 * i, 8 * i + 8, of=f"%{name}")
        for name in ("cos", "sin")
        for i in range(2)
    ]
    rope(
        "bf16",
        [
            part("%x1", 0, 8),
            part("%x2", 8, 16),
            *tables,
            "%a = mul %x1, %cos1",
            "%b = mul %x2, %sin1",
            "%u = sub %a, %b",
            "%c = mul %x2, %cos2",
            "%d = mul %x1, %sin2",
            "%v = add %c, %d",
            "%y = concat [%u, %v] {axis = 3}",
        ],
        "%x, %cos, %sin {width = 16}",
    )


def test_tables_that_are_halves_of_one() -> None:
    """Cosines and sines side by side in one table are paired too, but not as a row."""
    rope(
        "bf16",
        [
            part("%cos", 0, 8, of="%table"),
            part("%sin", 8, 16, of="%table"),
            part("%x1", 0, 8),
            part("%x2", 8, 16),
            *by_half("sub", "add"),
            "%y = concat [%u, %v] {axis = 3}",
        ],
        '%x, %cos, %sin {table = "half", width = 16}',
        "%table: {0}[B, 1, S, 16]",
        keep="\n".join([part("%cos", 0, 8, of="%table"), part("%sin", 8, 16, of="%table")]),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_deinterleaved_by_views(dtype: str) -> None:
    """``view(..., 8, 2).transpose(-1, -2).reshape(..., 16)``, then rotate_half."""
    views = [
        "%r1 = reshape %x {shape = (B, 4, S, 8, 2)}",
        "%r2 = permute %r1 {dims = (0, 1, 2, 4, 3)}",
        "%r = reshape %r2 {shape = (B, 4, S, 16)}",
    ]
    total = ["%a = mul %r, %cos", "%b = mul %t, %sin", "%y = add %a, %b"]
    rope(
        dtype,
        [*views, *halves("%r"), *total],
        '%x, %cos, %sin {style = "deinterleave", width = 16}',
    )


def test_deinterleaved_by_views_of_one_head() -> None:
    """The views pass over the dim of heads, which is 1 in the shared key of MLA."""
    views = [
        "%r1 = reshape %x {shape = (B, 1, S, 8, 2)}",
        "%r2 = permute %r1 {dims = (0, 1, 2, 4, 3)}",
        "%r = reshape %r2 {shape = (B, 1, S, 16)}",
    ]
    total = ["%a = mul %r, %cos", "%b = mul %t, %sin", "%y = add %a, %b"]
    rope(
        "bf16",
        [*views, *halves("%r"), *total],
        '%h, %cos, %sin {style = "deinterleave", width = 16}',
        x="%x: {0}[B, S, 16]",
        keep="%h = reshape %x {shape = (B, 1, S, 16)}",
    )


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_complex_product(dtype: str) -> None:
    """llama4, deepseek_v2: the parts of complex numbers, as the importer spells them."""
    wide = ["%w = cast %x {dtype = f32}"] if dtype != "f32" else []
    end = [f"%y = cast %e {{dtype = {dtype}}}"] if dtype != "f32" else []
    lines = [
        *wide,
        "%p = reshape %w {shape = (B, 4, S, 8, 2)}",
        "%p1 = slice %p {axis = 4, stop = 1}",
        "%x1 = reshape %p1 {shape = (B, 4, S, 8)}",
        "%p2 = slice %p {axis = 4, start = 1, stop = 2}",
        "%x2 = reshape %p2 {shape = (B, 4, S, 8)}",
        *by_half("sub", "add"),
        "%u1 = reshape %u {shape = (B, 4, S, 8, 1)}",
        "%v1 = reshape %v {shape = (B, 4, S, 8, 1)}",
        "%s = concat [%u1, %v1] {axis = 4}",
        "%e = reshape %s {shape = (B, 4, S, 16)}",
        *end,
    ]
    if dtype == "f32":
        lines = [line.replace("%w", "%x").replace("%e =", "%y =") for line in lines]
    rounding = "" if dtype == "f32" else ", round = false"
    rope(
        dtype,
        lines,
        f'%x, %cos, %sin {{style = "interleaved", table = "half", width = 16{rounding}}}',
        "%cos: f32[B, 1, S, 8], %sin: f32[B, 1, S, 8]",
    )


# -- parts of a row, and rounding -----------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_first_part_of_the_head(dtype: str) -> None:
    """glm4_moe, minimax_m2, phi."""
    rope(
        dtype,
        [
            part("%x0", 0, 8),
            part("%rest", 8, 16),
            *halves("%x", 0, 8),
            "%a = mul %x0, %cos",
            "%b = mul %t, %sin",
            "%e = add %a, %b",
            "%y = concat [%e, %rest] {axis = 3}",
        ],
        "%x, %cos, %sin {width = 8}",
        HALF,
    )


def test_middle_part_of_the_head() -> None:
    rope(
        "bf16",
        [
            part("%first", 0, 4),
            part("%x0", 4, 12),
            part("%last", 12, 16),
            *halves("%x0", 0, 8),
            "%a = mul %x0, %cos",
            "%b = mul %t, %sin",
            "%e = add %a, %b",
            "%y = concat [%first, %e, %last] {axis = 3}",
        ],
        "%x, %cos, %sin {start = 4, width = 8}",
        HALF,
    )


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_rotation_in_float32(dtype: str) -> None:
    """cohere, ernie4_5: nothing is rounded in between."""
    wide = ["%a = mul %w, %cos", "%b = mul %t, %sin", "%e = add %a, %b"]
    rope(
        dtype,
        [
            "%w = cast %x {dtype = f32}",
            *strided(of="%w"),
            *wide,
            f"%y = cast %e {{dtype = {dtype}}}",
        ],
        '%x, %cos, %sin {style = "interleaved", width = 16, round = false}',
    )


def test_rotation_widened_by_its_tables() -> None:
    """Tables in float32: the turned row is made in bfloat16, and widened by promotion."""
    arguments = f"{X}, %cos: f32[B, 1, S, 16], %sin: f32[B, 1, S, 16]".format("bf16")
    assert_rewrites(
        RAISE,
        func(arguments, *halves(), *SUM),
        func(arguments, "%w = cast %x {dtype = f32}", "%y = rope %w, %cos, %sin {width = 16}"),
    )
    assert_rewrites(
        RAISE,
        func(arguments, *halves(), *SUM[:2], "%e = add %a, %b", "%y = cast %e {dtype = bf16}"),
        func(arguments, "%y = rope %x, %cos, %sin {width = 16, round = false}"),
    )


def test_trailing_part_in_float32() -> None:
    rope(
        "bf16",
        [
            part("%pass", 0, 8),
            part("%x0", 8, 16),
            "%w = cast %x0 {dtype = f32}",
            *halves("%w", 0, 8),
            "%a = mul %w, %cos",
            "%b = mul %t, %sin",
            "%e = add %a, %b",
            "%c = cast %e {dtype = bf16}",
            "%y = concat [%pass, %c] {axis = 3}",
        ],
        "%x, %cos, %sin {start = 8, width = 8, round = false}",
        HALF,
    )


def test_concat_with_another_value_stays() -> None:
    """The keys of MLA: the rest of the row comes from elsewhere."""
    arguments = f"{X}, {FULL}, %n: {{0}}[B, 4, S, 6]".format("bf16")
    tail = "%y = concat [%n, %e] {axis = 3}"
    assert_rewrites(
        RAISE,
        func(arguments, *halves(), *SUM[:2], "%e = add %a, %b", tail),
        func(arguments, "%e = rope %x, %cos, %sin {width = 16}", tail),
    )


def test_rotated_part_with_another_reader_stays() -> None:
    arguments = f"{X}, {HALF}".format("bf16")
    head = [part("%x0", 0, 8), part("%rest", 8, 16)]
    turn = [*halves("%x0", 0, 8), "%a = mul %x0, %cos", "%b = mul %t, %sin", "%e = add %a, %b"]
    tail = ["%z = concat [%e, %rest] {axis = 3}", "%s = sum %e {axes = (3,), keepdim = true}"]
    last = "%y = add %z, %s"
    assert_rewrites(
        RAISE,
        func(arguments, *head, *turn, *tail, last),
        func(arguments, *head, "%e = rope %x0, %cos, %sin {width = 8}", *tail, last),
    )


# -- misses ---------------------------------------------------------------------------------


def miss(lines: list[str], reason: str | None, tables: str = FULL) -> None:
    arguments = f"{X}, %z: {{0}}[B, 4, S, 16], {tables}".format("bf16")
    assert_no_rewrite(RaiseRope(), func(arguments, *lines), reason)


def test_no_rotation_of_two_rows() -> None:
    lines = ["%a = mul %z, %cos", "%b = mul %t, %sin", "%y = add %a, %b"]
    miss(
        [*halves(), *lines],
        "the result of concat turns elements 0..16 of x, and the cosine multiplies another",
    )


def test_no_rotation_with_a_subtracted_cosine() -> None:
    lines = ["%a = mul %x, %cos", "%b = mul %t, %sin", "%y = sub %b, %a"]
    miss([*halves(), *lines], "the product with the cosine is subtracted")


def test_no_rotation_by_a_table_of_one_column() -> None:
    tables = "%cos: {0}[B, 1, S, 1], %sin: {0}[B, 1, S, 1]"
    miss([*halves(), *SUM], "does not fit a row of 16 elements", tables)


def test_no_rotation_with_other_signs() -> None:
    lines = [part("%x1", 0, 8), part("%x2", 8, 16), *by_half("add", "add")]
    miss([*lines, "%y = concat [%u, %v] {axis = 3}"], "not a rotation", HALF)


def test_no_rotation_by_different_tables() -> None:
    tables = HALF + ", %cos2: {0}[B, 1, S, 8]"
    lines = [part("%x1", 0, 8), part("%x2", 8, 16), *by_half("sub", "add")]
    lines[lines.index("%c = mul %x2, %cos")] = "%c = mul %x2, %cos2"
    miss([*lines, "%y = concat [%u, %v] {axis = 3}"], "read different tables", tables)


def test_no_rotation_of_other_pairs() -> None:
    lines = [part("%x1", 0, 8), part("%x2", 8, 16), *by_half("sub", "add")]
    lines[lines.index("%d = mul %x1, %sin")] = "%d = mul %x2, %sin"
    miss([*lines, "%y = concat [%u, %v] {axis = 3}"], "do not read the same pairs", HALF)


def test_no_word_about_other_concats_and_sums() -> None:
    miss([part("%x1", 0, 8), "%y = concat [%x1, %z] {axis = 3}"], None)
    miss(["%a = mul %x, %cos", "%b = mul %z, %sin", "%y = add %a, %b"], None)
    lines = [part("%x1", 0, 6), part("%x2", 6, 16), "%m = neg %x2"]
    miss([*lines, "%t = concat [%m, %x1] {axis = 3}", *SUM], None)
