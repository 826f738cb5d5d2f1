"""The results of a census as a table, for a terminal and as a page of the docs.

The page holds nothing that differs from run to run, such as seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fuseline.cli.output import columns
from fuseline.cli.zoo.results import STRUCTURES, Mode, Result, Results

HEADER = (
    "architecture",
    "has",
    "status",
    "sites",
    "missed",
    "prefill error",
    "cache",
    "decode error",
    "host steps",
)

PAGE = """\
# Every architecture of transformers

Made by `make zoo`, which runs `fuseline explain --zoo`: a tiny seeded model of every causal-LM
architecture of transformers, compiled and compared with eager, as {modes}.
Errors are relative to the float64 oracle; a model is wrong where its error is above 1.5 times
eager's own, plus one unit in the last place. Where that is so for the first tokens it may be that
two experts were as good as equal, and that rounding chose one here and the other in eager. Then
nine more seeds of tokens are tried. The table gives the median errors, how many outputs are outside
the rule, and how many of eager's would be if it had to follow the compiled program. Close choices
fall either way: a model is wrong where a sign test rejects that (below 1 %). Sites and host steps
(those that torch runs) are counted over all programs that were compiled: one for several tokens and
one for one token, each in prefill and in decode. Correct in parts: right too, but cut into several
graphs, or with one that torch runs as a whole.

transformers {transformers}, torch {torch}, Python {python}.
"""

MODES = "prefill of batch and length 2x7, 3x13 and 1x1, then decode on a cache"


@dataclass(frozen=True)
class Summary:
    """The numbers of a census: architectures, and how far they came."""

    architectures: int
    configured: int
    captured: int
    correct: int
    captured_and_correct: int
    unexplained: int

    @classmethod
    def of(cls, results: Iterable[Result]) -> Summary:
        """Count results."""
        found = list(results)
        return cls(
            architectures=len(found),
            configured=sum(r.configured for r in found),
            captured=sum(r.captured for r in found),
            correct=sum(r.correct for r in found),
            captured_and_correct=sum(r.status == "correct" for r in found),
            unexplained=sum(bool(r.unexplained) for r in found),
        )

    def __str__(self) -> str:
        share = f" ({self.captured_and_correct / self.architectures:.0%})"
        return (
            f"{self.architectures} architectures, {self.configured} configured, "
            f"{self.captured} captured whole, {self.correct} correct, {self.captured_and_correct}"
            f"{share if self.architectures else ''} both"
        )


def summary(results: Sequence[Result]) -> str:
    """The numbers of all, and of those that have a structure."""
    lines = [str(Summary.of(results))]
    for structure in STRUCTURES:
        those = [r for r in results if structure in r.structures]
        if those:
            numbers = Summary.of(those)
            silent = f"{numbers.unexplained} with sites neither fused nor explained"
            lines.append(f"with {structure}: {numbers}, {silent}")
    return "\n".join(lines)


def text(results: Sequence[Result]) -> str:
    """The table for a terminal, with seconds; then the causes, the misses and the summary."""
    rows = [[*HEADER, "seconds"], *([*_row(r), f"{r.seconds:.0f}"] for r in results)]
    parts = [columns(rows, indent="")]
    for title, lines in (("causes", _causes(results)), ("missed", _misses(results))):
        if lines:
            parts.append("\n".join([title, *(f"  {line}" for line in lines)]))
    return "\n\n".join([*parts, summary(results)])


def page(results: Results) -> str:
    """The page of the docs: a table for each dtype."""
    parts = [PAGE.format(modes=MODES, **results.versions)]
    for dtype in dict.fromkeys(r.dtype for r in results.results):
        found = results.of(dtype)
        lines = "\n".join(f"* {line}" for line in summary(found).splitlines())
        parts.append(f"## {dtype}\n\n{lines}\n\n{_markdown([HEADER, *map(_row, found)])}\n")
        for title, notes in (("Causes", _causes(found)), ("Missed sites", _misses(found))):
            if notes:
                listed = "\n".join(f"* {_escaped(note)}" for note in notes)
                parts.append(f"### {title}, {dtype}\n\n{listed}\n")
    return "\n".join(parts)


def _row(r: Result) -> list[str]:
    fused = sum(r.fused.values())
    missed = sum(miss.count for miss in r.missed)
    host = sum(sum(mode.host.values()) for mode in r.modes)
    ran = any(mode.graphs for mode in r.modes)
    return [
        r.name,
        " ".join(r.structures),
        r.status,
        f"{fused} of {fused + missed}" if ran else "",
        str(missed or "") if ran else "",
        _error(r.prefill),
        r.cache,
        _error(r.decode),
        str(host) if ran else "",
    ]


def _error(mode: Mode | None) -> str:
    """The error beside eager's own."""
    if mode is None:
        return ""
    if mode.error is None or mode.eager_error is None:
        return "failed" if mode.failure else ""
    shown = f"{mode.error:.1e} / {mode.eager_error:.1e}"
    if mode.seeds == 1:
        return shown
    return f"{shown}, {mode.outside} / {mode.eager_outside} of {mode.outputs} outside"


def _causes(results: Iterable[Result]) -> list[str]:
    """Why there is no model, what failed, what was not captured, and why a cache is not static."""
    lines: list[str] = []
    for r in results:
        found = [f"{r.stage}: {r.cause}"] if r.cause else []
        for name, mode in (("prefill", r.prefill), ("decode", r.decode)):
            if mode is not None:
                found += [f"{name}: {reason}" for reason in _reasons(mode)]
        if r.unexplained:
            found.append(f"no site explains {', '.join(dict.fromkeys(r.unexplained))}")
        if r.why_not_static:
            found.append(f"no static cache: {r.why_not_static}")
        lines += [f"{r.name}: {reason}" for reason in dict.fromkeys(found)]
    return lines


def _reasons(mode: Mode) -> list[str]:
    breaks = [
        f"graph break: {reason}{f' (x{count})' if count > 1 else ''}"
        for reason, count in mode.breaks.items()
    ]
    plain = [f"left to torch as a whole: {reason}" for reason in mode.plain]
    own = [mode.failure] * bool(mode.failure)
    if mode.error is not None and not mode.right:
        own.append(
            f"{mode.outside} of {mode.outputs} outputs outside the rule, {mode.eager_outside} of "
            f"eager's by the same measure"
        )
    return [*own, *breaks, *plain]


def _misses(results: Iterable[Result]) -> list[str]:
    """Every reason for a miss, and the architectures where it was met."""
    where: dict[tuple[str, str], list[str]] = {}
    for r in results:
        for miss in r.missed:
            count = f" x{miss.count}" if miss.count > 1 else ""
            where.setdefault((miss.pattern, miss.reason), []).append(f"{r.name}{count}")
    return [f"{p}: {why} ({', '.join(names)})" for (p, why), names in sorted(where.items())]


def _markdown(rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(map(_escaped, row))} |" for row in rows]
    lines.insert(1, f"|{' --- |' * len(HEADER)}")
    return "\n".join(lines)


def _escaped(cell: str) -> str:
    """Text that Markdown shows as it is."""
    for character in "\\`*_[]<|":
        cell = cell.replace(character, f"\\{character}")
    return cell
