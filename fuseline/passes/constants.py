"""What the clean-up rules know of constants, and how they make new ones."""

from __future__ import annotations

import math

from fuseline.ir.core import Value
from fuseline.ir.ops.create import Full
from fuseline.ir.types import Dim, DType

Number = bool | int | float


def uniform(value: Value) -> Number | Dim | None:
    """What every element of a value is, where a `Full` makes it; None elsewhere."""
    owner = value.owner
    return owner.value if isinstance(owner, Full) else None


def number(value: Value) -> Number | None:
    """`uniform`, where it is known at compile time (a dim is not)."""
    found = uniform(value)
    return found if isinstance(found, (bool, int, float)) else None


def is_number(value: Value, wanted: float) -> bool:
    """Whether every element of a value is this number; -0.0 is not 0.0."""
    found = number(value)
    return (
        found is not None
        and found == wanted
        and math.copysign(1.0, found) == math.copysign(1.0, wanted)
    )


def is_scalar(value: Value) -> bool:
    """Whether a value is a 0-d constant: what a Python number in the model becomes."""
    return isinstance(value.owner, Full) and not value.shape


def scalar(value: Number | Dim, dtype: DType) -> Value:
    """A 0-d constant."""
    return Full(value=value, dtype=dtype).y
