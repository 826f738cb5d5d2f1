"""How far a value is from the float64 one, beside eager's own: what the numbers rule compares."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

AS_WIDE = 256
"""Units in the last place that a float64 value may be off: the oracle rounds as it does."""

_NEAR_LARGEST = 0.25
"""Share of a type's largest number from which on an element says "nothing here", as in a mask."""


@dataclass(frozen=True)
class Gap:
    """Norms of the differences from the float64 value, over the elements that have a size.

    Attributes:
        own: of the value that is looked at; inf where an infinity, a NaN or an integer is wrong.
        eager: of what eager computes.
        size: the norm of the float64 value.
        unit: one unit in the last place of a number of size 1.
        same: whether the value has eager's bits.
    """

    own: float
    eager: float
    size: float
    unit: float
    same: bool

    @property
    def ulp(self) -> float:
        """The error relative to the float64 value, in units in the last place."""
        return _over(self.own, self.size * self.unit)

    @property
    def eager_ulp(self) -> float:
        """The same of eager."""
        return _over(self.eager, self.size * self.unit)

    @property
    def ratio(self) -> float | None:
        """The error over eager's own; None where eager makes none."""
        return self.own / self.eager if self.eager else None

    def allowed(self, tolerance: float) -> float:
        """The largest error that the numbers rule allows."""
        return tolerance * self.eager + self.size * self.unit

    def share(self, tolerance: float) -> float:
        """The error over what is allowed; above 1 where the rule is broken."""
        return 0.0 if self.same else _over(self.own, self.allowed(tolerance))


SAME = Gap(0.0, 0.0, 0.0, 0.0, same=True)
"""Of a value that has the bits it had."""


def gap(found: Tensor, eager: Tensor, exact: Tensor) -> Gap:
    """Compare a value, and eager's, with the float64 one.

    What is no number of a size (infinities, NaN, and elements about as large as their type allows,
    which stand for infinities in masks) is compared by place, so that it hides nothing beside it.
    Integers and booleans must be eager's.
    """
    if found.shape != eager.shape:
        return Gap(math.inf, 0.0, 0.0, 0.0, same=False)
    if not eager.is_floating_point():
        same = torch.equal(found.to(eager.dtype), eager)
        return Gap(0.0 if same else math.inf, 0.0, 0.0, 0.0, same)
    kind = torch.finfo(eager.dtype)
    ours, theirs, right = found.double(), eager.double(), exact.double()
    alike = (ours == theirs) | (ours.isnan() & theirs.isnan())
    plain = right.isfinite() & theirs.isfinite() & (right.abs() < _NEAR_LARGEST * kind.max)
    near = (ours - right).abs() <= 4 * kind.eps * right.abs()
    wrong = bool((~plain & ~alike & ~(ours == right) & ~near).any())
    off = torch.where(plain, ours - right, 0.0).nan_to_num(nan=math.inf)
    own = math.inf if wrong else float(off.square().sum().sqrt())
    of_eager = float(torch.where(plain, theirs - right, 0.0).square().sum().sqrt())
    size = float(torch.where(plain, right, 0.0).square().sum().sqrt())
    unit = kind.eps * (AS_WIDE if eager.dtype == torch.float64 else 1)
    return Gap(own, of_eager, size, unit, bool(alike.all()))


def _over(error: float, size: float) -> float:
    if error == 0:
        return 0.0
    return error / size if size else math.inf


__all__ = ["AS_WIDE", "SAME", "Gap", "gap"]
