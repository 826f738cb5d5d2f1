"""The rows and columns in which a report prints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fuseline.report import (
        Choice,
        GraphRecord,
        KernelRecord,
        NumericsRecord,
        Option,
        PassRecord,
        Site,
        Stat,
    )

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.| |$)")
"""The number of a layer or an expert in a module path."""

_PLACE = re.compile(r"(.* \()?([^()]*:)(\d+)(\)?)")
"""A module path, where there is one, and a line of a file."""

_ROOM = 100
"""Characters that the details of a site have in a table; JSON and full tables have them whole."""


_LARGE = ("", " k", " M", " G", " T", " P")


def digits(value: float, most: int = 3) -> str:
    """A number as people write it: no more significant digits than ``most``, and no exponent."""
    return f"{Decimal(f'{value:.{most}g}'):f}"


def large(number: float) -> str:
    """A number in three digits and its thousands: ``1.84 M``."""
    value = float(number)
    for unit in _LARGE[:-1]:
        if float(digits(value)) < 1000:
            return f"{digits(value)}{unit}"
        value /= 1000
    return f"{digits(value)}{_LARGE[-1]}"


def site_rows(sites: Iterable[Site], *, full: bool = False) -> list[list[str]]:
    """A row per site; sites that differ only in numbers of their path (layers) share one, which has
    the details that all of them have. In a full table they are only those with the same details.
    """
    alike: dict[tuple[str, ...], list[Site]] = {}
    for s in sites:
        key = (s.status, s.pattern, _NUMBER.sub("*", s.where), s.reason)
        told = _details([s], full=True) if full else ""
        alike.setdefault((*key, told), []).append(s)
    return [
        [
            status,
            pattern,
            f"x{len(group)}" if len(group) > 1 else "",
            _places(group),
            _told(group, full=full),
        ]
        for (status, pattern, *_), group in alike.items()
    ]


def _told(group: Sequence[Site], *, full: bool) -> str:
    """Why sites were missed, or else what they are made of; a full table has both."""
    reason, details = group[0].reason, _details(group, full=full)
    return "; ".join(filter(None, (reason, details))) if full else reason or details


def _details(group: Sequence[Site], *, full: bool) -> str:
    """The details that all sites of a group share, in as much room as there is, or whole."""
    first, *others = group
    shared = [
        f"{name}: {text}"
        for name, text in first.details.items()
        if all(site.details.get(name) == text for site in others)
    ]
    text = "; ".join(shared)
    return text if full or len(text) <= _ROOM else f"{text[: _ROOM - 3]}..."


def resource_cells(kernel: KernelRecord) -> list[str]:
    """What a kernel's machine code needs; dashes for one of a CPU."""
    has = kernel.resources
    if not has:
        return ["-"] * 4
    width = max(has["widest_load"], has["widest_store"])
    return [str(has["registers"]), str(has["shared_memory"]), str(has["spills"]), f"{width} bits"]


def _places(group: Sequence[Site]) -> str:
    """The place of one site, or that of several with the first and last number of each kind."""
    first, last = group[0].where, group[-1].where
    ends = iter(_NUMBER.findall(last))
    return _NUMBER.sub(lambda found: _span(found[0], next(ends)), first)


def _span(first: str, last: str) -> str:
    return first if first == last else f"{first}..{last}"


def folded(places: Iterable[str]) -> list[str]:
    """Places in order, each once; those that differ only in numbers (layers) as one, such as
    ``layers.0..3,5.mlp``.
    """
    alike: dict[str, list[tuple[str, ...]]] = {}
    for place in dict.fromkeys(places):
        alike.setdefault(_NUMBER.sub("*", place), []).append(tuple(_NUMBER.findall(place)))
    found: list[str] = []
    for form, numbers in alike.items():
        spans = map(_spans, zip(*numbers, strict=True))
        found.append("".join(f"{part}{next(spans, '')}" for part in form.split("*")))
    return found


def by_module(places: Iterable[str]) -> list[str]:
    """Places with the lines of one module in one file together: ``mlp (model.py:81,82)``."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for place in places:
        found = _PLACE.fullmatch(place)
        parts = ("", place, "", "") if found is None else found.groups("")
        module, file, line, end = parts
        alike.setdefault((module, file, end), []).append(line)
    return [
        f"{module}{file}{','.join(sorted(dict.fromkeys(lines), key=_line))}{end}"
        for (module, file, end), lines in alike.items()
    ]


def _line(text: str) -> int:
    return int(text or 0)


def _spans(numbers: Iterable[str]) -> str:
    """Numbers as ranges: ``0..3,5``."""
    spans: list[list[int]] = []
    for number in sorted(set(map(int, numbers))):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(_span(str(first), str(last)) for first, last in spans)


def kernel_rows(kernels: Iterable[KernelRecord]) -> list[list[str]]:
    """A row per kernel: how it runs, its launches, its op and where that is from."""
    return [
        [
            k.status,
            k.symbol,
            f"x{k.launches}",
            f"{k.op} ({k.sizes})" if k.sizes else k.op,
            _because(k.origin, k.reason) + (f" [{k.needs}]" if k.needs else ""),
        ]
        for k in kernels
    ]


def choice_rows(kernels: Iterable[KernelRecord]) -> list[list[str]]:
    """A row for each outcome where there was something to choose, with all sizes that have it."""
    alike: dict[tuple[str, ...], list[Choice]] = {}
    for k in kernels:
        for c in k.choices:
            if len(c.options) > 1:
                key = (k.symbol, c.chosen, c.by, c.note, *(o.label for o in c.options))
                group = alike.setdefault(key, [])
                group += [] if c in group else [c]
    return [
        [symbol, "; ".join(c.sizes for c in group), _chosen(group), note]
        for (symbol, _, _, note, *_), group in alike.items()
    ]


def _chosen(group: Sequence[Choice]) -> str:
    """What was chosen and what not, with the span of their times."""
    options = list(zip(*(c.options for c in group), strict=True))
    words = {same[0].label: _timed(same) for same in options}
    chosen = words.pop(group[0].chosen, group[0].chosen)
    return f"{chosen} by {group[0].by}, not {', '.join(words.values())}"


def _timed(same: Sequence[Option]) -> str:
    first = same[0]
    if first.note:
        return f"{first.label} ({first.note})"
    times = sorted(o.microseconds for o in same if o.microseconds is not None)
    if not times:
        return first.label
    ends = dict.fromkeys(map(digits, (times[0], times[-1])))
    return f"{first.label} ({' to '.join(ends)} us)"


def pass_rows(passes: Iterable[PassRecord]) -> list[list[str]]:
    """A row per pass that changed anything."""
    return [
        [p.name, f"x{p.runs}" if p.runs > 1 else "", f"{p.seconds * 1e3:.1f} ms", _difference(p)]
        for p in passes
        if p.changed
    ]


def worst(records: Iterable[NumericsRecord]) -> NumericsRecord | None:
    """Of some records, the one that is closest to breaking the numbers rule; None where none of
    them compares anything.
    """
    compared = [r for r in records if r.values]
    return max(compared, key=lambda r: (r.share, r.ulp), default=None)


def rewrite_number(record: NumericsRecord) -> str:
    """The number of a rewrite; empty for what has none."""
    return f"#{record.number}" if record.number else ""


def same_bits(records: Sequence[NumericsRecord]) -> str:
    """How many of the records that compare anything have eager's bits."""
    compared = [r for r in records if r.values]
    return f"{sum(r.same for r in compared)} of {len(compared)}"


def largest_error(records: Sequence[NumericsRecord]) -> list[str]:
    """The cells of the record that is closest to breaking the rule; dashes where none compares."""
    found = worst(records)
    return ["-"] * 4 if found is None else error_cells(found)


def error_cells(record: NumericsRecord) -> list[str]:
    """Its error, eager's, the ratio of both, and the share of what is allowed."""
    ratio = "-" if record.ratio is None else f"{record.ratio:.3g}"
    return [f"{record.ulp:.3g}", f"{record.eager_ulp:.3g}", ratio, f"{record.share:.2f}"]


def graph_rows(records: Iterable[GraphRecord]) -> list[list[str]]:
    """A row per set of sizes: what was recorded for it, or why nothing was."""
    return [
        [
            r.kind,
            r.program,
            " ".join(f"{name}={value}" for name, value in r.sizes.items()),
            f"{r.calls} calls",
            r.reason
            or f"{r.replays} replays of {r.graphs}, {r.bytes} bytes, {r.seconds * 1e3:.0f} ms",
        ]
        for r in records
    ]


def _difference(record: PassRecord) -> str:
    counts = [f"{sign}{n}" for sign, n in (("-", record.removed), ("+", record.added)) if n]
    return f"{' '.join(counts)} ops" if counts else "as many ops"


def _because(origin: str, reason: str) -> str:
    return f"{origin}: {reason}" if reason else origin


def number_text(value: Stat) -> str:
    """A number of the statistics, in as many digits as people read."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def section(title: str, rows: Sequence[Sequence[str]]) -> str:
    """A title and its rows in columns; nothing where there are no rows."""
    if not rows:
        return ""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([title, *lines])
