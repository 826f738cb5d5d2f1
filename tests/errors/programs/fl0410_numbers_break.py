"""A rewrite that computes in a narrower type than the model does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fuseline.debug.numerics import Numerics
from fuseline.debug.seeded import model_arguments
from fuseline.ir.core import Func, Loc, Value
from fuseline.ir.ops.pointwise import Cast, Sigmoid
from fuseline.ir.text import parse_func
from fuseline.ir.types import DType
from fuseline.passes.manager import PassManager
from fuseline.passes.rewrite import Rewrite


@dataclass(frozen=True)
class NarrowSigmoid(Rewrite[Sigmoid], root=Sigmoid):
    """A sigmoid in bfloat16: wrong where the model asks for float32."""

    def rewrite(self, op: Sigmoid, func: Func) -> dict[Value, Value] | None:
        if op.x.dtype is not DType.F32:
            return None
        return {op.y: Cast(Sigmoid(Cast(op.x, dtype=DType.BF16).y).y, dtype=DType.F32).y}


def program(tmp: Path) -> None:
    del tmp
    func = parse_func("func @gate(%x: f32[4, 9]) {\n  %y = sigmoid %x\n  return %y\n}")
    func.ops[0].loc = Loc("layers.3.router", "moe.py:41")
    numerics = Numerics(func, model_arguments(func))
    PassManager([NarrowSigmoid()], observers=[numerics]).run(func)
