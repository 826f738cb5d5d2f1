"""Ops that run by their references: the only part of loading that needs the IR."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fuseline.ir.evaluate import Reference
from fuseline.ir.text import parse_func


def references(text: str, ops: Iterable[int]) -> Mapping[int, Reference]:
    """The references of some ops of a func, by their numbers in it."""
    func = parse_func(text)
    return {number: Reference(func.ops[number]) for number in ops}


__all__ = ["references"]
