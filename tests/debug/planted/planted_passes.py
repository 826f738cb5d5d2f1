"""Copies of three passes of the pipeline, each with a fault planted, under names of their own."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func, Value
from fuseline.ir.ops.fused import AddRmsNorm, LinearAdd, MergedLinear
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.ops.pointwise import Add
from fuseline.ir.ops.raised import RmsNorm
from fuseline.passes.rewrite import Replace, Rewrite


@dataclass(frozen=True)
class PlantedAddNorm(Rewrite[RmsNorm], root=RmsNorm, pattern="add_rms_norm"):
    """``fuse-add-rms-norm``, but the eps of the norm is lost: wrong where that is not the usual."""

    def rewrite(self, op: RmsNorm, func: Func) -> Replace | None:
        match op.x.owner:
            case Add(lhs, rhs) if lhs.type == rhs.type:
                fused = AddRmsNorm(lhs, rhs, op.weight, offset=op.offset, cast=op.cast)
                return Replace({op.x: fused.sum, op.y: fused.y})
            case _:
                return None


@dataclass(frozen=True)
class PlantedMerge(Rewrite[Linear], root=Linear, pattern="merged_linear"):
    """``merge-linears``, but of three or more of one size the last two come out the wrong way."""

    def rewrite(self, op: Linear, func: Func) -> Replace | None:
        group = [s for s in func.users(op.x) if isinstance(s, Linear) and s.x is op.x]
        if len(group) < 2:
            return None
        group.sort(key=func.places.__getitem__)
        fused = MergedLinear(op.x, tuple(s.weight for s in group), ())
        ys = list(fused.ys)
        if len(ys) > 2 and ys[-1].type == ys[-2].type:
            ys[-2:] = [ys[-1], ys[-2]]
        return Replace({s.y: y for s, y in zip(group, ys, strict=True)}, before=group[0])


@dataclass(frozen=True)
class PlantedLinearAdd(Rewrite[Add], root=Add):
    """``fuse-linear-add``, but it takes the first result of what makes the residual.

    That is the right one of ops that have one result, and the wrong one of the norm of a sum once
    ``fuse-add-rms-norm`` has made one op of the two.
    """

    def rewrite(self, op: Add, func: Func) -> Replace | None:
        linear, residual = op.rhs.owner, op.lhs
        if not isinstance(linear, Linear) or func.use_count(op.rhs) != 1:
            return None
        if any(isinstance(user, RmsNorm) for user in func.users(op.y)):
            return None
        fused = LinearAdd(linear.x, linear.weight, _of(residual), linear.bias)
        return Replace({op.y: fused.y})


def _of(residual: Value) -> Value:
    return residual if residual.owner is None else residual.owner.results[0]
