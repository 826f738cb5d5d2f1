"""Rows picked by a mask: of the tokens that chose one expert, in the order of the mask.

Which elements of a mask are true is told by what the mask compares: the experts' numbers, of some
dims of tokens and perhaps one of slots, with the number of one expert. A dim of a mask is named by
the dim of those numbers that it follows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from fuseline.ir.core import Ref, Value
from fuseline.ir.ops.call import AtenCall
from fuseline.ir.ops.index import Index, IndexSelect
from fuseline.ir.ops.pointwise import Cast, Eq, Ne
from fuseline.ir.ops.reduce import Any as AnyOf
from fuseline.ir.ops.view import Permute, Reshape, Slice
from fuseline.ir.types import DType, same
from fuseline.passes.constants import is_number, number
from fuseline.passes.expert_rows import is_running, uncast

Follows: TypeAlias = "int | str | None"
"""What a dim follows: a dim of the experts' numbers, all experts (`EXPERTS`), or nothing, of one
element."""

EXPERTS = "experts"


@dataclass(frozen=True)
class Mask:
    """A value that is true where a token chose an expert.

    Attributes:
        indices: the experts' numbers.
        dims: what each dim of the mask follows.
        expert: the expert; None where a dim runs over all of them.
    """

    indices: Value
    dims: tuple[Follows, ...]
    expert: int | None

    @property
    def last(self) -> int:
        """The last dim of the experts' numbers, which may be that of slots."""
        return len(self.indices.shape) - 1

    def is_aligned(self, other: Mask, slots: int | None) -> bool:
        """Whether the true elements of two masks are of the same tokens in the same order.

        A token chooses an expert in one slot at most: the dim of ``slots`` does not matter where
        it is the last.
        """
        orders = [tuple(d for d in mask.dims if d is not None) for mask in (self, other)]
        one, two = (order[:-1] if order[-1:] == (slots,) else order for order in orders)
        return (self.indices, self.expert, one) == (other.indices, other.expert, two)


def mask_of(value: Value) -> Mask | None:
    """The mask that a value is; None where it is none."""
    found = _mask(value)
    return None if found is None or found.expert is None else found


def _mask(value: Value) -> Mask | None:
    match value.owner:
        case Eq(lhs, rhs):
            return _compared(lhs, rhs, value) or _compared(rhs, lhs, value)
        case Cast(x):
            return _mask(x)
        case Ne(x, zero) if is_number(zero, 0):
            return _mask(x)
        case Permute(x, dims=dims):
            found = _mask(x)
            return found and replace(found, dims=tuple(found.dims[d] for d in dims))
        case Slice(x, axis=axis, start=int(start)):
            return _sliced(_mask(x), value, axis, start)
        case Reshape(x):
            return _reshaped(_mask(x), x, value)
        case AnyOf(x, axes=(axis,), keepdim=keep):
            return _any(_mask(x), axis, keep=keep)
        case _:
            return None


def _compared(ids: Value, other: Value, y: Value) -> Mask | None:
    """``ids == e``, or ``ids[..., None] == arange(experts)``."""
    expert = number(other)
    if isinstance(expert, int) and ids.shape == y.shape:
        return Mask(ids, _dims(ids), expert)
    running = is_running(uncast(other)) and other.tensor.rank == 1
    if not running or ids.shape[-1:] != (1,) or y.shape[:-1] != ids.shape[:-1]:
        return None
    indices = ids.owner.x if isinstance(ids.owner, Reshape) else ids
    if indices.shape != ids.shape[:-1]:
        return None
    return Mask(indices, (*_dims(indices), EXPERTS), None)


def _dims(ids: Value) -> tuple[Follows, ...]:
    return tuple(None if same(e, 1) else i for i, e in enumerate(ids.shape))


def _sliced(mask: Mask | None, y: Value, axis: int, start: int) -> Mask | None:
    if mask is None or mask.dims[axis] != EXPERTS or y.shape[axis] != 1:
        return None
    dims = (*mask.dims[:axis], None, *mask.dims[axis + 1 :])
    return Mask(mask.indices, dims, start)


def _reshaped(mask: Mask | None, x: Value, y: Value) -> Mask | None:
    """Dims of one element come and go; no others may be joined or split."""
    if mask is None or [e for e in x.shape if e != 1] != [e for e in y.shape if e != 1]:
        return None
    moving = iter(d for d, e in zip(mask.dims, x.shape, strict=True) if e != 1)
    return replace(mask, dims=tuple(None if same(e, 1) else next(moving) for e in y.shape))


def _any(mask: Mask | None, axis: int, *, keep: bool) -> Mask | None:
    """Whether a token chose the expert in any slot."""
    if mask is None or mask.dims[axis] == EXPERTS or mask.dims[axis] not in (None, mask.last):
        return None
    return replace(mask, dims=(*mask.dims[:axis], *(None,) * keep, *mask.dims[axis + 1 :]))


# -- what is picked -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Picked:
    """Elements or rows of a value, one for each true element of a mask.

    ``axes`` are those of the source by which they are picked, each with the dim that it follows.
    """

    source: Value
    mask: Mask
    axes: tuple[tuple[int, Follows], ...]


def picked(value: Value) -> Picked | None:
    """What rows are picked of, and by which mask; None where they are not picked so.

    Views that only put dims of one element in, or leave them out, are looked through.
    """
    while isinstance(value.owner, Reshape) and _moving(value) == _moving(value.owner.x):
        value = value.owner.x
    match value.owner:
        case Index(x, indices, axes=axes):
            return by_columns(x, dict(zip(axes, indices, strict=True)))
        case IndexSelect(x, index, axis=axis):
            return by_columns(x, {axis: index})
        case AtenCall((x, condition), target="aten.index.Tensor", args=(Ref(0), (Ref(1),))):
            return by_mask(x, condition)
        case _:
            return None


def _moving(value: Value) -> list[Any]:
    return [e for e in value.shape if e != 1]


def by_columns(x: Value, indices: dict[int, Value]) -> Picked | None:
    """What indices pick along axes; None where they are not all columns of one mask's places."""
    columns = {axis: column_of(index) for axis, index in indices.items()}
    found = [c for c in columns.values() if c is not None]
    if len(found) < len(columns) or any(c.places is not found[0].places for c in found):
        return None
    return Picked(x, found[0].mask, tuple((a, c.follows) for a, c in columns.items() if c))


def by_mask(x: Value, condition: Value) -> Picked | None:
    """What a mask over the first axes picks."""
    mask = mask_of(condition) if condition.dtype is DType.BOOL else None
    return None if mask is None else Picked(x, mask, tuple(enumerate(mask.dims)))


@dataclass(frozen=True)
class Column:
    """One column of the places of a mask's true elements (of ``nonzero``): along one dim."""

    places: Value
    mask: Mask
    follows: Follows


def column_of(value: Value) -> Column | None:
    """The column that a value is, whatever dims of one element it has beside."""
    while isinstance(value.owner, (Reshape, Cast)):
        value = value.owner.x
    match value.owner:
        case Slice(x, axis=1, start=int(start)) if value.shape[1] == 1:
            places, number_ = x, start
        case AtenCall() if value.tensor.rank == 2 and value.shape[1] == 1:
            places, number_ = value, 0  # of a mask of one dim, there is one column
        case _:
            return None
    match places.owner:
        case AtenCall((condition,), target="aten.nonzero.default"):
            mask = mask_of(condition)
            return None if mask is None else Column(places, mask, mask.dims[number_])
        case _:
            return None
