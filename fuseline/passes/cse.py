"""Common subexpressions: equal ops on equal operands become one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from fuseline.ir.core import Func, Op, Trait, Value
from fuseline.passes.rewrite import FuncPass


@dataclass(frozen=True)
class Cse(FuncPass):
    """Let the first of several equal pure ops stand for all; equal reads of a buffer likewise.

    Two reads of a buffer are equal if nothing is written to it in between.

    Before:
        func @f(%x: f32[B, 4], %k: buffer<f32[B, 4]>) {
          %a = exp %x
          %b = exp %x
          %c = read %k
          write %k, %a
          %d = read %k
          %e = read %k
          return %a, %b, %c, %d, %e
        }
    After:
        func @f(%x: f32[B, 4], %k: buffer<f32[B, 4]>) {
          %a = exp %x
          %c = read %k
          write %k, %a
          %d = read %k
          return %a, %a, %c, %d, %d
        }
    """

    def run(self, func: Func) -> None:
        seen: dict[Any, Op] = {}
        mapping: dict[Value, Value] = {}
        writes: dict[Value, int] = {}
        kept: list[Op] = []
        for op in func.ops:
            if any(v in mapping for v in op.operands):
                op.map_operands(mapping)
            key = _key(op, writes)
            if op.has(Trait.WRITES):
                writes |= {v: writes.get(v, 0) + 1 for v in op.operands}
            twin = op if key is None else seen.setdefault(key, op)
            if twin is op:
                kept.append(op)
            else:
                mapping.update(zip(op.results, twin.results, strict=True))
        if mapping:
            func.rebuild(kept, [mapping.get(v, v) for v in func.returns])


def _key(op: Op, writes: dict[Value, int]) -> Any:
    """What equal ops have in common; None for an op that stands for itself."""
    if op.has(Trait.WRITES) or not (op.has(Trait.PURE) or op.has(Trait.READS)):
        return None
    parts: list[Any] = [type(op)]
    for spec in op.fields:
        if spec.kind in ("result", "results"):
            continue
        value = getattr(op, spec.name)
        if spec.kind == "attribute":
            parts.append(_attribute(value))
        else:
            parts.append(value)
    if op.has(Trait.READS):
        parts += [writes.get(v, 0) for v in op.operands]
    return tuple(parts)


def _attribute(value: object) -> Any:
    """An attribute as a key: 1, 1.0 and True differ, and so do 0.0 and -0.0."""
    match value:
        case bool() | int():
            return type(value), value
        case float():
            return repr(value)
        case tuple():
            return tuple(_attribute(v) for v in cast("tuple[object, ...]", value))
        case _:
            return value
