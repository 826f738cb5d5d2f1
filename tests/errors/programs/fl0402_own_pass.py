"""A pass that somebody else has written, and that raises."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fuseline.debug.reproducer import pass_failure
from fuseline.ir.core import Func, Value
from fuseline.ir.ops.pointwise import Sigmoid
from fuseline.ir.text import parse_func
from fuseline.passes.manager import PassManager
from fuseline.passes.rewrite import Rewrite

TEXT = "func @gate(%x: f32[4, 9]) {\n  %y = sigmoid %x\n  return %y\n}"


@dataclass(frozen=True)
class CountsDims(Rewrite[Sigmoid], root=Sigmoid):
    """A look at the third dim of what may have two."""

    def rewrite(self, op: Sigmoid, func: Func) -> dict[Value, Value] | None:
        if op.x.shape[2] == 1:
            return {op.y: op.x}
        return None


def program(tmp: Path) -> None:
    manager = PassManager([CountsDims()])
    try:
        manager.run(parse_func(TEXT))
    except IndexError as error:
        raise pass_failure(manager, parse_func(TEXT), error, tmp) from error
