"""Integers of a call that are only data become data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any, cast

import sympy

from fuseline.ir.core import Func, Op, Origin, Value
from fuseline.ir.ops.create import Full
from fuseline.ir.ops.pointwise import Add, Maximum, Minimum, Mul
from fuseline.ir.ops.view import Expand
from fuseline.ir.types import DType, IntType, Range, TensorType, free_symbols
from fuseline.passes.active_counts import only_counts
from fuseline.passes.rewrite import FuncPass
from fuseline.passes.row_rules import reads

_OPS: dict[Any, Any] = {sympy.Add: Add, sympy.Mul: Mul, sympy.Max: Maximum, sympy.Min: Minimum}
"""The arithmetic of sizes that tensors have as well."""


@dataclass(frozen=True)
class LiftNumbers(FuncPass):
    """Take integers that are only data from memory.

    An integer of a call is one of the sizes that a program is planned and recorded for. One that
    only counts, as the caches of sliding windows count their tokens, is another in every step: then
    it is an argument of one element, and all steps are of the same sizes. Integers that a shape, a
    stride or an attribute of an op depends on stay what they are.

    So does the number of adapters in use, which launches are sized by. Where it is data as well,
    to count from the end by, it is read from memory there: launches may be sized for more.

    Before:
        func @f(%x: i64[4], %n: int<n>) {
          %m = full {value = <Max(0, n - 7)>, shape = (4,), dtype = i64}
          %y = add %x, %m
          return %y
        }
    After:
        func @f(%x: i64[4], %n: i64[] = number "n" in 0..) {
          %a = full {value = 0, shape = (), dtype = i64}
          %b = full {value = -7, shape = (), dtype = i64}
          %c = add %b, %n
          %d = maximum %a, %c
          %m = expand %d {shape = (4,)}
          %y = add %x, %m
          return %y
        }

    Before:
        func @f(%x: f32[S, 8], %ids: i64[S], %a: f32[3, 2, 8], %b: f32[3, 6, 2], %n: int<A>)
            where A in 1..3 {
          %m = full {value = A, dtype = i64}
          %number = remainder %ids, %m
          %y = multi_lora %x, %number, %a, %b {active = A, delta_dtype = f32, dtype = f32}
          return %y
        }
    After:
        func @f(%x: f32[S, 8], %ids: i64[S], %a: f32[3, 2, 8], %b: f32[3, 6, 2], %n: int<A>,
                %m: i64[] = count "A") where A in 1..3 {
          %number = remainder %ids, %m
          %y = multi_lora %x, %number, %a, %b {active = A, delta_dtype = f32, dtype = f32}
          return %y
        }
    """

    def run(self, func: Func) -> None:
        for arg in tuple(func.args):
            pinned = arg.origin is not None and arg.origin.pinned
            if not isinstance(arg.type, IntType) or pinned:
                continue
            if isinstance(arg.type.value, sympy.Symbol):
                name = str(arg.type.value)
                if readers := _readers(func, arg, name):
                    counts = any(only_counts(op, name) for op in func.ops)
                    number = _beside(func, arg, name) if counts else _instead(func, arg, name)
                    _lift(func, number, readers)


def _readers(func: Func, number: Value, name: str) -> list[Full]:
    """The constants that are computed from a number; none where something else is, but for launches
    of adapters.
    """
    for arg in func.args:
        given = (arg.type.value,) if isinstance(arg.type, IntType) else arg.shape
        if arg is not number and any(name in free_symbols(extent) for extent in given):
            return []
    found: list[Full] = []
    for op in func.ops:
        if any(name in free_symbols(extent) for v in op.results for extent in v.shape):
            return []
        if only_counts(op, name) or not any(reads(a, name) for a in op.attributes.values()):
            continue
        if not isinstance(op, Full) or op.dtype is not DType.I64 or not _is_known(op.value, name):
            return []
        found.append(op)
    return found


def _is_known(value: object, name: str) -> bool:
    """Whether a value is computed from one number by what tensors do as well."""
    if isinstance(value, sympy.Symbol):
        return value.name == name
    if isinstance(value, sympy.Expr) and not value.is_Integer:
        return type(value) in _OPS and all(_is_known(part, name) for part in value.args)
    return True


def _instead(func: Func, number: Value, name: str) -> Value:
    """A tensor in the place of an integer."""
    number.type = TensorType(DType.I64, ())
    label = (number.origin and number.origin.name) or name
    number.origin = Origin("number", label, limits=func.symbols.pop(name, Range()))
    return number


def _beside(func: Func, number: Value, name: str) -> Value:
    """A tensor that holds an integer which stays a size."""
    return func.add_arg(TensorType(DType.I64, ()), f"{number.hint}_held", Origin("count", name))


def _lift(func: Func, number: Value, readers: list[Full]) -> None:
    """Compute constants from a tensor."""
    for full in readers:
        ops: list[Op] = []
        made = _computed(cast("Any", full.value), number, ops)
        if full.shape:
            ops.append(Expand(made, shape=full.shape))
            made = ops[-1].results[0]
        for op in ops:
            op.place_like(full)
        func.edit(before=full, insert=ops, replace_values={full.y: made}, erase=[full])


def _computed(value: Any, number: Value, ops: list[Op]) -> Value:
    """A value by ops on tensors of one element, which are added to ``ops``."""
    if isinstance(value, sympy.Symbol):
        return number
    if isinstance(value, int) or value.is_Integer:
        ops.append(Full(value=int(value), shape=(), dtype=DType.I64))
        return ops[-1].results[0]
    parts = [_computed(part, number, ops) for part in value.args]

    def join(lhs: Value, rhs: Value) -> Value:
        ops.append(_OPS[type(value)](lhs, rhs))
        return ops[-1].results[0]

    return reduce(join, parts)


__all__ = ["LiftNumbers"]
