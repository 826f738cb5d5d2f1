"""Tokens and their choices, and what one turn of a loop over experts picks of them and adds to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fuseline.ir.core import Op, Value
from fuseline.ir.ops.index import Gather
from fuseline.ir.ops.pointwise import Cast
from fuseline.ir.ops.view import Reshape, Slice
from fuseline.ir.types import Dim, DType, product, same
from fuseline.passes.expert_body import Refused
from fuseline.passes.expert_chain import expert_weighed_by
from fuseline.passes.expert_gate import Gate, gate_of
from fuseline.passes.expert_picks import Picked, picked
from fuseline.passes.expert_products import lie_within
from fuseline.passes.match import reshaped
from fuseline.passes.wording import called


@dataclass(frozen=True)
class Link:
    """One addition: ``rows`` are added to the sum so far, at the place where the mask is true.

    ``written``: they are written over what was there.
    """

    op: Op
    rows: Value
    place: Picked
    written: bool = False
    inside: tuple[Op, ...] = ()

    @property
    def total(self) -> Value:
        """The sum before."""
        return self.place.source


@dataclass(frozen=True)
class Weighed:
    """The weights of one expert's rows: one for each slot of a token, ``[T, K]``."""

    values: Value
    casts: tuple[DType, ...] = ()

    @property
    def grid(self) -> Value:
        """The weights, cast as the model casts what it picks of them."""
        found = self.values
        for dtype in self.casts:
            found = found if found.dtype is dtype else Cast(found, dtype=dtype).y
        return found


@dataclass(frozen=True)
class Tokens:
    """Tokens and their choices.

    Attributes:
        indices: the experts' numbers.
        slots: the dim of these that runs over a token's slots; None where there is one only.
        count: how many tokens there are.
        chosen: the weights of the chosen experts, by those of all.
    """

    indices: Value
    slots: int | None
    count: Dim
    chosen: dict[Value, Value | None] = field(default_factory=dict[Value, "Value | None"])

    @classmethod
    def of(cls, link: Link, end: Value) -> Tokens:
        """The tokens that are the rows of the sum, as an addition to it finds them."""
        indices, count = link.place.mask.indices, product(end.shape[:-1])
        if not same(indices.shape[-1], 1) and same(product(indices.shape[:-1]), count):
            return cls(indices, len(indices.shape) - 1, count)
        if same(indices.tensor.numel, count):
            return cls(indices, None, count)
        raise Refused(f"the experts' numbers are {indices.type}, and the sum is {end.type}")

    @property
    def k(self) -> Dim:
        """How many slots a token has."""
        return 1 if self.slots is None else self.indices.shape[self.slots]

    @property
    def dims(self) -> list[int]:
        """The dims of the experts' numbers that tell tokens apart."""
        extents = enumerate(self.indices.shape)
        return [i for i, e in extents if i != self.slots and not same(e, 1)]

    def check(self, link: Link) -> None:
        """An addition must be to the rows of the tokens that chose the expert."""
        place = link.place
        if place.mask.indices is not self.indices:
            raise Refused("the experts are chosen by different choices")
        if not self.are_rows(place):
            raise Refused(
                f"expert {place.mask.expert} is added to {called(place.source)}, "
                f"{place.source.type}, elsewhere than at the rows of its tokens"
            )

    def are_rows(self, place: Picked) -> bool:
        """Whether whole rows of tokens are picked."""
        return self._follows(place, self.dims, rest=1)

    def are_elements(self, place: Picked) -> bool:
        """Whether one element for each token is picked."""
        return self._follows(place, self.dims, rest=0)

    def are_slots(self, place: Picked) -> bool:
        """Whether one element for each slot is picked."""
        slots = [] if self.slots is None or same(self.k, 1) else [self.slots]
        return self._follows(place, [*self.dims, *slots], rest=0)

    def _follows(self, place: Picked, dims: Sequence[int], *, rest: int) -> bool:
        """Whether a place has these dims in order, and one element in all but ``rest`` others."""
        axes, shape = dict(place.axes), place.source.shape
        kept = shape[: len(shape) - rest]
        follows = [axes.get(axis) for axis in range(len(kept))]
        found = [(f, e) for f, e in zip(follows, kept, strict=True) if f is not None]
        others = [e for f, e in zip(follows, kept, strict=True) if f is None]
        return (
            max(axes) < len(kept)
            and [f for f, _ in found] == list(dims)
            and all(isinstance(f, int) and same(e, self.indices.shape[f]) for f, e in found)
            and all(same(e, 1) for e in others)
        )

    def rows(self, value: Value, link: Link) -> Value | None:
        """What the rows of an expert's tokens are picked of."""
        place = picked(value)
        if place is None or not place.mask.is_aligned(link.place.mask, self.slots):
            return None
        return plain(place.source) if self.are_rows(place) else None

    def weights(self, value: Value, link: Link) -> Weighed | None:
        """The weights of all slots, of which those of an expert's rows are picked."""
        casts: list[DType] = []
        while isinstance(value.owner, (Cast, Reshape)):
            if isinstance(value.owner, Cast):
                casts.insert(0, value.dtype)
            value = value.owner.x
        place, column = picked(value), None
        if isinstance(value.owner, Slice) and value.owner.axis == len(value.shape) - 1:
            place, column = picked(value.owner.x), value.owner.start
        if place is None or not place.mask.is_aligned(link.place.mask, self.slots):
            return None
        found = self._of_expert(place, column, link)
        return None if found is None else Weighed(found, tuple(casts))

    def _of_expert(self, place: Picked, column: object, link: Link) -> Value | None:
        """The weights ``[..., K]`` of which a place, or one column of its rows, has an expert's."""
        expert, source = link.place.mask.expert, place.source
        if column is not None:
            return self._chosen(source) if column == expert and self.are_rows(place) else None
        if self.are_elements(place) and (found := self._of_column(source, expert)) is not None:
            return found
        return source if self.are_slots(place) else None

    def _of_column(self, source: Value, expert: int | None) -> Value | None:
        """The weights of the slots, of which a value has those of one expert."""
        each = plain(source).owner
        if isinstance(each, Slice) and each.axis == len(each.x.shape) - 1:
            return self._chosen(each.x) if each.start == expert else None
        gate = expert_weighed_by(source)
        if gate is not None and gate[0] == expert and self._is_of(gate[1]):
            return gate[1].values
        return None

    def _is_of(self, gate: Gate) -> bool:
        return plain(gate.indices) is plain(self.indices)

    def _chosen(self, every: Value) -> Value | None:
        """Of weights of all experts those of the chosen ones, made once."""
        if every not in self.chosen:
            self.chosen[every] = self._choose(every)
        return self.chosen[every]

    def _choose(self, every: Value) -> Value | None:
        gate = gate_of(every)
        if gate is not None and self._is_of(gate):
            return gate.values
        extent = every.shape[-1]
        indices = reshaped(self.indices, (*every.shape[:-1], self.k))
        if not isinstance(extent, int) or not lie_within(self.indices, extent):
            return None
        return Gather(every, indices, axis=len(every.shape) - 1).y


def plain(value: Value) -> Value:
    """What a value is reshapes of."""
    while isinstance(value.owner, Reshape):
        value = value.owner.x
    return value
