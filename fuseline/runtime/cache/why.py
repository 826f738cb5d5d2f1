"""Why an entry was not found: the nearest one that there is, and the factors that differ."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fuseline.runtime.cache.entry import Entry, Factors, Json, flatten


@dataclass(frozen=True)
class Difference:
    """One factor that two keys do not share; None stands for a factor that is absent."""

    factor: str
    here: Json
    there: Json

    def __str__(self) -> str:
        if isinstance(self.here, list) and isinstance(self.there, list):
            only_here = [str(item) for item in self.here if item not in self.there]
            only_there = [str(item) for item in self.there if item not in self.here]
            return f"{self.factor}: {' '.join(only_here)!r} here, {' '.join(only_there)!r} there"
        return f"{self.factor}: {self.here!r} here, {self.there!r} there"


@dataclass(frozen=True)
class Why:
    """An entry, the nearest other of its kind, and how their keys differ."""

    entry: Entry
    nearest: Entry | None
    differences: tuple[Difference, ...]


def differences(here: Factors, there: Factors) -> tuple[Difference, ...]:
    """The factors in which two keys differ, by name."""
    ours, theirs = flatten(here), flatten(there)
    return tuple(
        Difference(name, ours.get(name), theirs.get(name))
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    )


def nearest(factors: Factors, candidates: Iterable[Entry]) -> Entry | None:
    """The candidate with the fewest differing factors; of equals, the one used last."""
    ranked = [
        (len(differences(factors, entry.factors)), -entry.used, entry) for entry in candidates
    ]
    return min(ranked, key=lambda item: item[:2])[2] if ranked else None
