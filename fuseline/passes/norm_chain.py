"""What RMS norms and layer norms have in common: a row scaled by the root of its mean square.

Both are found from the mean of squares. `scaled_row` follows it to the product ``x * rsqrt(mean +
eps)``; `finish` follows that through the rounding, the weight and the bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fuseline.ir.core import Func, Op, Value
from fuseline.ir.ops.pointwise import (
    Add,
    Cast,
    Div,
    Maximum,
    Mul,
    Pow,
    Reciprocal,
    Rsqrt,
    Sqrt,
    Sub,
)
from fuseline.ir.ops.reduce import Mean
from fuseline.ir.types import DType
from fuseline.passes.constants import is_number, is_scalar, number
from fuseline.passes.match import narrow, only_user, other_operand, without_leading_ones
from fuseline.passes.rewrite import NoMatch
from fuseline.passes.wording import called


@dataclass(frozen=True)
class ScaledRow:
    """``wide * rsqrt(mean(wide**2) + eps)``.

    Attributes:
        wide: the row, in the type that the statistics are computed in.
        eps: added to the mean.
        y: the product.
    """

    wide: Value
    eps: float
    y: Value


def squared(mean: Mean) -> Value | None:
    """What the mean is the mean square of; None where it is another mean."""
    match mean.x.owner:
        case Mul(lhs, rhs) if lhs is rhs:
            return lhs
        case Pow(lhs, rhs) if is_number(rhs, 2):
            return lhs
        case _:
            return None


def centre(value: Value) -> Value | None:
    """x, where the value is ``x - mean(x)`` over the last dim."""
    match value.owner:
        case Sub(lhs, rhs) if isinstance(rhs.owner, Mean) and rhs.owner.x is lhs:
            lines_up = rhs.owner.keepdim or lhs.tensor.rank == 1
            return lhs if lines_up and rhs.owner.axes == (lhs.tensor.rank - 1,) else None
        case _:
            return None


def scaled_row(mean: Mean, wide: Value, func: Func) -> ScaledRow | NoMatch | None:
    """The row scaled by the root of its mean square; None where no root follows the mean."""
    found = _root(mean.y, func)
    if found is None or isinstance(found, NoMatch):
        return found
    root, eps, divides = found
    last = wide.tensor.rank - 1
    if mean.axes != (last,):
        return NoMatch(f"the mean is over dims {mean.axes} of {wide.type}, not over the last")
    if not mean.keepdim:
        return NoMatch(f"the mean of {wide.type} drops its dim before it is used: {mean.y.type}")
    scaled: Value | None = None
    for user in func.users(root):
        if isinstance(user, Div if divides else Mul) and other_operand(user, root) is wide:
            scaled = user.y if not divides or user.rhs is root else None
    if scaled is None:
        names = ", ".join(u.name for u in func.users(root)) or "nothing"
        return NoMatch(f"the root of the mean square does not scale its own row, but {names}")
    if wide.dtype not in (DType.F32, DType.F64):
        return NoMatch(f"the mean square is computed in {wide.dtype}, not in float32")
    return ScaledRow(wide, eps, scaled)


def _root(mean: Value, func: Func) -> tuple[Value, float, bool] | NoMatch | None:
    """What scales the row: the value, eps, and whether it divides; for the mean of squares."""
    sums = [u for u in func.users(mean) if isinstance(u, Add) and _root_of(u.y, func)]
    if len(sums) == 1:
        eps = other_operand(sums[0], mean)
        if eps is None or number(eps) is None or not is_scalar(eps):
            seen = "" if eps is None else f", but {called(eps)}, {eps.type}"
            return NoMatch(f"eps is not a constant{seen}")
        return _scale(sums[0].y, float(number(eps) or 0.0), func)
    bounds = [u for u in func.users(mean) if isinstance(u, Maximum) and _root_of(u.y, func)]
    if bounds:
        eps = other_operand(bounds[0], mean)
        seen = None if eps is None else number(eps)
        bound = "" if seen is None else f" of {seen:g}"
        return NoMatch(f"eps is a lower bound{bound} of the mean square, not added to it")
    return _scale(mean, 0.0, func) if _root_of(mean, func) else None


def _root_of(value: Value, func: Func) -> Op | None:
    """The op that takes the (inverse) square root of a value."""
    for user in func.users(value):
        match user:
            case Rsqrt() | Sqrt():
                return user
            case Pow(lhs, rhs) if lhs is value and is_number(rhs, -0.5):
                return user
            case _:
                continue
    return None


def _scale(value: Value, eps: float, func: Func) -> tuple[Value, float, bool] | None:
    root = _root_of(value, func)
    if root is None:
        return None
    y = root.results[0]
    if not isinstance(root, Sqrt):
        return y, eps, False
    for user in func.users(y):
        match user:
            case Reciprocal():
                return user.y, eps, False
            case Div(lhs, rhs) if rhs is y and is_number(lhs, 1):
                return user.y, eps, False
            case _:
                continue
    return y, eps, True


@dataclass(frozen=True)
class Finish:
    """How a scaled row becomes the result of a norm.

    Attributes:
        x: the row before it was widened.
        weight: multiplies the row, where present.
        offset: is added to the weight first.
        bias: is added in the end, where present.
        cast: whether the rounding to x's type comes before the weight, or last.
        y: the result.
    """

    x: Value
    y: Value
    weight: Value | None = None
    offset: float = 0.0
    bias: Value | None = None
    cast: Literal["before_weight", "last"] = "before_weight"


def finish(row: ScaledRow, source: Value, func: Func, *, rows: int, biased: bool) -> Finish:
    """Follow a scaled row to the end of its norm.

    Args:
        row: the scaled row.
        source: what was widened and, in a layer norm, centred.
        func: the func.
        rows: a weight may have this many trailing dims of the row's.
        biased: whether a bias may follow.

    """
    x = narrow(source) if source.dtype is DType.F32 else source  # statistics would be in float32
    user = only_user(func, row.y)
    if isinstance(user, Cast) and user.dtype is x.dtype and x is not source:
        return _rounded_first(Finish(x, user.y), func, rows, biased)
    whole = _weighted(Finish(source, row.y, cast="last"), func, rows, biased)
    if x is source:
        early = whole.weight is not None and not whole.offset and whole.bias is None
        return _as_early(whole) if early or whole.weight is None else whole
    last = only_user(func, whole.y)
    if isinstance(last, Cast) and last.dtype is x.dtype:
        return Finish(x, last.y, whole.weight, whole.offset, whole.bias, "last")
    return whole


def _as_early(found: Finish) -> Finish:
    """The same norm of a row that is not rounded, under the name that the other op has for it."""
    return Finish(found.x, found.y, found.weight, found.offset, found.bias, "before_weight")


def _rounded_first(found: Finish, func: Func, rows: int, biased: bool) -> Finish:
    """Weight and bias of a row that has been rounded; both may be wider than the row."""
    widened = only_user(func, found.y)
    if isinstance(widened, Cast) and widened.dtype is DType.F32:
        wide = Finish(found.x, widened.y, cast=found.cast)
        ahead = _weighted(wide, func, rows, biased)
        return found if ahead.weight is None else ahead
    return _weighted(found, func, rows, biased)


def _weighted(found: Finish, func: Func, rows: int, biased: bool) -> Finish:
    """With the weight that the only reader multiplies by, and the bias that is added next."""
    user = only_user(func, found.y)
    if not isinstance(user, Mul):
        return found
    factor = other_operand(user, found.y)
    parameter = None if factor is None else _parameter(factor, found.x, rows)
    if parameter is None or user.y.dtype is not found.y.dtype:
        return found
    weight, offset = _split_offset(parameter, found)
    found = Finish(found.x, user.y, weight, offset, None, found.cast)
    adder = only_user(func, found.y) if biased else None
    if not isinstance(adder, Add) or adder.y.dtype is not found.y.dtype:
        return found
    summand = other_operand(adder, found.y)
    bias = None if summand is None else _parameter(summand, found.x, rows)
    if bias is None:
        return found
    bias = narrow(bias) if found.y.dtype is found.x.dtype or found.cast == "last" else bias
    return Finish(found.x, adder.y, found.weight, found.offset, bias, found.cast)


def _parameter(value: Value, x: Value, rows: int) -> Value | None:
    """A factor as a weight of the trailing dims of x; None where its shape is another."""
    for rank in range(1, rows + 1):
        bare = without_leading_ones(value, rank)
        if bare.shape == x.shape[len(x.shape) - rank :]:
            return bare
    return None


def _split_offset(weight: Value, found: Finish) -> tuple[Value, float]:
    """A weight written ``w + offset`` in its parts, in the types that the op computes them in."""
    last = found.cast == "last"
    match weight.owner:
        case Add(lhs, rhs) if is_scalar(rhs) and number(rhs) is not None:
            if last and lhs.dtype is not DType.F32:
                return weight, 0.0
            return narrow(lhs) if last else lhs, float(number(rhs) or 0.0)
        case _:
            return narrow(weight) if last or found.y.dtype is found.x.dtype else weight, 0.0
