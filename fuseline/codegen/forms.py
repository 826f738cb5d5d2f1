"""What a report says of ops that are done in one form for some sizes, and in another for others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from fuseline.ir.types import Dim

When: TypeAlias = "tuple[Dim, int, int | None] | None"
"""The bounds, both included, that a size lies in where a launch runs; None for any."""


@dataclass(frozen=True)
class Form:
    """How one launch does its part of an op.

    Attributes:
        part: what is done, as ``attention``.
        words: how, as ``absorbed``.
        unit: what is counted to choose that, as ``queries``.
    """

    part: str
    words: str
    unit: str


def described(chosen: Iterable[tuple[Form | None, When]]) -> dict[str, str]:
    """For each part the forms by size: ``absorbed up to 24 queries, expanded beyond``."""
    parts: dict[str, list[tuple[Form, When]]] = {}
    for form, when in chosen:
        if form is not None:
            parts.setdefault(form.part, []).append((form, when))
    return {part: _ranges(forms) for part, forms in parts.items()}


def _ranges(forms: list[tuple[Form, When]]) -> str:
    """Forms with the last size of each, those that go on in the next range as one."""
    ends: list[tuple[str, int | None]] = []
    for form, when in sorted(forms, key=lambda f: f[1][1] if f[1] else 0):
        end = None if when is None else when[2]
        if ends and ends[-1][0] == form.words:
            ends.pop()
        ends.append((form.words, end))
    if len(ends) == 1:
        return ends[0][0]
    unit = forms[0][0].unit
    said = [
        f"{words} beyond" if end is None else f"{words} up to {end}{'' if i else f' {unit}'}"
        for i, (words, end) in enumerate(ends)
    ]
    return ", ".join(said)
