"""A sequence of ops in program order that takes edits anywhere at little cost.

Each op has a rank, a float between those of its neighbours, so that an insertion or a removal
moves nobody else, and the place of an op is found by bisection.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class Order(Mapping[ItemT, int], Generic[ItemT]):
    """Items in order, each once; as a mapping, from an item to its place among them."""

    def __init__(self, items: Iterable[ItemT] = ()) -> None:
        self._items = list(dict.fromkeys(items))
        self._held = False
        self._number()

    def _number(self) -> None:
        self._ranks = [float(i) for i in range(len(self._items))]
        self._rank = dict(zip(self._items, self._ranks, strict=True))

    @property
    def items_in_order(self) -> Sequence[ItemT]:
        """The items: a snapshot, which later edits leave alone."""
        self._held = True
        return self._items

    def _own(self) -> list[ItemT]:
        """The list of items to edit: a new one where a snapshot of the present one is out."""
        if self._held:
            self._items, self._held = self._items.copy(), False
        return self._items

    def append(self, item: ItemT) -> None:
        """Put an item at the end."""
        rank = self._ranks[-1] + 1.0 if self._ranks else 0.0
        self._own().append(item)
        self._ranks.append(rank)
        self._rank[item] = rank

    def insert(self, before: ItemT, items: Sequence[ItemT]) -> None:
        """Put items, in order, before one that is there."""
        place = self[before]
        low = self._ranks[place - 1] if place else self._ranks[0] - 1.0
        step = (self._ranks[place] - low) / (len(items) + 1)
        ranks = [low + step * (i + 1) for i in range(len(items))]
        self._own()[place:place] = items
        bounds = [low, *ranks, self._ranks[place]]
        if any(a >= b for a, b in pairwise(bounds)):
            self._number()  # no float is left between the neighbours
            return
        self._ranks[place:place] = ranks
        self._rank.update(zip(items, ranks, strict=True))

    def remove(self, item: ItemT) -> None:
        """Take an item out."""
        place = self[item]
        del self._own()[place]
        del self._ranks[place]
        del self._rank[item]

    def rank(self, item: ItemT) -> float:
        """A number that is the greater the later the item comes: a key to sort by."""
        return self._rank[item]

    def __getitem__(self, item: ItemT) -> int:
        return bisect_left(self._ranks, self._rank[item])

    def __contains__(self, item: object) -> bool:
        return item in self._rank

    def __iter__(self) -> Iterator[ItemT]:
        return iter(self.items_in_order)

    def __len__(self) -> int:
        return len(self._items)
