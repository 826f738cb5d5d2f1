"""What was decided for an op at a range of sizes, and the table of decisions in the cache.

A decision that was measured is an entry of the kind ``decision``: ``decision.json``, to be read by
people too. Its key has all that could change it: the op, its operands and where they lie, the
sources and launches of all options, the sizes, the device by name, and versions. So it holds for
every layer that is alike, for later processes, and for other machines with the same card; anything
else in the cache is not found by it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

from fuseline import errors
from fuseline.report import Option
from fuseline.runtime.cache import Cache, Json

log = logging.getLogger(__name__)

KIND = "decision"
FILE = "decision.json"
SCHEMA = 1

Form: TypeAlias = Literal["kernels", "library", "reference"]
"""Kernels of ours; calls of torch's libraries in their place; or the op's reference."""


@dataclass(frozen=True)
class Decision:
    """What runs.

    Attributes:
        form: what kind of thing.
        kernels: the symbol of each launch's kernel, with ``form="kernels"``.
        options: what it was chosen from, with times.
        size: the count that was measured.
        rounds: how often each option was timed at most.
    """

    form: Form
    kernels: tuple[str, ...]
    options: tuple[Option, ...]
    size: int
    rounds: int

    def to_text(self) -> str:
        """The decision as JSON."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def of_text(cls, text: str) -> Decision:
        """The decision of `to_text`.

        Raises:
            ValueError, KeyError, TypeError: it is something else.

        """
        data: Any = json.loads(text)
        if data.pop("schema") != SCHEMA or data["form"] not in get_args(Form):
            raise ValueError("a decision of another kind")
        options = tuple(Option(**option) for option in data.pop("options"))
        kernels = tuple(str(symbol) for symbol in data.pop("kernels"))
        return cls(**data, options=options, kernels=kernels)


@dataclass(frozen=True)
class Table:
    """The decisions in a cache, for one device."""

    cache: Cache
    device: str
    versions: Mapping[str, str]

    def factors(self, about: Mapping[str, Json]) -> dict[str, Json]:
        """The key of a decision; ``about`` tells what was decided."""
        versions: dict[str, Json] = dict(self.versions)
        return {**about, "schema": SCHEMA, "device": self.device, "versions": versions}

    def get(self, about: Mapping[str, Json], fits: Callable[[Decision], bool]) -> Decision | None:
        """An earlier decision; none where there is none, or none that makes sense here."""
        try:
            entry = self.cache.get(KIND, self.factors(about))
            if entry is None:
                return None
            found = Decision.of_text(entry.file(FILE).read_text())
        except (errors.CacheError, OSError, ValueError, KeyError, TypeError) as error:
            log.debug("a decision cannot be read: %s", error)
            return None
        return found if fits(found) else None

    def put(self, about: Mapping[str, Json], decision: Decision) -> None:
        """Keep a decision, unless another process has done so; without a cache nothing is kept."""

        def write(folder: Path) -> None:
            (folder / FILE).write_text(decision.to_text())

        try:
            self.cache.get_or_build(KIND, self.factors(about), write)
        except (errors.CacheError, OSError) as error:
            log.debug("a decision is not kept: %s", error)


def as_json(value: object) -> Json:
    """Plain data for a key: tuples as lists, what is no plain data by its text."""
    if isinstance(value, tuple | list):
        return [as_json(item) for item in cast("list[object]", value)]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


__all__ = ["Decision", "Form", "Table", "as_json"]
