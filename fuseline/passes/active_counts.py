"""Which sizes of a func only say how many adapters are in use: graphs may take a greater one."""

from __future__ import annotations

import sympy

from fuseline.ir.core import Func
from fuseline.ir.ops.adapters import MultiLora
from fuseline.ir.types import IntType, free_symbols
from fuseline.passes.row_rules import reads


def active_counts(func: Func) -> dict[str, int]:
    """The symbols that say how many adapters may have rows, and nothing else, and what each is at
    most.

    A greater value of such a symbol changes no result: launches have more blocks, and those end at
    once.
    """
    found: dict[str, int] = {}
    for op in func.ops:
        if isinstance(op, MultiLora) and isinstance(op.active, sympy.Symbol):
            most = op.a.shape[0]
            if isinstance(most, int):
                found[str(op.active)] = min(most, found.get(str(op.active), most))
    return {name: most for name, most in found.items() if not _has_other_use(func, name)}


def _has_other_use(func: Func, name: str) -> bool:
    """Whether a value has this extent, or an op reads it as anything but a number of adapters."""
    values = [v for v in func.args if not isinstance(v.type, IntType)]
    values += [v for op in func.ops for v in op.results]
    if any(name in free_symbols(extent) for v in values for extent in v.shape):
        return True
    for op in func.ops:
        for key, value in op.attributes.items():
            if isinstance(value, Func):
                if _has_other_use(value, name):
                    return True
            elif reads(value, name) and not (isinstance(op, MultiLora) and key == "active"):
                return True
    return False


__all__ = ["active_counts"]
