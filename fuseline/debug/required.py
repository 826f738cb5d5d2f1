"""Patterns that must be fused: ``Config(require=["qk_norm", "moe=4"])``, for people who pin speed.

What counts is a call: the graphs that run in it, together, whether they were compiled for it or
came from the cache. A graph alone need not have every pattern, as code around graph breaks is cut
into many of them; and those that an earlier call ran say nothing of this one.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, cast

from fuseline.errors import NOT_FUSED, UNKNOWN_PATTERN
from fuseline.ir.ops.raised import LayerNorm, RmsNorm
from fuseline.passes import pipeline
from fuseline.passes.rewrite import PASSES, Pass, Rewrite
from fuseline.report import BREAK, PLAIN, Report, Site

_SWALLOWED = "swallowed"

_RELATED: Mapping[str, tuple[str, ...]] = {
    "qk_norm": ("rope", "attention", "rms_norm", "layer_norm"),
    "rope": ("qk_norm", "attention"),
    "attention": ("qk_norm", "rope", "mla"),
    "mla": ("attention", "latent_cache", "rope"),
    "latent_cache": ("mla", "attention"),
    "moe": ("route", "gated_mlp"),
    "route": ("moe",),
    "gated_mlp": ("moe", "merged_linear"),
    "merged_linear": ("gated_mlp", "qk_norm"),
    "add_rms_norm": ("rms_norm", "layer_norm"),
    "rms_norm": ("add_rms_norm", "layer_norm", "qk_norm"),
    "layer_norm": ("rms_norm", "qk_norm"),
    "norm_linear": ("rms_norm", "merged_linear"),
    "multi_lora": ("merged_linear",),
}
"""Patterns whose sites tell most where there is none of the one that was asked for."""

_MOST = 4
"""Places that are told of those that have one reason, or of related patterns."""


@dataclass(frozen=True)
class Requirement:
    """A pattern, and of how many sites; without a number, all that look like it, and one at least.

    A part that a larger fusion has swallowed is fused.
    """

    pattern: str
    least: int | None = None

    def __str__(self) -> str:
        if self.least is None:
            return f"every site of {self.pattern}, and one at least"
        return f"{self.least} of {self.pattern}"

    def unmet(self, sites: Sequence[Site]) -> bool:
        """Whether sites are not what is required."""
        fused = sum(map(self._fused_in, sites))
        if self.least is not None:
            return fused < self.least
        return not fused or any(self._is_missed(s) for s in sites)

    def found(self, sites: Sequence[Site]) -> str:
        """What there is in the place of what is required."""
        fused = sum(map(self._fused_in, sites))
        missed = [s for s in sites if self._is_missed(s)]
        if missed:
            places = "; ".join(_reasons(missed))
            return f"{self.pattern}: {fused} fused, {len(missed)} missed, {places}"
        if fused:
            return f"{self.pattern}: {fused} fused, and nothing else that looks like it"
        near = [s for name in _RELATED.get(self.pattern, ()) for s in sites if s.pattern == name]
        other = [s for s in near if s.status == "missed"]
        words = "; ".join(_reasons(other, named=True)) if other else ", ".join(_counts(near))
        return f"{self.pattern}: nothing looks like it{f', nearest: {words}' if words else ''}"

    def _is_missed(self, site: Site) -> bool:
        return (site.pattern, site.status) == (self.pattern, "missed")

    def _fused_in(self, site: Site) -> int:
        """How many times a site has the pattern, fused: as itself, or in itself."""
        if site.status != "fused":
            return 0
        parts = [part for part in site.details.get(_SWALLOWED, "").split("; ") if part]
        inner = sum(part.partition(" at ")[0] == self.pattern for part in parts)
        return inner + (site.pattern == self.pattern)


def _reasons(missed: Iterable[Site], *, named: bool = False) -> Iterator[str]:
    """Each reason once, behind the places that it has, and with the pattern if it is ``named``."""
    places: dict[tuple[str, str], list[str]] = {}
    for site in missed:
        places.setdefault((site.pattern, site.reason), []).append(site.where or "<unknown>")
    for (pattern, reason), found in places.items():
        yield f"{f'{pattern} missed ' if named else ''}at {_some(found)}: {reason}"


def _some(places: Sequence[str]) -> str:
    more = f" and {len(places) - _MOST} more" if len(places) > _MOST else ""
    return ", ".join(places[:_MOST]) + more


def _counts(sites: Sequence[Site]) -> Iterator[str]:
    """The patterns of sites, with the places of some."""
    for pattern in dict.fromkeys(s.pattern for s in sites):
        found = [s.where or "<unknown>" for s in sites if s.pattern == pattern]
        yield f"{pattern} fused at {_some(found)}"


def patterns() -> tuple[str, ...]:
    """The names that sites may have."""
    assert pipeline.default_pipeline, "importing the pipeline registers its passes"
    rewrites = cast("list[type[Rewrite[Any]]]", [c for c in PASSES.values() if _is_rewrite(c)])
    found = {cls.pattern for cls in rewrites if cls.pattern}
    return tuple(sorted(found | {RmsNorm.name, LayerNorm.name}))


def _is_rewrite(cls: type[Pass]) -> bool:
    return issubclass(cls, Rewrite)


def requirements(texts: Iterable[str]) -> tuple[Requirement, ...]:
    """The requirements of the option's texts: ``moe``, or ``moe=4``.

    Raises:
        UsageError: FL0107, for a name that is no pattern.

    """
    found: list[Requirement] = []
    known = patterns()
    for text in texts:
        name, _, number = text.partition("=")
        if name not in known:
            near = get_close_matches(name.replace("-", "_"), known, n=1)
            expected = near[0] if near else f"one of {', '.join(known)}"
            raise UNKNOWN_PATTERN.error(name, where="the option require", expected=expected)
        found.append(Requirement(name, int(number) if number else None))
    return tuple(found)


def check_required(
    required: Iterable[Requirement], report: Report, where: str | None = None
) -> None:
    """Hold the sites of a report to what is required.

    Args:
        required: the requirements.
        report: of the programs that count.
        where: which they are, for the error.

    Raises:
        PassError: FL0401, with the reasons of all that was missed.

    """
    unmet = [each for each in required if each.unmet(report.sites)]
    if not unmet:
        return
    found = [each.found(report.sites) for each in unmet]
    found += [f"not compiled: {r}" for n, r in report.stats.items() if n.startswith(PLAIN)]
    found += [f"graph break: {n.removeprefix(BREAK)}" for n in report.stats if n.startswith(BREAK)]
    expected = "; and ".join(map(str, unmet))
    raise NOT_FUSED.error(where=where, found="; and ".join(found), expected=expected)


class _Running(threading.local):
    """The programs that ran in the call of this thread, by number."""

    def __init__(self) -> None:
        self.programs: set[int] = set()


@dataclass
class Watch:
    """Holds every call to what is required, by the programs that run in it.

    A call that runs what an earlier good one ran costs next to nothing.
    """

    required: tuple[Requirement, ...]
    _sites: dict[int, tuple[Site, ...]] = field(default_factory=dict[int, tuple[Site, ...]])
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _good: set[tuple[frozenset[int], int]] = field(default_factory=set[tuple[frozenset[int], int]])
    _running: _Running = field(default_factory=_Running)

    def around(self, run: Callable[..., Any], sites: tuple[Site, ...]) -> Callable[..., Any]:
        """A program that is noted as it runs."""
        number = next(self._numbers)  # programs are built in threads
        self._sites[number] = sites

        def call(*arguments: Any) -> Any:
            self._running.programs.add(number)
            return run(*arguments)

        return call

    def begin(self) -> None:
        """A call begins."""
        self._running.programs.clear()

    def end(self, outside: Report) -> None:
        """A call has ended; ``outside`` has what is in no program.

        Raises:
            PassError: FL0401.

        """
        ran = frozenset(self._running.programs)
        key = (ran, len(outside.stats))
        if key in self._good:
            return
        check_required(self.required, Report(sites=tuple(self._of(ran))) + outside)
        self._good.add(key)

    def _of(self, ran: Iterable[int]) -> Iterator[Site]:
        for number in sorted(ran):
            yield from self._sites[number]


__all__ = ["Requirement", "Watch", "check_required", "patterns", "requirements"]
