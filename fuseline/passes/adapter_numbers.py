"""The adapter of each row, and its factor, in the form that `multi_lora` takes them."""

from __future__ import annotations

from collections.abc import Sequence

from fuseline.ir.core import Value
from fuseline.ir.ops.create import Full
from fuseline.ir.ops.index import Index, IndexSelect
from fuseline.ir.ops.pointwise import Add, Cast, Ge, LogicalNot, Lt, Maximum, Minimum, Where
from fuseline.ir.ops.view import Slice
from fuseline.ir.types import Dim, DType, same
from fuseline.passes.adapter_end import End
from fuseline.passes.adapter_products import AdapterProduct
from fuseline.passes.adapter_rows import PerRow, viewed
from fuseline.passes.constants import number, scalar
from fuseline.passes.expert_body import Refused
from fuseline.passes.wording import called


def count_of(product: AdapterProduct) -> int:
    """How many adapters the stack has.

    Raises:
        Refused: any number.

    """
    count = product.stack.shape[0]
    if not isinstance(count, int):
        raise Refused(f"{called(product.stack.values)} has any number of adapters")
    return count


def limit_of(product: AdapterProduct) -> Dim:
    """How many adapters, the first ones, rows may have."""
    return count_of(product) if product.stack.active is None else product.stack.active


def numbers_of(down: AdapterProduct, up: AdapterProduct, end: End, lead: Sequence[Dim]) -> Value:
    """The adapter of each row, counted from 0; rows that are masked have the number behind all."""
    count, limit = count_of(up), scalar(limit_of(up), DType.I64)
    found = up.numbers.spread(lead)
    found = found if found.dtype is DType.I64 else Cast(found, dtype=DType.I64).y
    wraps = down.stack.wraps and up.stack.wraps and not _is_natural(up.numbers.value)
    if wraps:
        from_end = Add(found, limit).y
        found = Where(Lt(found, scalar(0, DType.I64)).y, from_end, found).y
    if end.keep is None and up.stack.active is None:
        return found
    found = Where(Ge(found, limit).y, scalar(count + 1, DType.I64), found).y  # stays an error
    if end.keep is None:
        return found
    keep = end.keep.spread(lead)
    keep = LogicalNot(keep).y if end.negated else keep
    return Where(keep, found, Full(value=count, shape=tuple(lead), dtype=DType.I64).y).y


def factors_of(factor: PerRow, up: AdapterProduct, numbers: Value, lead: Sequence[Dim]) -> Value:
    """The factor of each row.

    What is gathered of the factors of adapters in use is gathered of all of them: then nothing but
    launches depends on how many these are.
    """
    whole = _factors_of_all(factor, up)
    if whole is None:
        return factor.spread(lead)
    last = scalar(count_of(up) - 1, DType.I64)  # numbers beyond have no adapter, or are an error
    inside = Maximum(Minimum(numbers, last).y, scalar(0, DType.I64)).y
    return Index(whole, (inside,), axes=(0,)).y


def _factors_of_all(factor: PerRow, up: AdapterProduct) -> Value | None:
    """The factors of all adapters, where those of the rows are gathered of the ones in use."""
    match viewed(factor.value).owner:
        case Index(x, (ids,), axes=(0,)) | IndexSelect(x, ids, axis=0):
            pass
        case _:
            return None
    match x.owner:
        case Slice(whole, axis=0, start=0, step=1) if whole.shape == (count_of(up),):
            pass
        case _:
            return None
    alike = viewed(ids) is viewed(up.numbers.value) and up.stack.active is not None
    return whole if alike and same(x.shape[0], limit_of(up)) else None


def _is_natural(value: Value) -> bool:
    """Whether numbers are shown by what makes them not to be negative."""
    owner = viewed(value).owner
    if not isinstance(owner, Maximum):
        return False
    bounds = (number(v) for v in (owner.lhs, owner.rhs))
    return any(b is not None and b >= 0 for b in bounds)


__all__ = ["count_of", "factors_of", "limit_of", "numbers_of"]
