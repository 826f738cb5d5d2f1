"""The census: which architectures are examined, side by side or one after the other."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING

from fuseline.cli.zoo.results import Result, Results
from fuseline.cli.zoo.worker import Examine, Limits, Worker

if TYPE_CHECKING:
    from fuseline.config import Config

POLL = 0.5
"""Seconds between looks at the clock of workers."""


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        names: the architectures to examine.
        dtype: of the weights.
        config: the options of the compilations.
        jobs: how many at a time.
        limits: of each.
    """

    names: tuple[str, ...]
    dtype: str
    config: Config
    jobs: int = 1
    limits: Limits = Limits()


def chosen(names: Sequence[str], pattern: str | None) -> tuple[str, ...]:
    """The names that a regular expression matches as a whole; all without one."""
    return tuple(n for n in names if pattern is None or re.fullmatch(pattern, n))


def census(plan: Plan, examine: Examine) -> Iterator[Result]:
    """Examine every architecture of a plan, and give the results as they come."""
    waiting = list(reversed(plan.names))
    running: list[Worker] = []
    try:
        while waiting or running:
            while waiting and len(running) < plan.jobs:
                name = waiting.pop()
                running.append(Worker(examine, name, plan.dtype, plan.config, plan.limits))
            wait([worker.sentinel for worker in running], timeout=POLL)
            for worker in list(running):
                result = worker.result()
                if result is not None:
                    running.remove(worker)
                    yield result
    finally:
        for worker in running:
            worker.end()


def resumed(path: Path | None, fresh: Callable[[], Results]) -> Results:
    """The results in a file, where they are of the same versions; else none yet."""
    empty = fresh()
    if path is None or not path.exists():
        return empty
    try:
        found = Results.load(path)
    except ValueError:
        return empty
    same = (found.versions, found.names) == (empty.versions, empty.names)
    return found if same else empty


def versions() -> dict[str, str]:
    """What the results depend on; fuseline's sources by their digest."""
    packages = ("torch", "transformers")
    found = {name: importlib.metadata.version(name) for name in packages}
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **found, "fuseline": _digest()}


def _digest() -> str:
    """A digest of the sources of fuseline, templates included, but for those of this command."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in (".py", ".jinja") and root / "cli" not in path.parents:
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
