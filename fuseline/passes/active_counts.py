"""Which sizes of a func only say how many adapters are in use: graphs may take a greater one."""

from __future__ import annotations

import sympy

from fuseline.ir.core import Func, Op
from fuseline.ir.ops.adapters import MultiLora
from fuseline.ir.types import IntType, free_symbols, symbol
from fuseline.passes.row_rules import reads


def active_counts(func: Func) -> dict[str, int]:
    """The symbols that say how many adapters may have rows, and nothing else, and what each is at
    most.

    A greater value of such a symbol changes no result: launches have more blocks, and those end at
    once. Where the number itself is data too, `LiftNumbers` has taken it from memory.
    """
    found: dict[str, int] = {}
    for op in func.ops:
        if isinstance(op, MultiLora) and isinstance(op.active, sympy.Symbol):
            most = op.a.shape[0]
            if isinstance(most, int):
                found[str(op.active)] = min(most, found.get(str(op.active), most))
    return {name: most for name, most in found.items() if not _has_other_use(func, name)}


def only_counts(op: Op, name: str) -> bool:
    """Whether an op has a symbol as its number of adapters in use, and reads it as nothing else."""
    if not isinstance(op, MultiLora) or op.active != symbol(name):
        return False
    return not any(reads(value, name) for key, value in op.attributes.items() if key != "active")


def _has_other_use(func: Func, name: str) -> bool:
    """Whether a value has this extent, or an op reads it as anything but a number of adapters."""
    values = [v for v in func.args if not isinstance(v.type, IntType)]
    values += [v for op in func.ops for v in op.results]
    if any(name in free_symbols(extent) for v in values for extent in v.shape):
        return True
    for op in func.ops:
        regions = [value for value in op.attributes.values() if isinstance(value, Func)]
        if any(_has_other_use(region, name) for region in regions):
            return True
        plain = [v for v in op.attributes.values() if not isinstance(v, Func)]
        if any(reads(value, name) for value in plain) and not only_counts(op, name):
            return True
    return False


__all__ = ["active_counts", "only_counts"]
