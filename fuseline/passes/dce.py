"""Dead code: ops without an effect whose results nobody reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from fuseline.ir.core import Func, Op, Trait, Value
from fuseline.ir.ops.call import AtenCall, resolve
from fuseline.passes.rewrite import FuncPass


@dataclass(frozen=True)
class Dce(FuncPass):
    """Remove ops whose results nobody reads, unless they write a buffer or may have an effect.

    A call of an ATen op goes too, where its schema writes nothing and it draws no random numbers.

    Before:
        func @f(%x: f32[B, 4]) {
          %a = exp %x
          %b = sin %a
          %c = cos %a
          return %c
        }
    After:
        func @f(%x: f32[B, 4]) {
          %a = exp %x
          %c = cos %a
          return %c
        }
    """

    def run(self, func: Func) -> None:
        live: set[Value] = set(func.returns)
        kept: list[Op] = []
        for op in reversed(func.ops):
            if has_effect(op) or any(v in live for v in op.results):
                kept.append(op)
                live.update(op.operands)
        if len(kept) != len(func):
            func.rebuild(reversed(kept), func.returns)


def has_effect(op: Op) -> bool:
    """Whether an op does more than give its results."""
    if isinstance(op, AtenCall):
        return not op.results or not _is_functional(op.target)
    return not (op.has(Trait.PURE) or (op.has(Trait.READS) and not op.has(Trait.WRITES)))


@lru_cache(maxsize=4096)
def _is_functional(target: str) -> bool:
    """Whether an ATen overload neither writes its arguments nor draws random numbers."""
    try:
        overload = resolve(target)
    except AttributeError:
        return False
    return not overload._schema.is_mutable and (
        torch.Tag.nondeterministic_seeded not in overload.tags
    )
