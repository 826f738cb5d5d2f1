"""What importer functions build with, and the registry that they fill.

An importer function is named for the overloads that it imports and takes a `Builder` and the
overload's own arguments, with values in place of tensors and dims in place of symbolic integers:

    @imports("aten.neg.default")
    def _neg(b: Builder, x: Value) -> Value:
        return b.add(Neg(x)).y

It gives the result (a value, or a tuple of them) or `NotImplemented` for arguments that the IR has
no op for; the call is then kept as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import sympy
import torch
from torch import Tensor

from fuseline.frontend.dims import import_dim
from fuseline.ir.core import Func, Loc, Op, Value
from fuseline.ir.ops.create import Full
from fuseline.ir.ops.pointwise import Cast
from fuseline.ir.ops.view import Expand, Permute, Reshape, Slice
from fuseline.ir.types import Dim, DType, Range, TensorType, free_symbols, symbol

OpT = TypeVar("OpT", bound=Op)
Importer: TypeAlias = Callable[..., Any]
Scalar: TypeAlias = "bool | int | float | sympy.Expr"

IMPORTERS: dict[str, Importer] = {}
"""The importer function of each overload, by its dotted name."""

FunctionT = TypeVar("FunctionT", bound=Importer)


class UnsupportedError(Exception):
    """Something in a program that the IR has no type or op for, not even a call kept whole."""


def imports(*overloads: str) -> Callable[[FunctionT], FunctionT]:
    """Register an importer function for overloads such as ``aten.add.Tensor``."""

    def register(function: FunctionT) -> FunctionT:
        for overload in overloads:
            if IMPORTERS.setdefault(overload, function) is not function:
                raise ValueError(f"{overload} has two importer functions")
        return function

    return register


def tensor_type_of(fake: Tensor) -> TensorType:
    """The IR type of a traced tensor.

    Raises:
        UnsupportedError: the IR does not have its element type.

    """
    try:
        dtype = DType.from_torch(fake.dtype)
    except KeyError as error:
        raise UnsupportedError(f"the element type {fake.dtype}") from error
    return TensorType(dtype, tuple(import_dim(s) for s in fake.shape))


@dataclass
class Builder:
    """Appends ops to a func, at the place in the user's source that is being imported.

    Attributes:
        func: the func.
        loc: the place given to ops.
        expected: the types that tracing found for the results of the present call.
        moves: whether the result of the present call lies on another device than an operand.
    """

    func: Func
    loc: Loc = field(default_factory=Loc)
    expected: tuple[TensorType, ...] = ()
    moves: bool = False

    def add(self, op: OpT) -> OpT:
        """Append an op."""
        op.loc = self.loc
        return self.func.append(op)

    def full(self, value: Scalar, dtype: DType, shape: Sequence[Dim] = ()) -> Value:
        """A constant tensor."""
        if dtype.is_float and not isinstance(value, sympy.Expr):
            value = float(value)
        elif dtype is DType.BOOL:
            value = bool(value)
        elif not isinstance(value, sympy.Expr):
            value = int(value)
        return self.add(Full(value=value, shape=tuple(shape), dtype=dtype)).y

    def scalar(self, value: Scalar, like: Value) -> Value:
        """A Python number as a 0-d operand beside ``like``, which it promotes as torch says.

        Beside a narrow float it is float32: torch computes in float32 there and does not round
        the number to the narrow type first.
        """
        dtype = like.dtype
        if dtype.is_float:
            wide = like.tensor.rank > 0 and dtype is not DType.F64
            return self.full(value, DType.F32 if wide else dtype)
        if isinstance(value, bool):
            return self.full(value, DType.BOOL)
        if isinstance(value, float):
            return self.full(value, DType.F32)
        return self.full(value, DType.I64 if like.tensor.rank or dtype is DType.BOOL else dtype)

    def operand(self, value: Value | Scalar, like: Value | Scalar) -> Value:
        """An operand of a binary call, whether it was a tensor or a number."""
        if isinstance(value, Value):
            return value
        if isinstance(like, Value):
            return self.scalar(value, like)
        return self.full(value, DType.F32 if isinstance(value, float) else DType.I64)

    def cast(self, x: Value, dtype: DType) -> Value:
        """``x`` as another element type, itself where it has it."""
        return x if x.dtype is dtype else self.add(Cast(x, dtype=dtype)).y

    def reshape(self, x: Value, shape: Sequence[Dim]) -> Value:
        """The elements of ``x`` under another shape, itself where it has it."""
        return x if x.shape == tuple(shape) else self.add(Reshape(x, shape=tuple(shape))).y

    def permute(self, x: Value, dims: Sequence[int]) -> Value:
        """``x`` with its dims in another order, itself where nothing moves."""
        order = tuple(dims)
        return x if order == tuple(range(len(order))) else self.add(Permute(x, dims=order)).y

    def expand(self, x: Value, shape: Sequence[Dim]) -> Value:
        """``x`` broadcast to a shape, itself where it has it."""
        return x if x.shape == tuple(shape) else self.add(Expand(x, shape=tuple(shape))).y

    def slice(self, x: Value, axis: int, start: Dim, stop: Dim, step: int = 1) -> Value:
        """A slice along one axis, ``x`` itself where it is whole."""
        if start == 0 and stop == x.shape[axis] and step == 1:
            return x
        return self.add(Slice(x, axis=axis, start=start, stop=stop, step=step)).y

    def least(self, extent: Dim) -> int:
        """The smallest value of an extent, as far as it is easily seen; else 0."""
        if isinstance(extent, int):
            return extent
        found = self.func.symbols.get(str(extent))
        return 0 if found is None else found.lo

    def is_nonnegative(self, value: Dim) -> bool:
        """Whether a dim can be shown not to be negative for any sizes."""
        if isinstance(value, int):
            return value >= 0
        lows = {name: self.func.symbols.get(name, Range()).lo for name in free_symbols(value)}
        from_low: Any = value.subs({symbol(name): symbol(name) + lo for name, lo in lows.items()})
        return bool(from_low.expand().is_nonnegative)


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front; 0 for a 0-d value, as torch allows."""
    return axis % rank if rank else 0


def axes_of(axes: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Axes counted from the front in rising order; all of them where none are given."""
    if axes is None:
        return tuple(range(rank))
    given = [axes] if isinstance(axes, int) else list(axes)
    return tuple(sorted(axis_of(a, rank) for a in given)) or tuple(range(rank))


def dtype_of(dtype: torch.dtype | None, default: DType) -> DType:
    """The IR's element type for a ``dtype`` argument."""
    return default if dtype is None else DType.from_torch(dtype)
