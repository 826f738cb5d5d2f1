"""Compiled programs as text, and the cache of what programs were compiled to.

What is saved of a program is its func after all passes: rebuilding the plan from it takes a
fraction of what tracing and the passes take, and the kernels are in the cache already.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fuseline import _version, errors
from fuseline.config import Config
from fuseline.ir.core import Func, Value
from fuseline.ir.layout import Layout
from fuseline.ir.text import parse_func, print_func
from fuseline.ir.types import format_dim, parse_dim
from fuseline.report import Site
from fuseline.runtime import packing
from fuseline.runtime.cache import Cache

log = logging.getLogger(__name__)

KIND = "trace"
TRACE, GRAPHS, FORM = "trace.pickle", "graphs.json", "form.txt"
MOST = 64
"""More forms of one program than this are not kept."""


@dataclass(frozen=True)
class SavedProgram:
    """A compiled program: its name, the func after all passes, its sites, and the layouts of its
    arguments and of those results that have one of their own.

    ``places`` are the numbers of the ops that do the work of the sites; -1 where none does.
    """

    name: str
    func: Func
    layouts: Mapping[Value, Layout]
    sites: tuple[Site, ...]
    places: tuple[int, ...]

    def to_text(self) -> str:
        """The program as JSON."""
        strides = [
            [format_dim(s) for s in self.layouts[arg].strides] if arg in self.layouts else None
            for arg in self.func.args
        ]
        results = [
            [number, index, [format_dim(s) for s in self.layouts[value].strides]]
            for number, op in enumerate(self.func.ops)
            for index, value in enumerate(op.results)
            if value in self.layouts
        ]
        return json.dumps(
            {
                "name": self.name,
                "func": print_func(self.func, locations=True),
                "strides": strides,
                "results": results,
                "sites": [asdict(site) for site in self.sites],
                "places": self.places,
            }
        )

    @classmethod
    def of_text(cls, text: str) -> SavedProgram:
        """The program of `to_text`."""
        data: dict[str, Any] = json.loads(text)
        func = parse_func(data["func"])
        layouts = {
            arg: Layout(0, tuple(parse_dim(s) for s in strides))
            for arg, strides in zip(func.args, data["strides"], strict=True)
            if strides is not None
        }
        results: list[tuple[int, int, list[str]]] = data["results"]
        for number, index, strides in results:
            value = func.ops[number].results[index]
            layouts[value] = Layout(0, tuple(parse_dim(s) for s in strides))
        sites = tuple(Site(**site) for site in data["sites"])
        return cls(data["name"], func, layouts, sites, tuple(data["places"]))


@dataclass(frozen=True)
class SavedForms:
    """The forms of programs in the cache: entries numbered from 0 for each set of factors.

    Entries never change. A form that no longer holds (a source has changed) keeps its number, and
    what is compiled in its place gets the next one.
    """

    cache: Cache
    config: Config

    def load(self, factors: Mapping[str, Any]) -> Iterator[tuple[bytes, str]]:
        """The forms saved under these factors."""
        for number in range(MOST):
            try:
                entry = self.cache.get(KIND, self._factors(factors, number))
                if entry is None:
                    return
                yield entry.file(TRACE).read_bytes(), entry.file(GRAPHS).read_text()
            except (errors.CacheError, OSError) as error:
                log.debug("saved forms cannot be read: %s", error)
                return

    def save(self, factors: Mapping[str, Any], form: str, trace: bytes, graphs: str) -> None:
        """Add a form under the first free number, unless another process has added it."""

        def fill(folder: Path) -> None:
            (folder / TRACE).write_bytes(trace)
            (folder / GRAPHS).write_text(graphs)
            (folder / FORM).write_text(form)

        try:
            for number in range(MOST):
                entry = self.cache.get_or_build(KIND, self._factors(factors, number), fill)
                if entry.file(FORM).read_text() == form:
                    return
        except (errors.CacheError, OSError) as error:
            log.debug("a form cannot be saved: %s", error)

    def _factors(self, factors: Mapping[str, Any], number: int) -> dict[str, Any]:
        return {
            **factors,
            "fuseline": _version.__version__,
            "sources": sources_digest(),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "target": self.config.target,
            "disable": list(self.config.disable),
            "cache": self.config.cache,
            "batch_invariant": self.config.batch_invariant,
            "number": number,
        }


@functools.lru_cache(maxsize=1)
def sources_digest() -> str:
    """A digest of what compiles programs: a checkout changes without its version changing."""
    root = Path(__file__).parent
    found = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in (".py", ".jinja", ".cpp", ".h"):
            found.update(path.read_bytes())
    return found.hexdigest()[:16]


def placement(target: object) -> str:
    """A digest of which parameters of a module can be moved: merged products depend on it."""
    if not isinstance(target, nn.Module):
        return ""
    known = dict(target.named_parameters(remove_duplicate=False))
    reasons = sorted(packing.pinned(known).items())
    return hashlib.sha256(json.dumps(reasons).encode()).hexdigest()[:16]
