"""What exporters spell out for want of an operator: silu, gelu, the reciprocal of a root.

Each function tells from its operands whether a product (or quotient) ends such an idiom, and gives
the op that says so; the ops that are then read by nothing go when the import ends.
"""

from __future__ import annotations

import math

from fuseline.frontend.builder import Builder
from fuseline.ir.core import Value
from fuseline.ir.ops import pointwise as p
from fuseline.ir.ops.create import Full
from fuseline.ir.types import DType

DEEP = 3
"""Products within products that a gelu is spelled with at most."""


def number(value: Value) -> float | None:
    """The one number that a value holds everywhere; None for any other value."""
    match value.owner:
        case Full(value=bool() | int() | float() as found):
            return float(found)
        case p.Cast(x):
            return number(x)
        case _:
            return None


def is_number(value: Value, wanted: float) -> bool:
    """Whether a value is a number, as exactly as its type can have it."""
    found = number(value)
    exact = {DType.F64: 1e-7, DType.F32: 1e-6, DType.F16: 1e-3, DType.BF16: 1e-2}
    return found is not None and math.isclose(found, wanted, rel_tol=exact.get(value.dtype, 0))


def root_of(value: Value) -> Value | None:
    """x of a ``sqrt(x)``."""
    return value.owner.x if isinstance(value.owner, p.Sqrt) else None


def silu(b: Builder, lhs: Value, rhs: Value) -> Value | None:
    """``x * sigmoid(x)``."""
    for x, gate in ((lhs, rhs), (rhs, lhs)):
        if isinstance(gate.owner, p.Sigmoid) and gate.owner.x is x:
            return b.add(p.Silu(x)).y
    return None


def _factors(value: Value, depth: int = DEEP) -> list[Value]:
    if depth and isinstance(value.owner, p.Mul):
        op = value.owner
        return _factors(op.lhs, depth - 1) + _factors(op.rhs, depth - 1)
    return [value]


def _one_more(value: Value) -> Value | None:
    """x of a ``1 + x``."""
    if isinstance(value.owner, p.Add):
        lhs, rhs = value.owner.lhs, value.owner.rhs
        for x, one in ((lhs, rhs), (rhs, lhs)):
            if is_number(one, 1):
                return x
    return None


def gelu(b: Builder, lhs: Value, rhs: Value) -> Value | None:
    """``0.5 * x * (1 + erf(x / sqrt(2)))``, in any order, or with the approximation by tanh."""
    if not lhs.dtype.is_float:
        return None
    for at in range(DEEP):
        factors = _factors(lhs, at) + _factors(rhs, at)
        halves = [f for f in factors if is_number(f, 0.5)]
        inner = [f for f in factors if _one_more(f) is not None]
        rest = [f for f in factors if f not in halves and f not in inner]
        if len(factors) != 3 or not (len(halves) == len(inner) == len(rest) == 1):
            continue
        x, sum_of = rest[0], _one_more(inner[0])
        if sum_of is not None and x.shape != ():
            if isinstance(sum_of.owner, p.Erf) and _is_scaled(sum_of.owner.x, x):
                return b.add(p.Gelu(x)).y
            if isinstance(sum_of.owner, p.Tanh) and _is_cubic(sum_of.owner.x, x):
                return b.add(p.Gelu(x, approximate="tanh")).y
    return None


def _is_scaled(value: Value, x: Value) -> bool:
    """Whether this is ``x / sqrt(2)``."""
    match value.owner:
        case p.Div(lhs, rhs):
            return lhs is x and is_number(rhs, math.sqrt(2))
        case p.Mul(lhs, rhs):
            return any(a is x and is_number(b, math.sqrt(0.5)) for a, b in ((lhs, rhs), (rhs, lhs)))
        case _:
            return False


def _is_cubic(value: Value, x: Value) -> bool:
    """Whether this is ``sqrt(2 / pi) * (x + 0.044715 * x**3)``."""
    scaled = _times(value, math.sqrt(2 / math.pi))
    if scaled is None or not isinstance(scaled.owner, p.Add):
        return False
    for a, b in ((scaled.owner.lhs, scaled.owner.rhs), (scaled.owner.rhs, scaled.owner.lhs)):
        cube = _times(b, 0.044715)
        if a is x and cube is not None and _factors(cube) == [x, x, x]:
            return True
    return False


def _times(value: Value, wanted: float) -> Value | None:
    """x of a ``wanted * x``."""
    if isinstance(value.owner, p.Mul):
        lhs, rhs = value.owner.lhs, value.owner.rhs
        for x, factor in ((lhs, rhs), (rhs, lhs)):
            if is_number(factor, wanted):
                return x
    return None


__all__ = ["gelu", "is_number", "root_of", "silu"]
