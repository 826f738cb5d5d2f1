"""Join element-wise ops, with at most one reduction over the last dims, into regions."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from fuseline.ir.core import OPS, Func, Op, Trait, Value
from fuseline.ir.ops.create import Full, Iota
from fuseline.ir.ops.fused import Pointwise
from fuseline.ir.region import REDUCTIONS, RegionError, analyse
from fuseline.ir.types import Dim, free_symbols
from fuseline.passes.grow_region import Growth, Limits, joinable, source
from fuseline.passes.rewrite import Replace, Rewrite

_ROOTS = (*(c for c in OPS.values() if Trait.POINTWISE in c.traits), *REDUCTIONS)


@dataclass(frozen=True)
class FusePointwise(Rewrite[Op], root=_ROOTS):
    """Compute chains of element-wise ops in one walk over memory.

    Values that are read elsewhere too become further results. No expensive op is computed twice,
    and constants are taken in. ``max-ops`` and ``max-operands`` bound a region.

    Before:
        func @f(%x: bf16[B, S, 64], %w: bf16[64], %p: bf16[7, 64]) {
          %f = cast %x {dtype = f32}
          %q = mul %f, %f
          %m = mean %q {axes = (2,), keepdim = true}
          %e = full {value = 1e-05, dtype = f32}
          %a = add %m, %e
          %s = sqrt %a
          %y = div %f, %s
          %b = cast %y {dtype = bf16}
          %c = mul %b, %w
          %z = linear %c, %p
          return %z
        }
    After:
        func @f(%x: bf16[B, S, 64], %w: bf16[64], %p: bf16[7, 64]) {
          %c = pointwise [%x, %w] {body = func @region(%x: bf16[B, S, 64], %w: bf16[64]) {
              %f = cast %x {dtype = f32}
              %q = mul %f, %f
              %m = mean %q {axes = (2,), keepdim = true}
              %e = full {value = 1e-05, dtype = f32}
              %a = add %m, %e
              %s = sqrt %a
              %y = div %f, %s
              %b = cast %y {dtype = bf16}
              %c = mul %b, %w
              return %c
            }}
          %z = linear %c, %p
          return %z
        }
    """

    max_ops: int = 32
    max_operands: int = 12

    def rewrite(self, op: Op, func: Func) -> Replace | None:
        if not isinstance(op, REDUCTIONS) and not joinable(op):
            return None
        growth = Growth(func, _space(op), Limits(self.max_ops, self.max_operands))
        if not growth.grow(op):
            return None
        return _join(func, growth)


def _space(op: Op) -> tuple[Dim, ...]:
    """The space that a seed iterates over."""
    return op.x.shape if isinstance(op, REDUCTIONS) else op.results[0].shape


def _join(func: Func, growth: Growth) -> Replace | None:
    members, operands, results = growth.members(), growth.operands(), growth.results()
    body = Func("region")
    mapping: dict[Value, Value] = {v: body.add_arg(v.tensor, v.hint) for v in operands}
    for op in members:
        for value in op.operands:
            _views(body, value, mapping)
        copy = body.append(op.clone(mapping))
        mapping.update(zip(op.results, copy.results, strict=True))
    body.set_returns(mapping[v] for v in results)
    body.symbols = {n: r for n, r in func.symbols.items() if n in _symbols(body)}
    try:
        analyse(body)
    except RegionError:
        return None
    fused = Pointwise(tuple(operands), body=body)
    names = ", ".join(op.name for op in members if not isinstance(op, (Full, Iota)))
    made = [func.places[v.owner] for v in operands if v.owner is not None]
    first = func.places[members[0]]
    return Replace(
        dict(zip(results, fused.ys, strict=True)),
        before=func.ops[max([first, *(place + 1 for place in made)])],
        held=("one space", "nothing outside lies between two of the ops"),
        details={"ops": names},
    )


def _views(body: Func, value: Value, mapping: dict[Value, Value]) -> None:
    """Bring the views between a member and what it reads of another into the body."""
    if value in mapping:
        return
    _, views = source(value)
    for view in views:
        if view.results[0] not in mapping:
            copy = body.append(view.clone(mapping))
            mapping[view.results[0]] = copy.results[0]


def _symbols(body: Func) -> set[str]:
    """The names of the symbols that a body reads: in the types of its arguments and attributes."""
    dims = [d for arg in body.args for d in arg.shape]
    for op in body.ops:
        dims += [d for v in op.results for d in v.shape]
        dims += [a for a in op.attributes.values() if isinstance(a, sympy.Expr)]
    return {name for d in dims for name in free_symbols(d)}


__all__ = ["FusePointwise"]
