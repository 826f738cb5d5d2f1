"""Nothing behind this pass has a size that only the data tells."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func, Op
from fuseline.ir.types import free_symbols
from fuseline.passes.rewrite import FuncPass


class UnknownSizeError(Exception):
    """A program that cannot be planned: it has a size that only the data tells."""


@dataclass(frozen=True)
class KnownSizes(FuncPass):
    """Forget sizes that only the data tells, where raising has left none.

    A plan places its buffers before a run. Where such a size is left, there is no plan, and
    `UnknownSizeError` names the first op that gives one.

    Before:
        func @f(%x: f32[B, 4]) where u0 in 0.. {
          %a = exp %x
          return %a
        }
    After:
        func @f(%x: f32[B, 4]) {
          %a = exp %x
          return %a
        }
    """

    def run(self, func: Func) -> None:
        unknown = func.unknown_sizes
        if not unknown:
            return
        for op in func.ops:
            if any(free_symbols(d) & unknown for v in op.results for d in v.shape):
                raise UnknownSizeError(_reason(op))
        for name in unknown:
            del func.symbols[name]


def _reason(op: Op) -> str:
    name = getattr(op, "target", op.name)
    place = f" at {op.loc}" if op.loc is not None and str(op.loc) else ""
    return f"only the data tells the size of what {name}{place} gives"
