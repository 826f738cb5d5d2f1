"""What becomes of the experts' outputs: weighed, brought back into slot order, and added up."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from fuseline.ir.core import Func, Op, Value
from fuseline.ir.ops.index import Index, IndexCopy, IndexPut, IndexSelect, Scatter
from fuseline.ir.ops.pointwise import Cast, Mul
from fuseline.ir.ops.reduce import Sum
from fuseline.ir.ops.view import Expand, Reshape
from fuseline.ir.types import Dim, DType, dim, same
from fuseline.passes.canonical_casts import is_exact
from fuseline.passes.expert_body import Refused
from fuseline.passes.expert_rows import Slots, puts_back, restores, slot_rows, unshaped
from fuseline.passes.match import only_user, other_operand
from fuseline.passes.wording import called


@dataclass(frozen=True)
class Weight:
    """The weight of each slot, S elements in slot order.

    ``casts`` are the types that it is cast to in turn; ``dtype`` that of the product with it.
    """

    value: Value
    casts: tuple[DType, ...]
    dtype: DType

    def grid(self, tokens: Dim, k: Dim, rows: DType) -> Value:
        """The weights ``[T, K]``, cast as far as promotion beside rows of a type does not."""
        value, casts = self.value, list(self.casts)
        while casts:
            before = casts[-2] if len(casts) > 1 else value.dtype
            if not is_exact(before, casts[-1]) or _promoted(before, rows) is not self.dtype:
                break
            casts.pop()
        for dtype in casts:
            value = Cast(value, dtype=dtype).y
        if _promoted(value.dtype, rows) is not self.dtype:
            value = Cast(value, dtype=self.dtype).y
        shape = (tokens, k)
        return value if value.shape == shape else Reshape(value, shape=shape).y


def _promoted(one: DType, other: DType) -> DType:
    return DType.from_torch(torch.promote_types(one.torch, other.torch))


@dataclass
class Summed:
    """The way from the products of slots to the sum over each token's slots."""

    y: Value
    tokens: Dim
    k: Dim
    dtype: DType
    weight: Weight | None
    inside: set[Op] = field(default_factory=set[Op])


def summed(func: Func, value: Value, slots: Slots, width: int) -> Summed:
    """Follow the outputs of the experts to their sum.

    Raises:
        Refused: another op stands there, or another reader.

    """
    return _Way(func, value, slots, width).follow()


@dataclass
class _Way:
    func: Func
    value: Value
    slots: Slots
    width: int
    weight: Weight | None = None
    wide: DType | None = None
    inside: set[Op] = field(default_factory=set[Op])

    def follow(self) -> Summed:
        """Step by step, until the sum."""
        while True:
            user = only_user(self.func, self.value)
            if user is None:
                names = ", ".join(u.name for u in self.func.users(self.value)) or "nothing"
                raise Refused(
                    f"{called(self.value)}, of each slot by itself, is read by {names}"
                    + ", and returned" * self.func.is_returned(self.value)
                )
            if isinstance(user, Sum) and (end := self.end(user)) is not None:
                return end
            self.step(user)
            self.inside.add(user)

    def step(self, user: Op) -> None:
        """Take one op in."""
        match user:
            case Mul() if self.weight is None:
                other = other_operand(user, self.value)
                if other is None:
                    raise Refused("the experts' outputs are multiplied by themselves")
                self.weight = weight_of(other, self.value, self.slots, user.y.dtype)
            case Cast(dtype=dtype) if is_exact(self.value.dtype, dtype):
                pass
            case Index(x, (index,), axes=(0,)) | IndexSelect(x, index, axis=0) if x is self.value:
                if not restores(index, self.slots):
                    raise Refused("the rows are picked by an index that does not undo the sort")
                self.slots = self.slots.in_slot_order
            case IndexCopy() | IndexPut() | Scatter() if puts_back(user, self.value, self.slots):
                self.slots = self.slots.in_slot_order
            case Reshape(shape=(*_, last)) if same(last, self.width):
                pass
            case _:
                raise Refused(
                    f"the experts' outputs are read by {user.name}, which neither weighs nor "
                    "sorts nor adds them up"
                )
        self.value = user.results[0]

    def end(self, user: Sum) -> Summed | None:
        """The sum over the slots of a token, if this is it."""
        if self.slots.order is not None or len(user.x.shape) != 3 or user.axes != (1,):
            return None
        tokens, k, _ = user.x.shape
        if not same(dim(tokens * k), self.slots.count):
            raise Refused(f"the sum runs over {k} rows of {user.x.type}, not over a token's slots")
        y, dtype = user.y, user.y.dtype
        reader = only_user(self.func, y)
        if isinstance(reader, Cast) and is_exact(reader.dtype, dtype):
            self.inside.add(user)
            y, dtype = reader.y, reader.dtype
        return Summed(y, tokens, k, dtype, self.weight, self.inside)


def weight_of(value: Value, rows: Value, slots: Slots, dtype: DType) -> Weight:
    """The weights of slots that ``rows`` are multiplied by, in slot order.

    Raises:
        Refused: they are not one number for each row, in the order of the rows.

    """
    source, casts = value, list[DType]()
    while isinstance(source.owner, (Reshape, Expand, Cast)):
        if isinstance(source.owner, Expand) and source.owner.x.tensor.numel != slots.count:
            break
        if isinstance(source.owner, Cast):
            casts.insert(0, source.dtype)
        source = source.owner.x
    if not same(source.tensor.numel, slots.count) or not _is_column(value, rows):
        raise Refused(
            f"the experts' rows are multiplied by {called(value)}, {value.type}, "
            f"which is not one weight for each of {slots.count} slots"
        )
    found = slot_rows(source, slots)
    if found is None:
        raise Refused(f"the weights come from {called(source)}, in another order than the rows")
    return Weight(unshaped(found), tuple(casts), dtype)


def _is_column(value: Value, rows: Value) -> bool:
    """Whether a value has one element for each row."""
    if isinstance(value.owner, Expand):
        value = value.owner.x
    lead = rows.shape[:-1]
    return value.shape == (*lead, 1)
