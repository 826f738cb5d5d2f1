"""Texts of IR as numbers of lines: most lines of a func are in its text after every pass."""

from __future__ import annotations

from collections.abc import Iterable

from fuseline.ir.core import Func
from fuseline.ir.text import print_func


class Lines:
    """Lines that many texts share, each kept once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    @property
    def texts(self) -> tuple[str, ...]:
        """All lines, in the order of their numbers."""
        return tuple(self._numbers)

    def of(self, texts: Iterable[str]) -> tuple[int, ...]:
        """The numbers of some lines; new ones get the next."""
        numbers = self._numbers
        return tuple(numbers.setdefault(text, len(numbers)) for text in texts)


def lines_of(func: Func) -> list[str]:
    """The lines of a func's text, with the places of its ops."""
    return print_func(func, locations=True).splitlines()


def first_lines(lines: list[str]) -> list[int]:
    """Which lines ops begin at, in order: those within an op are indented further."""
    found = [i for i, line in enumerate(lines) if line[:2] == "  " and line[2:3] not in (" ", "")]
    return found[:-1]  # the last is the return


__all__ = ["Lines", "first_lines", "lines_of"]
