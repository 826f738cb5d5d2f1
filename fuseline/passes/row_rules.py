"""What each op does to rows that were added to its operands: see `pad_rows`.

A rule answers with the rows of the op's results, or raises `Refused`. It may assume that a dim of
an operand grows only where the operand has rows along it; what it answers is held to the types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

import sympy

from fuseline.ir.core import Func, Op, Trait, Value
from fuseline.ir.ops.adapters import MultiLora
from fuseline.ir.ops.buffer import IndexWrite
from fuseline.ir.ops.create import Full, Iota
from fuseline.ir.ops.experts import Experts, Moe, Route
from fuseline.ir.ops.fused import (
    AddRmsNorm,
    Copy,
    GatedLinear,
    LinearAdd,
    MergedLinear,
    Pointwise,
    QkNormRope,
    QkNormRopeWrite,
    RmsNormAdd,
    SandwichNorm,
    WideLinear,
)
from fuseline.ir.ops.index import Embedding, Index, IndexSelect
from fuseline.ir.ops.latent import LatentAttention
from fuseline.ir.ops.matmul import Linear, Matmul, Sdpa
from fuseline.ir.ops.merged_rows import MergedRows
from fuseline.ir.ops.mla_projection import MlaProjection, MlaProjectionWrite
from fuseline.ir.ops.norm_linear import NormLinear
from fuseline.ir.ops.pointwise import (
    Cast,
    Div,
    Exp,
    FloorDivide,
    Log,
    Log1p,
    Pow,
    Reciprocal,
    Remainder,
    Rsqrt,
    Sqrt,
)
from fuseline.ir.ops.raised import Attention, GatedMlp, LayerNorm, RmsNorm, Rope
from fuseline.ir.ops.reduce import Argmax, Cumsum, Reduce, Softmax, Sort, TopK
from fuseline.ir.ops.view import Concat, Expand, Pad, Permute, Reshape, Slice
from fuseline.ir.types import Dim, DType, dim, free_symbols, product, same, symbol

Kind: TypeAlias = Literal["copies", "count", "like", "loose"]
"""What added rows hold: what the last real row holds, their own number, numbers that are as finite
as those of real rows, or anything.
"""

_SINGULAR = (Div, Exp, FloorDivide, Log, Log1p, Pow, Reciprocal, Remainder, Rsqrt, Sqrt)
"""Ops that may be infinite or NaN in an added row alone, as 1 / (13 - position) is at 13."""


@dataclass(frozen=True)
class Axis:
    """Rows along one dim: its elements are ``outer`` times all rows, each ``inner`` elements."""

    outer: Dim
    inner: Dim
    kind: Kind

    @property
    def plain(self) -> bool:
        """Whether the dim has one element a row."""
        return same(self.outer, 1) and same(self.inner, 1)


Rows: TypeAlias = "dict[int, Axis]"
"""The dims of a value that have rows."""


class Refused(Exception):
    """Why rows may not be added."""


@dataclass
class Walk:
    """The rows of the symbol ``name`` in the values so far, and what it may grow to at most."""

    name: str
    rows: dict[Value, Rows] = field(default_factory=dict[Value, Rows])
    limits: list[Dim] = field(default_factory=list[Dim])

    def of(self, value: Value | None) -> Rows:
        """The rows of a value."""
        return {} if value is None else self.rows.get(value, {})


Follow: TypeAlias = Callable[[Func, Walk], None]
"""Goes through a func whose arguments' rows are known."""

_ROWWISE: Mapping[type[Op], tuple[str, ...]] = {
    **dict.fromkeys((RmsNorm, LayerNorm, GatedMlp), ("x",)),
    **dict.fromkeys((Linear, MergedLinear, GatedLinear, WideLinear), ("x",)),
    **dict.fromkeys((AddRmsNorm, RmsNormAdd, SandwichNorm, LinearAdd), ("x", "residual")),
    NormLinear: ("x", "residual"),
    Rope: ("x", "cos", "sin"),
    Route: ("logits",),
    Experts: ("x", "indices", "weights"),
    Moe: ("x", "indices", "weights", "shared_gate"),
    MlaProjection: ("latent", "shared", "q", "cos", "sin"),
    MergedRows: ("xs", "turned", "cos", "sin"),
}
"""Ops that do each row of these operands by itself, along all dims but the last."""


def apply_rule(op: Op, walk: Walk, follow: Follow) -> list[Rows]:
    """The rows of the op's results.

    Raises:
        Refused: it may mix rows, or is not known not to.

    """
    touched = any(walk.of(v) for v in op.operands)
    named = reads(op.attributes, walk.name)
    match op:
        case Pointwise():
            return _region(op, walk, follow)
        case Full() | Iota() | Reshape() | Expand() | Slice():
            return [_sized(op, walk)]
        case _ if not touched and not named:
            return [{} for _ in op.results]
        case _ if named:
            raise Refused(f"{op.name} depends on the size itself")
        case Permute(x):
            return [{op.dims.index(axis): row for axis, row in walk.of(x).items()}]
        case Cast(x) if {x.dtype, op.dtype} <= {DType.I32, DType.I64}:
            return [walk.of(x)]  # a number of a row stays what it is
        case Copy(x):
            return [walk.of(x)]
        case _ if op.has(Trait.POINTWISE):
            rows = _together(op, walk, op.operands)
            return _each(op, _loose(rows) if _is_singular(op, walk) else rows)
        case _ if type(op) in _ROWWISE:
            return _rowwise(op, walk, _ROWWISE[type(op)])
        case Reduce(x):
            return [_reduced(op, walk.of(x))]
        case Softmax() | Cumsum() | Argmax() | TopK() | Sort():
            return _along(op, walk)
        case Matmul():
            return [_matmul(op, walk)]
        case Concat():
            return [_closed(op, _together(op, walk, op.xs), op.axis)]
        case Pad(x):
            return [_closed(op, _loose(walk.of(x)), op.axis)]
        case Attention() | LatentAttention() | Sdpa():
            return [_attention(op, walk)]
        case QkNormRope() | QkNormRopeWrite():
            return _heads(op, walk)
        case MlaProjectionWrite():
            return _latents(op, walk)
        case IndexWrite():
            return _index_write(op, walk)
        case Embedding() | Index() | IndexSelect():
            return [_gathered(op, walk)]
        case MultiLora():
            return [_adapted(op, walk)]
        case _:
            raise Refused(f"{op.name} is not known to do each row by itself")


# -- rows of several operands ------------------------------------------------------------------


def _together(op: Op, walk: Walk, values: Iterable[Value | None]) -> Rows:
    """The rows of operands that broadcast, by the dims of the one that has most."""
    given = [v for v in values if v is not None]
    rank = max((len(v.shape) for v in given), default=0)
    return _merged(op, [{a + rank - len(v.shape): r for a, r in walk.of(v).items()} for v in given])


def _merged(op: Op, each: Sequence[Rows]) -> Rows:
    """The same rows where several have them; added ones are the worst of what all are."""
    found: Rows = {}
    for axis in sorted({axis for rows in each for axis in rows}):
        mine = [rows[axis] for rows in each if axis in rows]
        if len({(r.outer, r.inner) for r in mine}) > 1:
            raise Refused(f"{op.name} meets rows in two orders")
        kinds = {r.kind for r in mine}
        kind: Kind = "loose" if "loose" in kinds else "copies" if kinds == {"copies"} else "like"
        found[axis] = Axis(mine[0].outer, mine[0].inner, kind)
    return found


def _is_singular(op: Op, walk: Walk) -> bool:
    """Whether an op divides by rows, or has a pole or an overflow of its own."""
    if isinstance(op, Div):
        return bool(walk.of(op.rhs))
    return isinstance(op, _SINGULAR)


def _each(op: Op, rows: Rows) -> list[Rows]:
    return [dict(rows) for _ in op.results]


def _closed(op: Op, rows: Rows, *axes: int) -> Rows:
    """The rows, none of which may be along these dims."""
    if any(axis in rows for axis in axes):
        raise Refused(f"{op.name} goes across the rows")
    return rows


def _loose(rows: Rows) -> Rows:
    return {
        a: r if r.kind == "copies" else Axis(r.outer, r.inner, "loose") for a, r in rows.items()
    }


def _rowwise(op: Op, walk: Walk, names: Sequence[str]) -> list[Rows]:
    values: list[Value | None] = []
    for name in names:
        given: Any = getattr(op, name)
        values += given if isinstance(given, tuple) else [given]
    _others(op, walk, values)
    rank = max(len(v.shape) for v in values if v is not None)
    return _each(op, _closed(op, _together(op, walk, values), rank - 1))


def _others(op: Op, walk: Walk, values: Iterable[Value | None]) -> None:
    """Refuse rows of other operands than these."""
    known = set(values)
    if any(walk.of(v) for v in op.operands if v not in known):
        raise Refused(f"{op.name} has weights of this size")


def _region(op: Pointwise, walk: Walk, follow: Follow) -> list[Rows]:
    """A region is its ops, one by one."""
    inner = Walk(walk.name, limits=walk.limits)
    inner.rows = {arg: walk.of(x) for arg, x in zip(op.body.args, op.xs, strict=True)}
    follow(op.body, inner)
    return [inner.of(value) for value in op.body.returns]


def _reduced(op: Reduce, rows: Rows) -> Rows:
    left = _closed(op, _loose(rows), *op.axes)
    if op.keepdim:
        return left
    return {axis - sum(a < axis for a in op.axes): row for axis, row in left.items()}


def _along(op: Any, walk: Walk) -> list[Rows]:
    rows = _closed(op, _loose(walk.of(op.x)), op.axis)
    if isinstance(op, Argmax) and not op.keepdim:
        rows = {axis - (op.axis < axis): row for axis, row in rows.items()}
    return _each(op, rows)


def _matmul(op: Matmul, walk: Walk) -> Rows:
    left, right = len(op.lhs.shape), len(op.rhs.shape)
    rank = max(left, right)
    lhs = {a + rank - left: r for a, r in _closed(op, walk.of(op.lhs), left - 1).items()}
    rhs = {a + rank - right: r for a, r in _closed(op, walk.of(op.rhs), right - 2).items()}
    return _merged(op, [lhs, rhs])


# -- views, and what is made of sizes ----------------------------------------------------------


def reads(value: object, name: str) -> bool:
    """Whether an attribute reads a symbol, or an op of a body does."""
    if isinstance(value, sympy.Expr):
        return name in free_symbols(value)
    if isinstance(value, Mapping):
        return any(reads(v, name) for v in cast("Mapping[str, object]", value).values())
    if isinstance(value, tuple):
        return any(reads(v, name) for v in cast("tuple[object, ...]", value))
    return isinstance(value, Func) and any(reads(op.attributes, name) for op in value.ops)


def _sized(op: Full | Iota | Reshape | Expand | Slice, walk: Walk) -> Rows:
    match op:
        case Full():
            if reads(op.value, walk.name):
                raise Refused("a value is computed from the size")
            return _plain(op.shape, walk.name, "copies")
        case Iota():
            if reads((op.start, op.step), walk.name):
                raise Refused("a value is computed from the size")
            counts = (op.start, op.step) == (0, 1)
            return _plain((op.length,), walk.name, "count" if counts else "loose")
        case Reshape(x):
            return _reshaped(x.shape, walk.of(x), op.shape, walk.name)
        case Expand(x):
            more = len(op.shape) - len(x.shape)
            kept = {axis + more: row for axis, row in walk.of(x).items()}
            return _plain(op.shape, walk.name, "copies") | kept
        case Slice(x):
            return _sliced(op, x, walk)


def _plain(shape: Sequence[Dim], name: str, kind: Kind) -> Rows:
    return {a: Axis(1, 1, kind) for a, extent in enumerate(shape) if same(extent, symbol(name))}


def _reshaped(shape: Sequence[Dim], rows: Rows, target: Sequence[Dim], name: str) -> Rows:
    """Rows keep their places in the order of all elements; several keep their order."""
    axes = [axis for axis, extent in enumerate(target) if name in free_symbols(extent)]
    if len(axes) != len(rows):
        raise Refused("a reshape takes rows apart or puts them together")
    found: Rows = {}
    for (source, row), axis in zip(sorted(rows.items()), axes, strict=True):
        outer = _ratio(dim(product(shape[:source]) * row.outer), product(target[:axis]))
        inner = _ratio(dim(product(shape[source + 1 :]) * row.inner), product(target[axis + 1 :]))
        if outer is None or inner is None:
            raise Refused("a reshape cuts through rows")
        found[axis] = Axis(outer, inner, row.kind)
    return found


def _ratio(whole: Dim, part: Dim) -> Dim | None:
    """A quotient without a remainder, whatever the symbols are."""
    if isinstance(whole, int) and isinstance(part, int):
        return whole // part if part and whole % part == 0 else None
    found = dim(cast("Any", sympy).cancel(sympy.sympify(whole) / sympy.sympify(part)))
    if isinstance(found, int):
        return found
    quotient = cast("Any", found)
    whole_numbers = quotient.is_polynomial() and all(
        c.is_Integer for c in quotient.as_poly().coeffs()
    )
    return found if whole_numbers else None


def _sliced(op: Slice, x: Value, walk: Walk) -> Rows:
    rows = dict(walk.of(x))
    extent, row = x.shape[op.axis], rows.pop(op.axis, None)
    if row is None:
        if not reads((op.start, op.stop), walk.name):
            return rows
        if reads(op.start, walk.name) or not same(dim(op.stop - op.start), symbol(walk.name)):
            raise Refused("a slice ends elsewhere with more rows")
        walk.limits.append(dim(extent - op.start))
        return rows | {op.axis: Axis(1, 1, "loose")}
    if same(op.start, 0) and same(op.stop, extent) and op.step == 1:
        return rows | {op.axis: row}
    if not same(row.outer, 1):
        raise Refused("a slice cuts through rows")
    if not reads((op.start, op.stop), walk.name):
        return rows  # which are real ones: the slice is within them in every call
    last = same(op.stop, extent) and same(dim(extent - op.start), row.inner)
    if last and row.kind == "copies":
        return rows  # the last row, which the added ones repeat
    raise Refused("a slice takes rows from the end")


# -- attention ---------------------------------------------------------------------------------


def _attention(op: Attention | LatentAttention | Sdpa, walk: Walk) -> Rows:
    """Queries are independent; keys that are added must be behind what any real query sees."""
    if isinstance(op, LatentAttention):
        beside, causal = (op.latent, op.shared), op.causal
    else:
        beside, causal = (op.k, op.v), op.is_causal if isinstance(op, Sdpa) else op.causal
    positions = None if isinstance(op, Sdpa) else op.positions
    window = None if isinstance(op, Sdpa) else op.window
    _others(op, walk, (op.q, *beside, op.mask, positions))
    q, mask, at = walk.of(op.q), _from_right(op.mask, walk, 4), _from_right(positions, walk, 2)
    keys = [walk.of(v) for v in beside]
    _closed(op, _merged(op, [q, *keys, mask]), 1)
    _closed(op, _merged(op, [q, *keys]), 3)

    def named(rows: Rows, axis: int, to: int) -> Rows:
        return {to: rows[axis]} if axis in rows else {}

    added = _merged(op, [*(named(k, 2, 0) for k in keys), named(mask, 3, 0)]).get(0)
    if added is not None:
        counted = positions is None or (1 in at and at[1].kind == "count" and at[1].plain)
        if not causal or not counted or 2 not in q or not added.plain:
            raise Refused(f"{op.name} sees keys of this size, and no causal mask excludes them")
        values = walk.of(op.latent if isinstance(op, LatentAttention) else op.v)
        if op.q.dtype is DType.F16 or (2 in values and values[2].kind == "loose"):
            raise Refused(f"{op.name}: an added value may be infinite, and 0 times that NaN")
    found = _merged(
        op,
        [
            named(q, 0, 0) | named(q, 2, 2),
            *(named(k, 0, 0) for k in keys),
            named(mask, 0, 0) | named(mask, 2, 2),
            named(at, 0, 0) | named(at, 1, 2),
        ],
    )
    moves = (causal or window is not None) and positions is None
    return _moved(found, 2) if moves or added is not None else found


def _from_right(value: Value | None, walk: Walk, rank: int) -> Rows:
    """Rows by the dims of a value of this rank that it broadcasts to."""
    if value is None:
        return {}
    return {axis + rank - len(value.shape): row for axis, row in walk.of(value).items()}


def _moved(rows: Rows, axis: int) -> Rows:
    """Rows that see other keys than those which they repeat."""
    if axis in rows and rows[axis].kind == "copies":
        rows[axis] = Axis(rows[axis].outer, rows[axis].inner, "like")
    return rows


# -- heads, caches and gathers -----------------------------------------------------------------


def _heads(op: QkNormRope | QkNormRopeWrite, walk: Walk) -> list[Rows]:
    values: list[Value | None] = [op.q, op.k, op.cos, op.sin]
    written = [op.v, op.index] if isinstance(op, QkNormRopeWrite) else []
    _others(op, walk, [*values, *written])
    rows = _closed(op, _merged(op, [walk.of(v) for v in (op.q, op.k, *written[:1])]), 2, 3)
    rows = _merged(op, [rows, *(_closed(op, walk.of(v), 2) for v in (op.cos, op.sin))])
    if isinstance(op, QkNormRopeWrite):
        _written(op, rows.get(1), walk.of(op.index).get(0))
        _closed(op, rows, 0)
    turned = {(0, 2)[axis]: row for axis, row in rows.items()} if op.out == "bhsd" else rows
    return _each(op, turned)


def _latents(op: MlaProjectionWrite, walk: Walk) -> list[Rows]:
    values = [op.latent, op.shared, op.q, op.cos, op.sin]
    _others(op, walk, [*values, op.index])
    rows = _closed(op, _together(op, walk, values), 0, 2)
    _written(op, rows.get(1), walk.of(op.index).get(0))
    return _each(op, rows)


def _index_write(op: IndexWrite, walk: Walk) -> list[Rows]:
    _others(op, walk, [op.index, op.src])
    rows = dict(walk.of(op.src))
    _written(op, rows.pop(op.axis, None), walk.of(op.index).get(0))
    _closed(op, rows, *rows)
    return []


def _written(op: Op, rows: Axis | None, index: Axis | None) -> None:
    """Added rows may only write what the last real row writes, and where it does."""
    if rows is None or index is None or not rows.plain or not index.plain:
        raise Refused(f"{op.name} writes rows of this size")
    if (rows.kind, index.kind) != ("copies", "copies"):
        raise Refused(f"{op.name} would write rows that are not there")


def _gathered(op: Embedding | Index | IndexSelect, walk: Walk) -> Rows:
    """Indices of added rows must be in bounds: copies of real ones, or numbers up to a limit."""
    match op:
        case Embedding(x, index):
            indices, axes, place = (index,), (0,), 0
        case IndexSelect(x, index):
            indices, axes, place = (index,), (op.axis,), op.axis
        case Index(x, indices):
            axes, place = op.axes, op.place
    kept = _closed(op, _loose(walk.of(x)), *axes)
    for value, axis in zip(indices, axes, strict=True):
        for row in walk.of(value).values():
            if row.kind == "count":
                walk.limits.append(x.shape[axis])
            elif row.kind != "copies":
                raise Refused(f"{op.name} would read where an added row points")
    picked = _together(op, walk, indices)
    rank = max(1 if isinstance(op, IndexSelect) else len(v.shape) for v in indices)
    found = {axis + place: row for axis, row in picked.items()}
    rest = [axis for axis in range(len(x.shape)) if axis not in axes]
    for number, axis in enumerate(rest):
        if axis in kept:
            found[number if number < place else number + rank] = kept[axis]
    return found


def _adapted(op: MultiLora, walk: Walk) -> Rows:
    """Each row has its own adapter: that of an added one is that of the row it repeats."""
    values = (op.x, op.ids, op.base, op.factor)
    _others(op, walk, values)
    if any(row.kind != "copies" for row in walk.of(op.ids).values()):
        raise Refused(f"{op.name} would read the adapter of a row that is not there")
    return _closed(op, _merged(op, [walk.of(v) for v in values]), len(op.x.shape) - 1)


__all__ = ["Axis", "Kind", "Refused", "Rows", "Walk", "apply_rule", "reads"]
