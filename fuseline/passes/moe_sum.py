"""What becomes of the experts' result, up to the sum with the branch that all tokens go through."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fuseline.ir.core import Func, Op, Trait, Value
from fuseline.ir.ops.experts import Experts
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.ops.pointwise import Add, Cast, Div, Mul
from fuseline.ir.ops.raised import LayerNorm, RmsNorm
from fuseline.ir.ops.view import Permute, Reshape
from fuseline.passes.canonical_casts import is_exact
from fuseline.passes.constants import number
from fuseline.passes.expert_rows import unshaped
from fuseline.passes.match import narrow, only_user, other_operand
from fuseline.passes.shared_branch import branch_behind
from fuseline.passes.wording import called


@dataclass(frozen=True)
class Projections:
    """The products around experts that work in a width of their own."""

    into: Linear
    back: Linear

    def __str__(self) -> str:
        inner, outer = self.into.y.shape[-1], self.back.y.shape[-1]
        return f"{self.into.x.shape[-1]} to {inner} and back to {outer}"


@dataclass(frozen=True)
class End:
    """What becomes of the experts' result.

    Attributes:
        total: the sum with the branch, as it is rounded; the result alone where there is none.
        y: that times the factor.
        branch: what an MLP gives to the sum.
        routed_factor: of what the experts give, before it is added.
        factor: of the sum.
        apart: what is done to the summands before, that `Moe` does not do.
        projections: around the experts, where there are any.
    """

    total: Value
    y: Value
    branch: Value | None = None
    routed_factor: float = 1.0
    factor: float = 1.0
    apart: tuple[str, ...] = ()
    projections: Projections | None = None


def end_of(op: Experts, func: Func) -> End:
    """Follow the result of experts to the sum with an MLP's, past what may stand between."""
    projections = _projections(op, func)
    start = op.y if projections is None else projections.back.y
    x = op.x if projections is None else projections.into.x
    value, apart, routed_factor = start, list[str](), 1.0
    while (reader := only_user(func, value)) is not None:
        if isinstance(reader, Add) and reader.lhs is not reader.rhs:
            other = reader.rhs if reader.lhs is value else reader.lhs
            branch = branch_behind(_unwidened(other), x)
            if branch is not None:
                steps = (*apart, *branch.steps)
                end = _sum(func, start, value, other, reader.y, branch.value, steps, projections)
                return replace(end, routed_factor=routed_factor)
            apart.append(f"added to the sum of the experts' result and {called(other)}")
        elif (factor := _own_factor(reader, value, op)) and routed_factor == 1.0 and not apart:
            routed_factor = factor
        elif (step := _step(reader, value, start)) is None:
            break
        elif step:
            apart.append(step)
        value = reader.results[0]
    return End(op.y, op.y, projections=projections)


def _own_factor(reader: Op, value: Value, op: Experts) -> float | None:
    """By what the experts' own result is multiplied, in its type."""
    return scale_of(reader, value) if unshaped(value) is op.y else None


def _step(op: Op, value: Value, start: Value) -> str | None:
    """What an op does to the experts' result: empty for nothing; None where it is no step."""
    if _is_reshape(op):
        return ""
    match op:
        case Cast():
            exact = is_exact(start.dtype, op.dtype)
            return "" if exact else f"added to the experts' result in {op.dtype}"
        case RmsNorm(x) | LayerNorm(x) if x is value:
            return "added to the norm of the experts' result"
        case Mul() | Div() if (factor := scale_of(op, value)) is not None:
            return f"added to the experts' result times {factor:g}"
        case Op() if op.has(Trait.POINTWISE):
            return f"added to {op.name} of the experts' result"
        case _:
            return None


def _is_reshape(op: Op) -> bool:
    """Whether an op changes the shape alone; a permute does where it moves nothing but ones."""
    if isinstance(op, Permute):
        wide = [d for d in op.dims if op.x.shape[d] != 1]
        return wide == sorted(wide)
    return isinstance(op, Reshape)


def _sum(
    func: Func,
    start: Value,
    value: Value,
    other: Value,
    y: Value,
    branch: Value | None,
    apart: tuple[str, ...],
    projections: Projections | None,
) -> End:
    """The sum, its rounding and its factor."""
    wider = value.dtype is not start.dtype and is_exact(start.dtype, value.dtype)
    if wider:  # added in it, and rounded: as torch adds, anyway
        reader = only_user(func, y)
        plain = _unwidened(other) is not other
        if plain and isinstance(reader, Cast) and reader.dtype is start.dtype:
            y = reader.y
        else:
            apart = (*apart, f"added in {value.dtype}")
    factor, scaled = 1.0, y
    while isinstance(reader := only_user(func, scaled), Reshape):
        scaled = reader.y
    total = y
    if reader is not None and (found := scale_of(reader, scaled)) is not None:
        factor, y = found, reader.results[0]
    steps = tuple(dict.fromkeys(apart))
    return End(total, y, branch, factor=factor, apart=steps, projections=projections)


def _unwidened(value: Value) -> Value:
    value = unshaped(value) if isinstance(unshaped(value).owner, Cast) else value
    return narrow(value)


def scale_of(op: Op, value: Value) -> float | None:
    """The number by which an op multiplies a value; a division only by a power of two is one."""
    if not isinstance(op, (Mul, Div)) or op.y.dtype is not value.dtype:
        return None
    other = other_operand(op, value)
    found = None if other is None or other.shape else number(other)
    if found is None:
        return None
    if isinstance(op, Mul):
        return float(found)
    exact = op.lhs is value and found and abs(math.frexp(found)[0]) == 0.5
    return 1.0 / found if exact else None


def _projections(op: Experts, func: Func) -> Projections | None:
    """The products around experts that work in a space of their own; None where they do not."""
    inner, value = unshaped(op.x).owner, op.y
    while (reader := only_user(func, value)) is not None and _is_reshape(reader):
        value = reader.results[0]
    if not isinstance(inner, Linear) or not isinstance(reader, Linear) or reader.x is not value:
        return None
    return Projections(inner, reader)
