"""Which entries are meant, by kind, target, name and age."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fuseline.runtime.cache.entry import Entry

_ANY = "auto"
"""The factor `target` of what is for no single target."""


@dataclass(frozen=True)
class Selection:
    """What is asked of entries; a field that is empty asks nothing.

    Attributes:
        kinds: one of these kinds.
        targets: built for one of these targets, or for none in particular.
        names: a name that fits one of these patterns, with ``*``, ``?`` and ``[...]``.
        since: used within so many seconds.
    """

    kinds: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    since: float | None = None

    def of(self, entries: Iterable[Entry]) -> list[Entry]:
        """The entries that are meant."""
        everything = list(entries)
        known = {entry.key: entry for entry in everything}
        now = time.time()
        return [entry for entry in everything if self._fits(entry, known, now)]

    def __str__(self) -> str:
        named = {"--kind": self.kinds, "--target": self.targets, "--name": self.names}
        words = [f"{option} {value}" for option, values in named.items() for value in values]
        return " ".join([*words, *([] if self.since is None else [f"--since {self.since:g}s"])])

    def _fits(self, entry: Entry, known: Mapping[str, Entry], now: float) -> bool:
        if self.kinds and entry.kind not in self.kinds:
            return False
        if self.names and not any(fnmatch.fnmatchcase(entry.name, name) for name in self.names):
            return False
        if self.since is not None and now - entry.used > self.since:
            return False
        return not self.targets or target_of(entry, known) in (*self.targets, None)


def target_of(entry: Entry, known: Mapping[str, Entry]) -> str | None:
    """The target that an entry was built for; None for what serves several: weights, what is known
    of a compiler, the runner, the launcher of GPU kernels.

    A shared object has no factor of its own for that: its objects have, which `known` holds by key.
    """
    target = entry.factors.get("target")
    if isinstance(target, str):
        return None if target == _ANY else target
    if entry.factors.get("cpu"):  # options that choose a processor
        return "cpu"
    objects = entry.factors.get("objects")
    parts = [known.get(str(key)) for key in objects] if isinstance(objects, list) else []
    return "cpu" if any(part is not None and part.factors.get("cpu") for part in parts) else None


__all__ = ["Selection", "target_of"]
