"""Which sizes of a func may be rounded up: the rows that a call really has are the same then.

A call of 13 tokens can run as one of 16 where each row is computed from its own row alone. The
added rows of an argument are copies of its last one, so that an index in them is one that occurs,
and that what they write into a cache is what the last row writes there anyway.

`pad_rows` follows the rows of a symbol through a func. Each value has, for some of its dims, an
`Axis`: where the rows lie along it, and what the added ones hold. The rules of the ops are in
`row_rules`; an op without one stops it, with a reason that the report shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fuseline.ir.core import Func, Op, Value
from fuseline.ir.types import BufferType, Dim, IntType, dim, format_dim, free_symbols, same, symbol
from fuseline.passes.row_rules import Axis, Refused, Rows, Walk, apply_rule


@dataclass(frozen=True)
class PaddedRows:
    """How a size is rounded up.

    Attributes:
        args: argument and dim of each extent that grows.
        returns: for each result, the dims that grow, with what lies outside and inside of a row.
        limits: what the size may grow to at most.
    """

    args: tuple[tuple[int, int], ...]
    returns: tuple[tuple[tuple[int, Dim, Dim], ...], ...]
    limits: tuple[Dim, ...] = ()


def pad_rows(func: Func) -> dict[str, PaddedRows | str]:
    """For each symbol that an argument shows, how it may grow, or why it may not."""
    return {name: _padded_rows(func, name) for name in func.symbols if _is_shown(func, name)}


def _padded_rows(func: Func, name: str) -> PaddedRows | str:
    """How a symbol may grow, or why it may not."""
    walk = Walk(name)
    try:
        args = _arguments(func, walk)
        _follow(func, walk)
        returns = [tuple(sorted(_placed(walk.of(value)))) for value in func.returns]
    except Refused as refused:
        return str(refused)
    return PaddedRows(tuple(args), tuple(returns), tuple(dict.fromkeys(walk.limits)))


def _follow(func: Func, walk: Walk) -> None:
    """Find the rows of every value of a func whose arguments are known.

    Raises:
        Refused: an op may mix rows, or is not known not to.

    """
    for op in func.ops:
        found = apply_rule(op, walk, _follow)
        for value, rows in zip(op.results, found, strict=True):
            _check(op, value, rows, walk)
            walk.rows[value] = rows


def _arguments(func: Func, walk: Walk) -> list[tuple[int, int]]:
    """The dims of arguments that grow; their rows are copies."""
    found: list[tuple[int, int]] = []
    for number, arg in enumerate(func.args):
        if isinstance(arg.type, IntType):
            continue
        for axis, extent in enumerate(arg.shape):
            if walk.name not in free_symbols(extent):
                continue
            if isinstance(arg.type, BufferType):
                raise Refused(f"{arg.hint} has this size, and is written in place")
            if arg.origin is not None and arg.origin.kind != "input":
                raise Refused(f"{arg.hint} has this size, and is a {arg.origin.kind}")
            if extent != symbol(walk.name):
                raise Refused(f"{arg.hint} has a size {format_dim(extent)}")
            walk.rows.setdefault(arg, {})[axis] = Axis(1, 1, "copies")
            found.append((number, axis))
    return found


def _is_shown(func: Func, name: str) -> bool:
    """Whether an argument tells the symbol's value: as a bare size, or as an integer."""
    wanted = symbol(name)
    return any(
        wanted in ((a.type.value,) if isinstance(a.type, IntType) else a.shape) for a in func.args
    )


def _check(op: Op, value: Value, rows: Rows, walk: Walk) -> None:
    """Hold a rule to the types: a dim grows if, and only if, there are rows along it."""
    for axis, extent in enumerate(value.shape):
        row = rows.get(axis)
        grows = walk.name in free_symbols(extent)
        fits = row is None or same(dim(row.outer * symbol(walk.name) * row.inner), extent)
        if grows != (row is not None) or not fits:
            raise Refused(f"{op.name} gives a size {format_dim(extent)}")


def _placed(rows: Mapping[int, Axis]) -> list[tuple[int, Dim, Dim]]:
    return [(axis, row.outer, row.inner) for axis, row in rows.items()]


__all__ = ["PaddedRows", "pad_rows"]
