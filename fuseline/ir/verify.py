"""The verifier: what every valid func satisfies, checked after each pass in tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import sympy

from fuseline.ir.core import OPS, Func, IRError, Op, OpError, Trait, Value
from fuseline.ir.types import BufferType, IntType, format_types, free_symbols, has_extents


def verify(func: Func) -> None:
    """Check a func.

    Raises:
        IRError: a value is read before it is defined, a type differs from the inferred one, or has
            an extent that no tensor has, a symbol is unknown, a buffer is read by an op that has
            no such effect, or an op is not declared.

    """
    defined: set[Value] = set(func.args)
    if len(defined) != len(func.args):
        raise IRError(f"@{func.name} has the same argument twice")
    _verify_extents(func.args)
    for op in func.ops:
        _verify_op(func, op, defined)
        defined.update(op.results)
    for value in func.returns:
        if value not in defined:
            raise IRError(f"@{func.name} returns %{value.hint}, which nothing defines")
        if isinstance(value.type, (BufferType, IntType)):
            raise IRError(f"@{func.name} returns %{value.hint} of type {value.type}")


def _verify_op(func: Func, op: Op, defined: set[Value]) -> None:
    if OPS.get(op.name) is not type(op):
        raise IRError(f"{op.name} is not a declared op")
    for value in op.operands:
        if value not in defined:
            raise OpError(op, f"%{value.hint} is read before it is defined")
        if isinstance(value.type, BufferType) and not (op.has(Trait.READS) or op.has(Trait.WRITES)):
            raise OpError(op, f"takes the buffer %{value.hint}, but has no effect on buffers")
    inferred = op.infer()
    types = inferred if isinstance(inferred, tuple) else (inferred,)
    if types != tuple(v.type for v in op.results):
        given = format_types(v.type for v in op.results)
        raise OpError(op, f"has results of type {given}, infers {format_types(types)}")
    _verify_extents(op.results)
    for value in op.results:
        if value.owner is not op:
            raise IRError(f"%{value.hint} does not know that {op!r} makes it")
    known = set(func.symbols)
    for name, attribute in op.attributes.items():
        unknown = _symbols(attribute) - known
        if unknown:
            symbols = ", ".join(sorted(unknown))
            raise OpError(op, f"attribute {name} reads {symbols}, which nothing gives")
        if isinstance(attribute, Func):
            verify(attribute)


def _verify_extents(values: Iterable[Value]) -> None:
    for value in values:
        if not has_extents(value.type):
            raise IRError(f"%{value.hint} is {value.type}: no tensor has such an extent")


def _symbols(attribute: Any) -> set[str]:
    if isinstance(attribute, sympy.Expr):
        return free_symbols(attribute)
    if isinstance(attribute, tuple):
        return {s for a in cast("tuple[Any, ...]", attribute) for s in _symbols(a)}
    return set()
