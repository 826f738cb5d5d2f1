"""Rotary embeddings.

`RotaryEmbedding` takes tables of one column a pair, x as ``[B, H, S, D]`` or ``[B, S, H * D]``. A
table of one column an element is cut in half, if both halves are alike; that is read off what made
it. Any other form is a function of primitive operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fuseline.exporting.onnx.pointwise import wide
from fuseline.exporting.onnx.registry import emits, expanded, expands
from fuseline.exporting.onnx.view import expanded as broadcasted
from fuseline.exporting.onnx.view import reshaped, sliced
from fuseline.exporting.onnx.writer import Writer
from fuseline.frontend.builder import Builder
from fuseline.ir.core import Trait, Value
from fuseline.ir.ops import pointwise as p
from fuseline.ir.ops.index import Embedding, Index, IndexSelect
from fuseline.ir.ops.raised import Rope
from fuseline.ir.ops.view import Concat, Expand, Reshape, Slice, unreshaped
from fuseline.ir.types import Dim, DType, product, same


def repeats(w: Writer, value: Value) -> bool:
    """Whether the last dim of a value is one half twice, as far as is seen from what made it."""
    if value in w.halves:
        return True
    op = value.owner
    if op is None or not value.tensor.rank:
        return False
    last = value.tensor.rank - 1
    if isinstance(op, Concat):
        return op.axis == last and len(op.xs) == 2 and op.xs[0] is op.xs[1]
    if op.has(Trait.POINTWISE):
        wide_ones = [v for v in op.operands if v.tensor.rank and v.shape[-1] != 1]
        return bool(wide_ones) and all(repeats(w, v) for v in wide_ones)
    if isinstance(op, (Reshape, Expand, Slice)):
        kept = same(op.x.shape[-1], value.shape[-1]) if op.x.tensor.rank else False
        return kept and repeats(w, op.x)
    if isinstance(op, Embedding):
        return repeats(w, op.weight)
    if isinstance(op, (Index, IndexSelect)):
        axes = op.axes if isinstance(op, Index) else (op.axis,)
        return op.x.tensor.rank - 1 not in axes and repeats(w, op.x)
    return False


@emits(Rope)
def _rope(w: Writer, op: Rope) -> Sequence[str]:
    found = _operator(w, op)
    return w.call(op, expanded) if found is None else [found]


def _operator(w: Writer, op: Rope) -> str | None:
    """The standard operator, where it means the same; None elsewhere."""
    x = op.x
    form = _form(op)
    halved = op.table == "half" or (repeats(w, op.cos) and repeats(w, op.sin))
    if form is None or op.style == "deinterleave" or not halved or op.width % 2:
        return None
    if op.table == "full" and op.style != "half":
        return None
    kind = op.x.dtype if op.round else wide(op.x.dtype)
    mixed = any(t.dtype is not x.dtype for t in (op.cos, op.sin)) and op.round
    if mixed or kind is DType.F64:  # which the operator does not take
        return None
    tables = [_table(w, op, table, form.tokens, kind) for table in (op.cos, op.sin)]
    if op.sign < 0:
        tables[1] = w.node("Neg", tables[1])
    size = x.shape[-1]
    name = w.of(x, kind)
    shape, whole = x.shape, op.start == 0
    if not whole:
        name = sliced(w, name, x.tensor.rank - 1, op.start, None)
        shape = (*x.shape[:-1], size - op.start)
    flat = (*form.tokens, product(shape[2:])) if form.heads else shape
    name = reshaped(w, name, shape, flat)
    partial = op.width if op.width != shape[-1] else None
    found = w.node(
        "RotaryEmbedding", name, *tables, interleaved=int(op.style == "interleaved"),
        num_heads=form.heads or None, rotary_embedding_dim=partial,
    )  # fmt: skip
    found = w.cast(reshaped(w, found, flat, shape), kind, x.dtype)
    if whole:
        return found
    head = sliced(w, w[x], x.tensor.rank - 1, 0, op.start)
    return w.node("Concat", head, found, axis=x.tensor.rank - 1)


class _Form:
    """How x lies: ``[B, S, heads, D]`` where there are heads, else ``[B, H, S, D]``."""

    def __init__(self, tokens: tuple[Dim, Dim], heads: int) -> None:
        self.tokens = tokens
        self.heads = heads


def _form(op: Rope) -> _Form | None:
    """The form of x, if the tables are alike for all heads."""
    shape, tables = op.x.shape, (op.cos.shape, op.sin.shape)
    if any(len(t) != len(shape) for t in tables):
        tables = tuple((1,) * (len(shape) - len(t)) + t for t in tables)
    if len(shape) == 3:
        return _Form((shape[0], shape[1]), 1) if all(_fits(t, shape[:2]) for t in tables) else None
    if len(shape) != 4:
        return None
    if all(same(t[1], 1) and _fits((t[0], t[2]), (shape[0], shape[2])) for t in tables):
        return _Form((shape[0], shape[2]), 0)
    heads = shape[2]
    if isinstance(heads, int) and all(same(t[2], 1) and _fits(t[:2], shape[:2]) for t in tables):
        return _Form((shape[0], shape[1]), heads)
    return None


def _fits(table: Sequence[Dim], tokens: Sequence[Dim]) -> bool:
    """Whether a table is one for these tokens, or for all batches."""
    return all(same(t, 1) or same(t, n) for t, n in zip(table[:2], tokens, strict=True))


def _table(w: Writer, op: Rope, table: Value, tokens: tuple[Dim, Dim], kind: DType) -> str:
    """A table as ``[B, S, pairs]``."""
    flat, plain = _flat(op, table.shape), unreshaped(table)
    if plain in w.names and plain.shape == flat:
        table = plain  # that had the dim of heads added
    name, shape = w.of(table, kind), list(table.shape)
    if op.table == "full":
        name = sliced(w, name, len(shape) - 1, 0, op.width // 2)
        shape[-1] = op.width // 2
    flat = (*flat[:-1], shape[-1])
    name = reshaped(w, name, shape, flat)
    return broadcasted(w, name, flat, (*tokens, shape[-1]))


def _flat(op: Rope, shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """The shape of a table without its dim of heads."""
    form = _form(op)
    lead = [1] * (op.x.tensor.rank - len(shape)) + list(shape[:-1])
    if len(lead) == 3:
        lead.pop(2 if form is not None and form.heads else 1)
    return (*lead, shape[-1])


@expands(Rope, called=False)
def _rotate(b: Builder, op: Rope) -> Value:
    """As `fuseline.ir.ops.raised.rope_reference`."""
    x, axis = op.x, op.x.tensor.rank - 1
    width, half, end = op.width, op.width // 2, op.start + op.width
    part = b.slice(x, axis, op.start, end)
    lead = x.shape[:-1]
    if op.style == "deinterleave":
        return _around(b, op, _deinterleaved(b, op, part))
    cos, sin = (_spread(b, t, op) for t in (op.cos, op.sin))
    if not op.round:
        part, cos, sin = (b.cast(t, wide(t.dtype)) for t in (part, cos, sin))
    if op.style == "interleaved":
        pairs = b.reshape(part, (*lead, half, 2))
        even, odd = (b.slice(pairs, axis + 1, i, i + 1) for i in (0, 1))
        both = b.add(Concat((b.add(p.Neg(odd)).y, even), axis=axis + 1)).y
        other = b.reshape(both, (*lead, width))
    else:
        left, right = b.slice(part, axis, 0, half), b.slice(part, axis, half, width)
        other = b.add(Concat((b.add(p.Neg(right)).y, left), axis=axis)).y
    sin = sin if op.sign > 0 else b.add(p.Neg(sin)).y
    products = b.add(p.Mul(part, cos)).y, b.add(p.Mul(other, sin)).y
    return _around(b, op, b.cast(b.add(p.Add(*products)).y, x.dtype))


def _deinterleaved(b: Builder, op: Rope, part: Value) -> Value:
    """Pairs put half a width apart, and rotated there."""
    lead, half = part.shape[:-1], op.width // 2
    pairs = b.reshape(part, (*lead, half, 2))
    rank = len(lead)
    apart = b.reshape(b.permute(pairs, (*range(rank), rank + 1, rank)), (*lead, op.width))
    rest = {k: v for k, v in op.attributes.items() if k not in ("style", "start")}
    return b.add(Rope(apart, op.cos, op.sin, style="half", **rest)).y


def _around(b: Builder, op: Rope, rotated: Value) -> Value:
    """What was rotated, between the elements that were not."""
    x, axis, end = op.x, op.x.tensor.rank - 1, op.start + op.width
    size: Any = x.shape[-1]
    pieces = [rotated]
    if op.start:
        pieces.insert(0, b.slice(x, axis, 0, op.start))
    if end != size:
        pieces.append(b.slice(x, axis, end, size))
    return pieces[0] if len(pieces) == 1 else b.add(Concat(tuple(pieces), axis=axis)).y


def _spread(b: Builder, table: Value, op: Rope) -> Value:
    """A table of one column an element."""
    if op.table == "full":
        return table
    axis, shape = table.tensor.rank - 1, table.shape
    if op.style != "interleaved":
        return b.add(Concat((table, table), axis=axis)).y
    column = b.reshape(table, (*shape, 1))
    return b.reshape(b.expand(column, (*shape, 2)), (*shape[:-1], op.width))


__all__ = ["repeats"]
