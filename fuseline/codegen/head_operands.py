"""Where the heads of an op lie, what is done to them and where they go, for every target."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fuseline.codegen.heads import (
    Rotation,
    Stream,
    out_strides,
    rotation_of,
    streams_of,
    table_strides,
    token_strides,
)
from fuseline.codegen.lower import NeedDense, Refusal, dtype_name, not_dense, unsupported
from fuseline.ir.core import Value
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.fused import QkNormRope, QkNormRopeWrite
from fuseline.ir.ops.merged_rows import MergedRows
from fuseline.ir.ops.mla_projection import MlaProjection, MlaProjectionWrite
from fuseline.ir.ops.raised import Rope
from fuseline.ir.types import Dim, DType

Strides: TypeAlias = tuple[Dim, Dim, Dim]
"""Of batch, token (or row of a cache) and head, in elements."""


@dataclass(frozen=True)
class Moved:
    """A stream, read from ``source`` and written to ``out``; its weight and bias, those it has."""

    stream: Stream
    source: Value
    out: Value
    source_strides: Strides
    out_strides: Strides
    parameters: tuple[Value, ...] = ()


@dataclass(frozen=True)
class HeadOperands:
    """The operands of a kernel over streams of heads.

    Tables come with their strides of batch and token. ``index`` and ``capacity`` are the positions
    of the tokens in the caches and the rows of those; None where nothing is cached.
    """

    moved: tuple[Moved, ...]
    batch: Dim
    tokens: Dim
    rotation: Rotation | None = None
    tables: tuple[tuple[Value, tuple[Dim, Dim]], ...] = ()
    index: Value | None = None
    capacity: Dim | None = None

    @property
    def dtype(self) -> str:
        """The one element type of all sources."""
        return self.moved[0].source.dtype.value

    @property
    def streams(self) -> tuple[Stream, ...]:
        """What is done."""
        return tuple(m.stream for m in self.moved)

    @property
    def buffers(self) -> tuple[Value, ...]:
        """Source, result, weight and bias of each stream; cos and sin; positions."""
        found: list[Value] = []
        for m in self.moved:
            found += [m.source, m.out, *m.parameters]
        found += [table for table, _ in self.tables]
        return (*found, *([] if self.index is None else [self.index]))

    @property
    def dims(self) -> dict[str, Dim]:
        """``B``, ``S``, all strides and the ``capacity``, by name, in the order of `buffers`."""
        found: dict[str, Dim] = {"B": self.batch, "S": self.tokens}
        for m in self.moved:
            for side, strides in (("", m.source_strides), ("_out", m.out_strides)):
                names = (f"{m.stream.name}{side}_{axis}" for axis in "bth")
                found |= zip(names, strides, strict=True)
        for name, (_, (b, t)) in zip(("cos", "sin"), self.tables, strict=False):
            found |= {f"{name}_b": b, f"{name}_t": t}
        return found if self.capacity is None else found | {"capacity": self.capacity}


Found: TypeAlias = HeadOperands | NeedDense | Refusal


def _unfit(
    sources: Sequence[Value],
    tables: Sequence[Value],
    parameters: Iterable[Value | None],
    index: Value | None,
    layouts: LayoutMap,
) -> NeedDense | Refusal | None:
    """What keeps the operands from a kernel: only sources and tables have strides."""
    parameters = list(parameters)
    if refusal := unsupported(*sources, *tables, *parameters):
        return refusal
    if index is not None and index.dtype is not DType.I64:
        return Refusal(f"positions {index.type}; the kernel takes i64")
    if len({v.dtype for v in sources}) > 1:
        return Refusal(f"operands of several types: {', '.join(str(v.type) for v in sources)}")
    loose = [v for v in (*sources, *tables) if not layouts.layout(v).is_inner_dense(v.shape)]
    return NeedDense(tuple(loose)) if loose else not_dense((*parameters, index), layouts)


def _with_strides(
    tables: Sequence[Value], batch: Dim, tokens: Dim, layouts: LayoutMap
) -> tuple[tuple[Value, tuple[Dim, Dim]], ...]:
    return tuple((table, table_strides(table, batch, tokens, layouts)) for table in tables)


def qk_operands(op: QkNormRope | QkNormRopeWrite, layouts: LayoutMap) -> Found:
    """The heads of q and k, and of v on its way into a cache."""
    cached = isinstance(op, QkNormRopeWrite)
    sources = [op.q, op.k, *([op.v] if cached else [])]
    outs = [op.q_out, op.k_cache, op.v_cache] if cached else [op.q_out, op.k_out]
    tables = [t for t in (op.cos, op.sin) if t is not None]
    parameters = [(op.q_weight, op.q_bias), (op.k_weight, op.k_bias), (None, None)]
    index = op.index if cached else None
    whole = [v for pair in parameters for v in pair]
    if unfit := _unfit(sources, tables, whole, index, layouts):
        return unfit
    if any(len(t.shape) != 3 for t in tables):
        return Refusal("tables that are not [B, S, W]")
    try:
        streams = streams_of(op)
    except ValueError as error:
        return Refusal(str(error))
    batch, tokens = op.q.shape[:2]
    moved: list[Moved] = []
    for stream, source, out, given in zip(streams, sources, outs, parameters, strict=False):
        strides = token_strides(source, layouts)
        assert strides is not None, "checked above"
        to = out_strides(op, out, layouts, written=stream.cached)
        present = tuple(v for v in given if v is not None)
        moved.append(Moved(stream, source, out, strides, to, present))
    return HeadOperands(
        tuple(moved),
        batch,
        tokens,
        rotation_of(op),
        _with_strides(tables, batch, tokens, layouts),
        index,
        op.k_cache.shape[2] if cached else None,
    )


def mla_operands(op: MlaProjection | MlaProjectionWrite, layouts: LayoutMap) -> Found:
    """The rows that the op has, each a stream of one head."""
    tables = [t for t in (op.cos, op.sin) if t is not None]
    written = isinstance(op, MlaProjectionWrite)
    index, cache = (op.index, op.latent_cache) if written else (None, None)
    if unfit := _unfit(op.rows, tables, (op.latent_weight, op.q_weight), index, layouts):
        return unfit
    if any(len(t.shape) != 3 for t in tables):
        return Refusal("tables that are not [B, S, W]")
    if not op.norm and op.scale != 1.0:
        return Refusal("a scale without a norm")
    if not all(isinstance(v.shape[-1], int) for v in op.rows):
        return Refusal(f"rows of unknown width: {', '.join(str(v.type) for v in op.rows)}")
    named = [(name, row) for name in ("latent", "shared", "q") if (row := getattr(op, name))]
    moved: list[Moved] = []
    for (name, row), out in zip(named, _mla_outs(op), strict=True):
        weight = {"latent": op.latent_weight if op.norm else None, "q": op.q_weight}.get(name)
        present = () if weight is None else (weight,)
        from_, to = (_row_strides(v, layouts) for v in (row, out))
        moved.append(Moved(_mla_stream(op, name, row), row, out, from_, to, present))
    batch, tokens = op.rows[0].shape[:2]
    return HeadOperands(
        tuple(moved),
        batch,
        tokens,
        rotation_of(op),
        _with_strides(tables, batch, tokens, layouts),
        index,
        None if cache is None else cache.shape[-2],
    )


def _mla_stream(op: MlaProjection | MlaProjectionWrite, name: str, row: Value) -> Stream:
    """What is done to one row."""
    width = row.shape[-1]
    assert isinstance(width, int), "checked before"
    cached = isinstance(op, MlaProjectionWrite)
    if name == "shared":
        return Stream(name, 1, width, normed=False, roped=op.cos is not None, cached=cached)
    if name == "q":
        return Stream(name, 1, width, roped=False, weight=dtype_name(op.q_weight))
    return Stream(
        name,
        1,
        width,
        normed=op.norm,
        roped=False,
        weight=dtype_name(op.latent_weight) if op.norm else None,
        cached=cached,
        scale=op.scale,
    )


def _mla_outs(op: MlaProjection | MlaProjectionWrite) -> list[Value]:
    """Where the rows go: results or caches, in the order of the rows."""
    if isinstance(op, MlaProjection):
        return list(op.ys)
    caches = [c for c in (op.latent_cache, op.shared_cache) if c is not None]
    return [*caches, *op.ys]


def _row_strides(value: Value, layouts: LayoutMap) -> Strides:
    """Strides of batch and token of rows ``[B, S, W]``, or of a cache; there is one head."""
    strides = layouts.layout(value).strides
    return strides[0], strides[-2], 0


def merged_operands(op: MergedRows, layouts: LayoutMap) -> Found:
    """The rows in the order of the results, each a stream of one head: ``row0``, ``row1``, ..."""
    tables = [t for t in (op.cos, op.sin) if t is not None]
    if unfit := _unfit(op.rows, tables, op.weights, None, layouts):
        return unfit
    moved: list[Moved] = []
    for i, (row, out) in enumerate(zip(op.rows, op.ys, strict=True)):
        width, normed = row.shape[-1], i < len(op.xs)
        if not isinstance(width, int):
            return Refusal(f"rows of unknown width: {row.type}")
        parameters = op.weights[i : i + 1] if normed else ()
        weight = dtype_name(parameters[0]) if parameters else None
        stream = Stream(f"row{i}", 1, width, normed=normed, roped=not normed, weight=weight)
        from_, to = (_row_strides(v, layouts) for v in (row, out))
        moved.append(Moved(stream, row, out, from_, to, parameters))
    batch, tokens = op.rows[0].shape[:2]
    turned = _with_strides(tables, batch, tokens, layouts)
    return HeadOperands(tuple(moved), batch, tokens, rotation_of(op), turned)


def rope_operands(op: Rope, layouts: LayoutMap) -> Found:
    """The heads of x, one stream of that name: heads by token or tokens by head."""
    if unfit := _unfit([op.x], [op.cos, op.sin], (), None, layouts):
        return unfit
    x, cos = _as_four(op.x.shape, 1), _as_four(op.cos.shape, 1)
    if not x or not cos or op.cos.shape != op.sin.shape:
        return Refusal(f"x {op.x.type} with tables {op.cos.type} and {op.sin.type}")
    known = [axis for axis in (1, 2) if cos[axis] == 1 and isinstance(x[axis], int)]
    if not known:
        return Refusal(f"x {op.x.type} with tables {op.cos.type}: no known number of like heads")
    order = (0, 3 - known[0], known[0])
    heads, width = x[known[0]], x[3]
    if not isinstance(heads, int) or not isinstance(width, int):
        return Refusal(f"x {op.x.type}; the kernel needs known heads and head dims")
    from_, to = (_as_four(layouts.layout(v).strides, 0) for v in (op.x, op.y))
    tables: list[tuple[Value, tuple[Dim, Dim]]] = []
    for table in (op.cos, op.sin):
        strides = _as_four(layouts.layout(table).strides, 0)
        b, t = (0 if cos[a] == 1 and x[a] != 1 else strides[a] for a in order[:2])
        tables.append((table, (b, t)))
    stream = Stream("x", heads, width, normed=False)
    source, out = ((s[order[0]], s[order[1]], s[order[2]]) for s in (from_, to))
    moved = Moved(stream, op.x, op.y, source, out)
    return HeadOperands((moved,), x[0], x[order[1]], rotation_of(op), tuple(tables))


def _as_four(dims: Sequence[Dim], lead: Dim) -> tuple[Dim, ...]:
    """Extents or strides with leading ones for the dims that are left out; empty beyond four."""
    return (lead,) * (4 - len(dims)) + tuple(dims) if len(dims) <= 4 else ()


__all__ = [
    "HeadOperands",
    "Moved",
    "merged_operands",
    "mla_operands",
    "qk_operands",
    "rope_operands",
]
