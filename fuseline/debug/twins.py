"""Copies of a func with something left out or made smaller: the candidates of `reduce`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import sympy

from fuseline.ir.core import Func, Op, Origin, Trait, Value
from fuseline.ir.types import BufferType, Dim, IntType, TensorType, dim, free_symbols

Sizes = Mapping["int | str", int]


@dataclass(frozen=True)
class Change:
    """What is different in a copy.

    Attributes:
        cut: numbers of ops whose results become arguments.
        returns: the numbers of the results that stay; None: all.
        opened: the number of an op whose results are returned: its operands are, in their place.
        passed: the number of an op in whose place its first operand of the result's type stands.
        last: the number of the op whose results are returned in the place of all others.
        sizes: new sizes for old ones: integers, and symbols by name.
        multiples: multiples of an old size become the same multiples of the new one.
        numbers: whole numbers among attributes that are an old size become the new one, as do those
            in shapes.
        attributes: of ops, by number.
        plain: numbers of arguments that become inputs, whatever they were.
        places: whether ops keep their places in the user's source.
    """

    cut: frozenset[int] = frozenset()
    returns: tuple[int, ...] | None = None
    opened: int | None = None
    passed: int | None = None
    last: int | None = None
    sizes: Sizes = field(default_factory=dict["int | str", int])
    multiples: bool = False
    numbers: bool = False
    attributes: Mapping[int, Mapping[str, Any]] = field(
        default_factory=dict[int, Mapping[str, Any]]
    )
    plain: frozenset[int] = frozenset()
    places: bool = True


def twin(func: Func, change: Change) -> Func | None:
    """A copy with a change, without what nobody reads then; None where an op does not fit."""
    made = Func(func.name)
    known: dict[Value, Value] = {}
    places = range(len(func.returns)) if change.returns is None else change.returns
    returns = [func.returns[i] for i in places]
    if change.last is not None:
        returns = list(func.ops[change.last].results)
    if change.opened is not None:
        returns = _opened(func.ops[change.opened], returns)
    if change.passed is not None:
        return _passed(func, change.passed)
    ops = _read(func, change.cut, returns)
    needed = {v for op in ops for v in op.operands} | set(returns)
    numbers = func.places
    try:
        for number, arg in enumerate(func.args):
            if arg in needed or isinstance(arg.type, IntType):
                origin = Origin("input", arg.hint) if number in change.plain else arg.origin
                known[arg] = _argument(arg, change, origin)
                made.args.append(known[arg])
        for op in func.ops:
            if numbers[op] in change.cut:
                for value in op.results:
                    if value in needed:
                        known[value] = _argument(value, change, Origin("input", value.hint))
                        made.args.append(known[value])
                continue
            if op not in ops:
                continue
            attributes = {k: _resized(v, change) for k, v in op.attributes.items()}
            attributes |= change.attributes.get(numbers[op], {})
            copy = made.append(op.clone(known, **attributes))
            if not change.places:
                copy.loc, copy.also = None, ()
            known.update(zip(op.results, copy.results, strict=True))
    except (ValueError, TypeError, KeyError, IndexError, AssertionError):
        return None  # whatever an op finds wrong with operands that it was not made for
    made.set_returns(known[v] for v in returns)
    made.args = [a for a in made.args if not isinstance(a.type, IntType) or _counts(made, a)]
    used = {s for a in made.args for s in _symbols_of(a.type)}
    used |= {s for op in made.ops for v in op.results for s in _symbols_of(v.type)}
    made.symbols = {n: r for n, r in func.symbols.items() if n in used and n not in change.sizes}
    return made


def _read(func: Func, cut: frozenset[int], returns: list[Value]) -> set[Op]:
    """The ops that are not cut and whose results are read in the end, or that write something."""
    kept: set[Op] = set()
    numbers = func.places
    stack = [v.owner for v in returns if v.owner is not None]
    stack += [op for op in func.ops if op.has(Trait.WRITES)]
    while stack:
        op = stack.pop()
        if op in kept or numbers[op] in cut:
            continue
        kept.add(op)
        stack += [v.owner for v in op.operands if v.owner is not None]
    return kept


def _opened(op: Op, returns: list[Value]) -> list[Value]:
    """What is returned, with what an op reads in the place of what it makes."""
    found: list[Value] = []
    for value in returns:
        made = [v for v in op.operands if v.owner is not None]
        found += made if value.owner is op else [value]
    return list(dict.fromkeys(found))


def _passed(func: Func, number: int) -> Func | None:
    """A copy without an op of one result that is of the type of one of its operands."""
    made = func.clone()
    op = made.ops[number]
    same = [v for v in op.operands for r in op.results if v.type == r.type]
    if len(op.results) != 1 or not same or op.has(Trait.WRITES):
        return None
    made.edit(replace_values={op.results[0]: same[0]}, erase=[op])
    return made


def _argument(value: Value, change: Change, origin: Origin | None) -> Value:
    return Value(_resized_type(value.type, change), value.hint, None, origin)


def _counts(func: Func, arg: Value) -> bool:
    """Whether an integer gives a symbol that nothing else gives."""
    others = {s for a in func.args if a is not arg for s in _symbols_of(a.type)}
    here = {s for op in func.ops for v in op.results for s in _symbols_of(v.type)}
    return bool(func.users(arg)) or bool((_symbols_of(arg.type) & here) - others)


def _symbols_of(kind: Any) -> set[str]:
    if isinstance(kind, IntType):
        return set(free_symbols(kind.value))
    tensor = kind.tensor if isinstance(kind, BufferType) else cast("TensorType", kind)
    return {s for extent in tensor.shape for s in free_symbols(extent)}


def _resized_type(kind: Any, change: Change) -> Any:
    if isinstance(kind, IntType):
        return IntType(_resized_dim(kind.value, change))
    if isinstance(kind, BufferType):
        return BufferType(_resized_type(kind.tensor, change))
    return kind.with_shape(tuple(_resized_dim(extent, change) for extent in kind.shape))


def _resized_dim(extent: Dim, change: Change) -> Dim:
    if not isinstance(extent, int):
        names = {n: size for n, size in change.sizes.items() if isinstance(n, str)}
        return dim(extent.subs({s: names[str(s)] for s in extent.free_symbols if str(s) in names}))
    for old, new in change.sizes.items():
        if isinstance(old, int) and (extent == old or (change.multiples and extent % old == 0)):
            return extent // old * new
    return extent


def _resized(value: Any, change: Change) -> Any:
    """An attribute: shapes are tuples, and symbols are sizes wherever they stand."""
    if not change.sizes:
        return value
    match value:
        case bool():
            return value
        case int():
            return _resized_dim(value, change) if change.numbers else value
        case sympy.Expr():
            return _resized_dim(value, change)
        case tuple():
            items = cast("tuple[Any, ...]", value)
            return tuple(
                _resized_dim(v, change) if type(v) is int else _resized(v, change) for v in items
            )
        case TensorType():
            return _resized_type(value, change)
        case _:
            return value


def sizes_of(func: Func) -> list[int | str]:
    """The sizes that occur in a func: symbols, then integers above 1, the larger first."""
    kinds = [a.type for a in func.args if not isinstance(a.type, IntType)]
    kinds += [v.type for op in func.ops for v in op.results]
    shapes = [kind.tensor.shape if isinstance(kind, BufferType) else kind.shape for kind in kinds]
    extents = {extent for shape in shapes for extent in shape}
    integers = sorted((e for e in extents if isinstance(e, int) and e > 1), reverse=True)
    return [*sorted(func.symbols), *integers]


def attributes_to_default(op: Op) -> Iterator[dict[str, Any]]:
    """Changes of an op's attributes, one at a time, to what they are if nothing is said."""
    for spec in op.fields:
        has_default = spec.kind == "attribute" and spec.default is not ...
        if has_default and getattr(op, spec.name) != spec.default:
            yield {spec.name: spec.default}


def fresh_names(func: Func) -> Func:
    """A copy whose values have short names: a, b, c ..."""
    made = func.clone()
    values = [*made.args, *(v for op in made.ops for v in op.results)]
    for number, value in enumerate(values):
        letters = ""
        while number >= 0:
            letters = chr(ord("a") + number % 26) + letters
            number = number // 26 - 1
        value.hint = letters
        if value.origin is not None and value.origin.kind == "input":
            value.origin = Origin("input", letters)
    return made


__all__ = ["Change", "attributes_to_default", "fresh_names", "sizes_of", "twin"]
