"""Elements of tensors: symbolic ones agree with the actual ones, for every op that is followed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pytest
from torch import Tensor

from fuseline.ir.core import Func, Value
from fuseline.ir.evaluate import bind, call_reference
from fuseline.ir.text import parse_func
from fuseline.passes.masks.elements import Elements
from fuseline.passes.masks.expressions import CONDITIONS, Datum, Expression
from fuseline.passes.masks.integers import Element, Linear, new_index
from fuseline.passes.masks.predicates import FALSE, TRUE, Truth
from fuseline.testing import make_arguments, make_binding
from tests.passes.masks.numeric import Actual
from tests.passes.masks.random_masks import MaskMaker

Argument = Tensor | int


def _run(
    func: Func, arguments: Sequence[Argument], binding: Mapping[str, int] | None = None
) -> tuple[dict[Value, Tensor], Mapping[str, int]]:
    """Every value of a func, not only what it returns."""
    binding = bind(func, arguments) if binding is None else binding
    tensors = {a: t for a, t in zip(func.args, arguments, strict=True) if isinstance(t, Tensor)}
    for op in func.ops:
        results = call_reference(op, tensors, binding)
        tensors.update(zip(op.results, results, strict=True))
    return tensors, binding


def _symbolic(func: Func, value: Value) -> Expression:
    indices = [new_index(f"i{a}", extent) for a, extent in enumerate(value.shape)]
    return Elements(func).at(value, indices)


def _agrees(
    value: Value, found: Expression, tensors: Mapping[Value, Tensor], binding: Mapping[str, int]
) -> None:
    actual = tensors[value]
    for place in itertools.product(*(range(n) for n in actual.shape)):
        known = Actual({f"i{a}": i for a, i in enumerate(place)}, binding, tensors)
        assert known.value(found) == actual[place].item(), f"%{value.hint}{list(place)}: {found}"


CASES = {
    "iota": "%y = iota {length = S, start = 3, step = -2}",
    "iota from a size": "%y = iota {length = 4, start = S}",
    "full of a size": "%y = full {value = S, shape = (2, 3), dtype = i64}",
    "full of a number": "%y = full {value = -65504.0, shape = (2,), dtype = f16}",
    "add": "%y = add %i, %a",
    "sub and neg": "%n = neg %i\n%y = sub %n, %a",
    "mul by a constant": "%c = full {value = -3, dtype = i64}\n%y = mul %c, %i",
    "mul of data": "%y = mul %i, %a",
    "abs": "%n = sub %i, %a\n%y = abs %n",
    "maximum": "%y = maximum %i, %a",
    "minimum": "%y = minimum %i, %a",
    "floor_div": "%c = full {value = 3, dtype = i64}\n%y = floor_div %d, %c",
    "remainder": "%c = full {value = 3, dtype = i64}\n%y = remainder %d, %c",
    "compare": "%y = lt %i, %a",
    "equal": "%y = eq %i, %a",
    "not equal": "%y = ne %i, %a",
    "compare bools": "%l = ge %i, %a\n%y = eq %l, %m",
    "xor": "%l = ge %i, %a\n%y = bitwise_xor %l, %m",
    "logic of integers": "%y = logical_and %i, %a",
    "not": "%y = logical_not %a",
    "bitwise on integers": "%y = bitwise_and %i, %a",
    "bool as integer": "%y = cast %m {dtype = i64}",
    "integer as bool": "%y = cast %a {dtype = bool}",
    "integer to a type that wraps": "%j = iota {length = 300}\n%y = cast %j {dtype = i8}",
    "integer as float": "%y = cast %i {dtype = f32}",
    "constant as float": "%c = full {value = 7, dtype = i64}\n%y = cast %c {dtype = f16}",
    "rounding of a constant": """%c = full {value = -3.4028234663852886e+38, dtype = f32}
      %y = cast %c {dtype = bf16}""",
    "where of numbers": """%z = full {value = 0.0, dtype = f32}
      %f = full {value = -inf, dtype = f32}
      %y = where %m, %z, %f""",
    "where of integers": "%y = where %m, %i, %a",
    "where with promotion": """%z = full {value = 0.1, dtype = f32}
      %x1 = cast %x {dtype = bf16}
      %y = where %m, %x1, %z""",
    "sum of choices": """%z = full {value = 0.0, dtype = f32}
      %f = full {value = -2.5, dtype = f32}
      %l = ge %i, %a
      %p = where %m, %z, %f
      %q = where %l, %f, %z
      %y = add %p, %q""",
    "float compare": """%z = full {value = 0.0, dtype = f32}
      %f = full {value = -1.0, dtype = f32}
      %p = where %m, %z, %f
      %y = lt %p, %z""",
    "float of data": "%y = add %x, %x",
    "reshape": "%r = reshape %t {shape = (2, 6)}\n%y = reshape %r {shape = (6, 2)}",
    "reshape with units": "%y = reshape %i {shape = (1, S, 1)}",
    "reshape of an iota": "%j = iota {length = 12}\n%y = reshape %j {shape = (2, 3, 2)}",
    "reshape to flat": "%j = iota {length = 3}\n%e = expand %j {shape = (2, 3)}\n"
    "%y = reshape %e {shape = (6,)}",
    "reshape across sizes": "%r = reshape %s {shape = (<2*S>, 3)}\n"
    "%y = reshape %r {shape = (S, 6)}",
    "permute": "%y = permute %t {dims = (1, 0, 2)}",
    "expand": "%y = expand %i {shape = (3, 2, S)}",
    "slice": "%y = slice %t {axis = 1, start = 1, stop = 3}",
    "slice by step": "%j = iota {length = 9}\n"
    "%y = slice %j {axis = 0, start = 1, stop = 8, step = 3}",
    "slice by size": "%j = iota {length = <2*S>}\n"
    "%y = slice %j {axis = 0, start = S, stop = <2*S>}",
    "concat": "%j = iota {length = 2, start = 7}\n%y = concat [%j, %i, %j] {axis = 0}",
    "pad": "%y = pad %i {axis = 0, before = 2, after = 1, value = -1.0}",
    "slice_scatter": "%y = slice_scatter %t, %u {axis = 1, start = 1, stop = 2}",
    "index": "%j = iota {length = 2}\n%c = reshape %j {shape = (2, 1)}\n"
    "%k = iota {length = 3}\n%y = index %t, [%c, %k] {axes = (0, 1)}",
    "index apart": "%j = iota {length = 2}\n%y = index %t, [%j, %j] {axes = (0, 2)}",
    "index from the end": "%j = iota {length = 2, start = -2}\n%y = index %t, [%j] {axes = (1,)}",
    "index by data": "%y = index %i, [%a] {axes = (0,)}",
    "index_select": "%j = iota {length = 3, step = 2}\n%y = index_select %v, %j {axis = 0}",
    "gather": "%j = iota {length = 3, start = 4, step = -2}\n"
    "%g = expand %j {shape = (2, 3)}\n%y = gather %w, %g {axis = 1}",
    "cumsum of one number": "%l = gt %i, %i\n%n = logical_not %l\n%y = cumsum %n {axis = 0}",
    "cumsum of data": "%y = cumsum %a {axis = 0}",
    "cumsum of cumsum": """%o = full {value = 1, shape = (3, 3), dtype = i64}
      %c = cumsum %o {axis = 1}
      %y = cumsum %c {axis = 0}""",
    "all": "%l = ge %i, %z0\n%y = all %l {axes = (0,)}",
    "any": "%l = lt %i, %z0\n%y = any %l {axes = (0,), keepdim = true}",
    "any of nothing": "%o = full {value = true, shape = (0, 2), dtype = bool}\n"
    "%y = any %o {axes = (0,)}",
    "diff": """%y = aten.call [%a, %one] {target = "aten.diff.default",
      args = ($0, 1, -1, $1), types = (i64[S],)}""",
    "triu": """%y = aten.call [%t] {target = "aten.triu.default", args = ($0, 1),
      types = (i64[2, 3, 2],)}""",
    "tril": """%y = aten.call [%t] {target = "aten.tril.default", args = ($0,),
      types = (i64[2, 3, 2],)}""",
}

HEAD = """func @f(%a: i64[S], %m: bool[S], %x: f32[S], %t: i64[2, 3, 2], %u: i64[2, 1, 2],
  %s: i64[S, 2, 3], %v: f32[7], %w: i64[2, 5], %d: i64[4], %one: i64[1])
  where S in 1.. {
  %i = iota {length = S}
  %z0 = full {value = 0, dtype = i64}
"""


@pytest.mark.parametrize("name", CASES)
def test_elements_agree_with_the_reference(name: str) -> None:
    func = parse_func(f"{HEAD}{CASES[name]}\nreturn %y\n}}")
    y = func.returns[0]
    for smallest in (False, True):
        arguments = make_arguments(func, make_binding(func, smallest=smallest))
        _agrees(y, _symbolic(func, y), *_run(func, arguments))


FOLLOWED = sorted(
    set(CASES)
    - {
        "mul of data",
        "bitwise on integers",
        "integer to a type that wraps",
        "integer as float",
        "float of data",
        "index by data",
        "cumsum of data",
        "cumsum of cumsum",
        "any of nothing",
    }
)


@pytest.mark.parametrize("name", CASES)
def test_only_what_cannot_be_followed_is_data(name: str) -> None:
    func = parse_func(f"{HEAD}{CASES[name]}\nreturn %y\n}}")
    y = func.returns[0]
    found = _symbolic(func, y)
    stopped = found in (
        Truth(y, _place(y)),
        Datum(y, _place(y)),
        Linear(0, frozenset({(Element(y, _place(y)), 1)})),
    )
    assert stopped == (name not in FOLLOWED)


def _place(value: Value) -> tuple[Linear, ...]:
    return tuple(new_index(f"i{a}", extent) for a, extent in enumerate(value.shape))


def test_positions_of_one_sequence_are_one_sequence() -> None:
    """Transformers looks for several sequences in positions by the breaks between them."""
    func = parse_func(
        """func @f(%n: i64[]) where S in 1.. {
      %i = iota {length = S}
      %p = add %i, %n
      %first = slice %p {axis = 0, stop = 1}
      %c = full {value = 1, dtype = i64}
      %before = sub %first, %c
      %j = concat [%before, %p] {axis = 0}
      %after = slice %j {axis = 0, start = 1, stop = S + 1}
      %until = slice %j {axis = 0, stop = S}
      %step = sub %after, %until
      %y = ne %step, %c
      return %y
    }""".replace("stop = S + 1", "stop = <S + 1>")
    )
    assert _symbolic(func, func.returns[0]) == FALSE


def test_reads_of_a_buffer_are_the_same_until_it_is_written() -> None:
    func = parse_func("""func @f(%b: buffer<i64[]>) {
      %one = read %b
      %two = read %b
      %same = eq %one, %two
      %c = full {value = 1, dtype = i64}
      %next = add %two, %c
      write %b, %next
      %three = read %b
      %other = eq %one, %three
      return %same, %other
    }""")
    same, other = func.returns
    assert _symbolic(func, same) == TRUE
    assert isinstance(_symbolic(func, other), CONDITIONS)
    assert _symbolic(func, other) not in (TRUE, FALSE)


@pytest.mark.parametrize("seed", range(150))
def test_random_masks_agree_with_the_reference(seed: int) -> None:
    program = MaskMaker(seed).program()
    run = _run(program.func, program.arguments(seed), program.sizes)
    _agrees(program.mask, _symbolic(program.func, program.mask), *run)
