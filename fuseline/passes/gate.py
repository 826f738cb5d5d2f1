"""Which rewrites may be applied: only the first so many, all but some, or none but some.

Numbers shift when another rewrite is left out. So each rewrite also has a name that stays: its
pass, the place of the last op that it replaces, and the how many-th it is of that pass there, as
``fuse-qk-norm@layers.3.attn#1``. A rewrite that is left out is proposed again, under its old name,
also where it is found from another op.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from fuseline.ir.core import Op

NONE = "#"
"""A name that no rewrite has: the only one of `only` where none may be applied."""

NAME = re.compile(r"([a-z0-9_-]+)@([^\s,#@]+)#\d+")
"""The form of names: the pass, and where."""


@dataclass(frozen=True)
class Gate:
    """Which rewrites may be applied.

    Attributes:
        limit: at most this many; None: any number.
        skip: names of rewrites that are left out.
        only: names of those that may be applied; none: all.
    """

    limit: int | None = None
    skip: frozenset[str] = frozenset()
    only: frozenset[str] = frozenset()

    @classmethod
    def of(cls, limit: int | None, skip: Iterable[str], only: Iterable[str]) -> Gate:
        """A gate from the options of a compilation."""
        return cls(limit, frozenset(skip), frozenset(only))

    def closed(self, applied: int) -> bool:
        """Whether nothing more may be applied, after so many."""
        return self.limit is not None and applied >= self.limit

    def allows(self, name: str) -> bool:
        """Whether the rewrite of this name may be applied."""
        return name not in self.skip and (not self.only or name in self.only)


@dataclass
class Names:
    """Gives the rewrites of one run their names."""

    _counts: Counter[str] = field(default_factory=Counter[str])
    _proposed: dict[tuple[str, Op], str] = field(default_factory=dict[tuple[str, Op], str])

    def of(self, rewrite: str, op: Op) -> str:
        """The name of what a rewrite proposes for an op: the same until that is applied."""
        known = self._proposed.get((rewrite, op))
        if known is not None:
            return known
        stem = f"{rewrite}@{_place(op)}"
        self._counts[stem] += 1
        name = self._proposed[rewrite, op] = f"{stem}#{self._counts[stem]}"
        return name

    def applied(self, rewrite: str, op: Op) -> None:
        """What was proposed for it is done: another proposal for the same op is another rewrite."""
        self._proposed.pop((rewrite, op), None)


def _place(op: Op) -> str:
    """Module path, else source line, else the name of what the op makes; fit for a list."""
    place = (op.loc.module or op.loc.source) if op.loc is not None else ""
    if not place:
        place = f"%{op.results[0].hint}" if op.results else op.name
    return re.sub(r"[\s,#@]+", "_", place)


__all__ = ["NAME", "NONE", "Gate", "Names"]
