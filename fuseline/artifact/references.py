"""Ops that run by their references: the only part of loading that needs the IR."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fuseline.artifact.codec import MalformedError
from fuseline.ir.evaluate import Reference
from fuseline.ir.text import parse_func

MOST_TEXT = 16 << 20
"""Characters of a func: it takes some time to read."""


def references(text: str, ops: Collection[int]) -> Mapping[int, Reference]:
    """The references of some ops of a func, by their numbers in it.

    Raises:
        MalformedError: the text is no func, or has no such op.

    """
    if len(text) > MOST_TEXT:
        raise MalformedError(f"a func of {len(text)} characters")
    try:
        func = parse_func(text)
    except Exception as error:  # what ops say of operands that no compiler has given them
        said = f"{type(error).__name__}: {error}"
        raise MalformedError(f"a func that cannot be read: {said[:200]}") from error
    if any(not 0 <= number < len(func.ops) for number in ops):
        raise MalformedError(f"a func of {len(func.ops)} ops that lacks one")
    return {number: Reference(func.ops[number]) for number in ops}


__all__ = ["references"]
