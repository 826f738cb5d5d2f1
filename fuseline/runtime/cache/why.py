"""What tells an entry from others of its kind and name: the factors in which their keys differ."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from fuseline.runtime.cache.entry import Entry, Factors, Json, flatten, printable

_DIGEST = re.compile(r"[0-9a-f]{16,}")
_WIDTH = 60
_NEAR = 5


@dataclass(frozen=True)
class Difference:
    """One factor that two keys do not share; None stands for a factor that is absent."""

    factor: str
    here: Json
    there: Json

    def __str__(self) -> str:
        here, there = self.here, self.there
        if isinstance(here, list) and isinstance(there, list):
            here, there = _only(here, there), _only(there, here)
            if not (here or there):
                return f"{self.factor}: the same in another order"
        return f"{self.factor}: {brief(here)} here, {brief(there)} there"


@dataclass(frozen=True)
class Why:
    """An entry, the nearest other one of its kind and name, and how their keys differ.

    Attributes:
        entry: the one that was asked about.
        others: how many more there are of its kind and name.
        nearest: of these, the one whose key has most in common with it.
        differences: the factors in which the two differ.
    """

    entry: Entry
    others: int = 0
    nearest: Entry | None = None
    differences: tuple[Difference, ...] = ()


def explain(entry: Entry, everything: Iterable[Entry]) -> Why:
    """Compare an entry with those of its kind and name: others have nothing to do with it."""
    likes = [e for e in everything if (e.kind, e.name) == (entry.kind, entry.name)]
    others = [e for e in likes if e.key != entry.key]
    other = nearest(entry.factors, others)
    if other is None:
        return Why(entry)
    return Why(entry, len(others), other, differences(entry.factors, other.factors))


def near_names(wanted: str, entries: Iterable[Entry]) -> list[str]:
    """A few names or kinds that may have been meant: first those that have the text inside."""
    names = sorted({name for entry in entries for name in (entry.kind, entry.name)})
    inside = [name for name in names if wanted in name]
    alike = get_close_matches(wanted, names, n=_NEAR, cutoff=0.5)
    return list(dict.fromkeys([*inside, *alike]))[:_NEAR]


def brief(value: Json) -> str:
    """The value of a factor in a few words: the beginning of a digest, and of a long list."""
    match value:
        case None | [] | {}:
            return "none"
        case list():
            return _brief_list([brief(item) for item in value])
        case str() if _DIGEST.fullmatch(value):
            return value[:12]
        case str() if len(value) > _WIDTH:
            return printable(f"{value[: _WIDTH - 3]}...")
        case str():
            return printable(value)
        case _:
            return str(value)


def _only(items: list[Json], others: list[Json]) -> list[Json]:
    return [item for item in items if item not in others]


def _brief_list(items: Sequence[str]) -> str:
    text = " ".join(items)
    if len(text) <= _WIDTH:
        return text
    return f"{text[:_WIDTH].rsplit(' ', 1)[0]} ... ({len(items)} in all)"


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
