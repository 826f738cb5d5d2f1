"""What the commands print: results on standard output, everything else on standard error.

On a terminal long work shows rich's progress; elsewhere it is one plain line per step.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from fuseline.errors import Diagnostic

Show = Callable[[str], None]

SILENCE = 10.0
"""Seconds without a line, at least, while work goes on where there is no terminal."""


@dataclass(frozen=True)
class Output:
    """Where a command writes; `json` is set when a program reads the answer."""

    json: bool = False

    def result(self, data: Mapping[str, object], text: str) -> None:
        """The answer: as one JSON object, or as text."""
        print(json.dumps(finite(data), indent=2, allow_nan=False) if self.json else text)

    def stream(self, text: str) -> None:
        """A part of an answer that comes bit by bit; JSON gets the whole at the end."""
        if not self.json:
            print(text, end="", flush=True)

    def note(self, text: str) -> None:
        """A line for whoever watches."""
        print(text, file=sys.stderr, flush=True)

    def error(self, diagnostic: Diagnostic) -> None:
        """What went wrong, and for a program also where it looks for the answer."""
        self.note(printable(str(diagnostic)))
        if self.json:
            print(json.dumps({"error": diagnostic.to_dict()}, indent=2))

    @contextmanager
    def step(self, text: str) -> Generator[Show]:
        """Show that something is going on: a spinner on a terminal, a line elsewhere.

        What it gives shows how far the work is: at once on a terminal, and elsewhere a line now and
        then, of work that takes long.
        """
        if not sys.stderr.isatty():
            self.note(f"{text} ...")
            yield self._now_and_then(text)
            return
        from rich.console import Console  # slow to import, and not needed elsewhere
        from rich.markup import escape

        with Console(file=sys.stderr).status(escape(text)) as status:
            yield lambda detail: status.update(escape(f"{text}: {detail}"))

    def _now_and_then(self, text: str) -> Show:
        latest = time.monotonic()

        def show(detail: str) -> None:
            nonlocal latest
            if (now := time.monotonic()) - latest >= SILENCE:
                latest = now
                self.note(f"{text}: {detail}")

        return show


def printable(text: str) -> str:
    """A text of lines, with what a terminal would obey, and not show, as escapes: files say it."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def finite(value: object) -> object:
    """The same with what JSON has no numbers for (NaN and infinities) as text."""
    match value:
        case float():
            return value if math.isfinite(value) else str(value)
        case Mapping():
            items = cast("Mapping[object, object]", value).items()
            return {key: finite(item) for key, item in items}
        case list() | tuple():
            return [finite(item) for item in cast("Sequence[object]", value)]
        case _:
            return value


def columns(rows: list[list[str]], indent: str = "  ") -> str:
    """Rows of cells as aligned text."""
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        indent + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
