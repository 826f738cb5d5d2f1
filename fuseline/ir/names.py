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


def names(func: Func) -> dict[Value, str]:
    """A name for each value, no two the same: its hint where that is free, else with a number.

    Funcs in attributes have names of their own.
    """
    return apart([*func.args, *(v for op in func.ops for v in op.results)], set())


def apart(values: Iterable[Value], taken: set[str]) -> dict[Value, str]:
    """Names for values, none like another or one that is ``taken``, which they are added to."""
    found: dict[Value, str] = {}
    counts: dict[str, int] = {}
    for value in values:
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
        known: ops that were settled before; what they define keeps its name, and arguments do.

    """
    new = [op for op in func.ops if op not in known]
    values = [v for op in new for v in op.results]
    taken: set[str] = set()
    if known:
        kept = (v for op in func.ops if op in known for v in op.results)
        taken.update(v.hint for v in kept)
        late = list[Value]()
        for arg in func.args:
            if arg.hint in taken:
                late.append(arg)
            taken.add(arg.hint)
        values = [*late, *values]
    else:
        values = [*func.args, *values]
    for value, name in apart(values, taken).items():
        value.hint = name
    for op in new:
        for attribute in op.attributes.values():
            if isinstance(attribute, Func):
                settle(attribute)


__all__ = ["apart", "names", "settle"]
