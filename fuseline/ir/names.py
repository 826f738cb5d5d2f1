"""The names of values: each value of a func has one of its own, and keeps it from pass to pass.

A value's hint is what it is called in the text form. Ops are made with hints that others have too
(the name of a declared result, or the name of the value that they replace), so after each pass the
manager settles the names. A func and what is parsed from its text then have the same names, which
is why the text that a pass gives is the same for both.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from fuseline.ir.core import Func, Op, Value

_NUMBER = re.compile(r"\.\d+$")


def names(func: Func, known: Collection[Op] = ()) -> dict[Value, str]:
    """A name for each value, no two the same: its hint where that is free, else with a number.

    Args:
        func: what defines the values; funcs in attributes have names of their own.
        known: ops whose results, and arguments with them, choose first: they had names before.

    """
    values = [*func.args, *(v for op in func.ops for v in op.results)]
    found: dict[Value, str] = {}
    taken: set[str] = set()
    if known:
        for value in values:
            if (value.owner is None or value.owner in known) and value.hint not in taken:
                taken.add(value.hint)
                found[value] = value.hint
    return apart(values, found)


def apart(values: Iterable[Value], found: dict[Value, str]) -> dict[Value, str]:
    """Names for values, none like another or like one that was found before, which are kept."""
    taken = set(found.values())
    counts: dict[str, int] = {}
    for value in values:
        if value in found:
            continue
        name = value.hint or "v"
        if name in taken:
            base = _NUMBER.sub("", name)
            name = base
            while name in taken:
                counts[base] = counts.get(base, 0) + 1
                name = f"{base}.{counts[base]}"
        taken.add(name)
        found[value] = name
    return found


def settle(func: Func, known: Collection[Op] = ()) -> None:
    """Make the names of all values, those in the funcs of attributes too, their hints.

    Args:
        func: its values' hints are set.
        known: ops that were settled before; what they define keeps its name.

    """
    for value, name in names(func, known).items():
        value.hint = name
    for op in func.ops:
        if op not in known:
            for attribute in op.attributes.values():
                if isinstance(attribute, Func):
                    settle(attribute)


__all__ = ["apart", "names", "settle"]
