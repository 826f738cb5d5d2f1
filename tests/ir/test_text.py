"""The text form: names, origins and attributes come back as they were."""

from __future__ import annotations

from typing import Any

import pytest

from fuseline.ir.core import Func, IRError, Origin
from fuseline.ir.names import settle
from fuseline.ir.ops.create import Full
from fuseline.ir.ops.pointwise import Neg
from fuseline.ir.text import ParseError, parse_func, print_func
from fuseline.ir.types import DType, IntType, Range, symbol, tensor_type
from fuseline.ir.verify import verify


def again(func: Func) -> Func:
    """The func from its own text, which must print as that."""
    text = print_func(func)
    found = parse_func(text)
    verify(found)
    assert print_func(found) == text
    return found


def test_names_of_any_characters_come_back() -> None:
    func = Func("model of/4 parts")
    x = func.add_arg(tensor_type(DType.F32, 4), '/in:0 "a\\b"\u00e9\n')
    op = func.append(Neg(x))
    op.y.hint = "0"
    func.set_returns([op.y])
    found = again(func)
    assert found.name == func.name
    assert found.args[0].hint == x.hint
    assert found.returns[0].hint == "0"


def test_what_an_input_is_called_and_why_it_stays_a_size_come_back() -> None:
    func = Func("f")
    func.add_arg(IntType(symbol("n")), "n", Origin("input", "n", pinned="strides"))
    func.add_arg(tensor_type(DType.F32, 4), "x", Origin("input", "the x"))
    func.add_arg(tensor_type(DType.F32, 4), "p", Origin("param", "p", "0a1b", "tied"))
    func.add_arg(tensor_type(DType.I64), "k", Origin("number", "k", limits=Range(-3, 5)))
    func.add_arg(tensor_type(DType.I64), "plain", Origin("input", "plain"))
    assert [a.origin for a in again(func).args] == [a.origin for a in func.args]
    assert "%plain: i64[])" in print_func(func)


@pytest.mark.parametrize("name", ["inf", "nan", "true", "none", "f32", "func", "S"])
def test_a_size_may_be_called_as_a_word_of_the_text(name: str) -> None:
    func = Func("f")
    func.add_arg(tensor_type(DType.F32, symbol(name)), "x")
    func.append(Full(value=symbol(name), shape=(), dtype=DType.I64))
    (op,) = again(func).ops
    assert op.attributes["value"] == symbol(name)


def test_a_func_with_an_extent_that_no_tensor_has_is_refused() -> None:
    func = Func("f")
    func.add_arg(tensor_type(DType.F32, -4), "x")
    with pytest.raises(IRError, match=r"%x is f32\[-4\]: no tensor has such an extent"):
        verify(func)
    func = Func("f")
    func.append(Full(value=1, shape=(2**63,), dtype=DType.I64))
    with pytest.raises(IRError, match=r"no tensor has such an extent"):
        verify(func)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("%y = exp %x : f32[5]", r"found f32\[5\], expected the inferred type f32\[4\]"),
        ("%y = add %x, %z", r"shapes \[4\] and \[3, 3\] do not broadcast"),
        (
            "%y = pointwise [%x] {body = func @r(%a: f32[3]) { return %a }}",
            r"operands f32\[4\], the body takes f32\[3\]",
        ),
    ],
)
def test_types_are_told_as_the_text_has_them(line: str, said: str) -> None:
    with pytest.raises(ParseError, match=said):
        parse_func(f"func @f(%x: f32[4], %z: f32[3, 3]) {{\n  {line}\n}}")


def named(text: str) -> list[str]:
    return [value.hint for op in parse_func(text) for value in op.results]


def test_each_value_gets_a_name_of_its_own_and_keeps_it() -> None:
    func = Func("f")
    x = func.add_arg(tensor_type(DType.F32, 4), "y")
    first = func.append(Neg(x))
    second = func.append(Neg(first.y))
    func.set_returns([second.y])
    settle(func)
    assert [x.hint, first.y.hint, second.y.hint] == ["y", "y.1", "y.2"]
    known = frozenset(func.ops)
    new = Neg(x)
    func.edit(before=first, insert=[new])
    another = Neg(x)
    another.y.hint = "y.2"
    func.edit(before=new, insert=[another])
    settle(func, known)
    assert [first.y.hint, second.y.hint] == ["y.1", "y.2"]
    assert [another.y.hint, new.y.hint] == ["y.3", "y.4"]
    assert named(print_func(func)) == ["y.3", "y.4", "y.1", "y.2"]


def test_readers_are_in_program_order() -> None:
    func = Func("f")
    x = func.add_arg(tensor_type(DType.F32, 4), "x")
    last = func.append(Neg(x))
    first = Neg(x)
    func.edit(before=last, insert=[first])
    assert func.users(x) == (first, last)


OPEN = "func @f(%x: f32[4]) {\n"
MIXED = "func @f(%x: f32[3, 3], %w: bf16[3, 3]) {\n"


@pytest.mark.parametrize(
    ("text", "line", "column", "expected"),
    [
        ("func @f(%x: f32[4) {", 1, 17, "a dim"),
        ('func @f(%"x\\q": f32[4]) {', 1, 10, "as JSON has them"),
        ("func @f(%x: f32[S]) where in in 0..4 {", 1, 27, "name of a symbol"),
        ("func @f(%x: f32[S]) where S in 4..3 {", 1, 35, "upper end of at least 4"),
        (f"func @f(%x: f32[S]) where S in {'1' * 500}.. {{", 1, 32, "lower end"),
        (f"{OPEN}  %y = full {{value = a.b, dtype = f32}}", 2, 22, "an attribute value"),
        (f"{OPEN}  %y = full {{value = {'9' * 5000}, dtype = f32}}", 2, 22, "400 digits"),
        (f"{OPEN}  %y = full {{value = 1, shape = {'(' * 9000}", 2, None, "less within"),
        (f"{OPEN}  %y = permute %x {{dims = (0, 5)}}", 2, 8, "a valid permute"),
        (
            f"{OPEN}  %y = permute %x {{dims = 3}}",
            2,
            27,
            "a tuple, each an integer",
        ),
        (f"{OPEN}  %y = full {{value = 1, dtype = 1}}", 2, 33, "element type for dtype"),
        (f'{OPEN}  %y = gelu %x {{approximate = "no"}}', 2, 31, "'none' or 'tanh' for approximate"),
        ("func @f(%x: f32[B, -4]) {", 1, 20, "an extent from 0 to 9223372036854775807"),
        ("func @f(%x: f32[9223372036854775808]) {", 1, 17, "an extent from 0"),
        ("func @f(%x: f32[S]) where S in -5..-1 {", 1, 32, "a range with extents from 0"),
        (f"{OPEN}  %y = iota {{length = -3}}", 2, 8, "extents from 0"),
        (f"{OPEN}  %y = rms_nrom %x", 2, 8, "a declared op, such as rms_norm"),
        (f"{MIXED}  %y = linear %x, %w", 2, 8, "a valid linear"),
        (f"{MIXED}  %y = matmul %x, %w", 2, 8, "a valid matmul"),
        (f"{OPEN}  %y = exp %x, %x\n  return %y\n}}", 2, 14, "no more operands (exp takes 1)"),
        (f"{OPEN}  %y = exp %x %x\n  return %y\n}}", 2, 15, "an op such as"),
        (f"{OPEN}  %y exp %x\n", 2, 6, "'='"),
        (f"{OPEN}  %y = exp %x\n  %y = exp %x\n", 3, 3, "(%y is already defined)"),
        (f"{OPEN}  %y, %z = exp %x\n", 2, 7, "1 result name for exp, not 2"),
        (f"{OPEN}  %y = full {{value = inf, dtype = i64}}", 2, 8, "a valid full"),
        (f"{OPEN}  %y = full {{value = {2**63}, dtype = i64}}", 2, 8, "a valid full"),
    ],
)
def test_what_is_no_func_is_told(text: str, line: int, column: Any, expected: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_func(text)
    assert (caught.value.line, expected in caught.value.expected) == (line, True), caught.value
    assert column is None or caught.value.column == column, caught.value
