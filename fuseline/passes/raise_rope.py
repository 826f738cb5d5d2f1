"""Recognise rotary embeddings in all their spellings."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func, Op, Value
from fuseline.ir.ops.pointwise import Add, Cast, Sub
from fuseline.ir.ops.raised import Rope, RopeStyle, RopeTable
from fuseline.ir.ops.view import Concat, Reshape, Slice
from fuseline.ir.types import DType
from fuseline.passes.match import Part, last_dim_part, narrow, only_user
from fuseline.passes.rewrite import NoMatch, Replace, Rewrite, nearest
from fuseline.passes.rotation import (
    Pairing,
    Product,
    Row,
    broadcasts,
    deinterleaved,
    first_half,
    half_table,
    joined,
    paired,
    sum_of_products,
    turned,
)
from fuseline.passes.wording import called

_PAIRS = ("the halves of the result read the same pairs",)
_SIGNS = "the signs of the products are those of a rotation"


@dataclass(frozen=True)
class RaiseRope(
    Rewrite[Add | Sub | Concat | Reshape | Cast],
    root=(Add, Sub, Concat, Reshape, Cast),
    pattern="rope",
):
    """``x * cos + turned(x) * sin``, where turning takes each pair (a, b) of elements to (-b, a).

    Pairs may lie half the width apart or side by side, and may be read in one way and written in
    the other; a table may have a column for each element or for each pair; the turn may go the
    other way. Around a rotation of part of a row, the concatenation with the rest of the row
    becomes part of the op, and so do the casts around one that is computed in float32.

    Before:
        func @f(%x: bf16[B, 4, S, 16], %cos: bf16[1, 1, S, 16], %sin: bf16[1, 1, S, 16]) {
          %first = slice %x {axis = 3, stop = 8}
          %second = slice %x {axis = 3, start = 8, stop = 16}
          %minus = neg %second
          %turned = concat [%minus, %first] {axis = 3}
          %a = mul %x, %cos
          %b = mul %turned, %sin
          %y = add %a, %b
          return %y
        }
    After:
        func @f(%x: bf16[B, 4, S, 16], %cos: bf16[1, 1, S, 16], %sin: bf16[1, 1, S, 16]) {
          %y = rope %x, %cos, %sin {width = 16}
          return %y
        }

    Before:
        func @f(%x: f32[B, S, 4, 16], %cos: f32[S, 1, 4], %sin: f32[S, 1, 4]) {
          %pass = slice %x {axis = 3, stop = 8}
          %even = slice %x {axis = 3, start = 8, stop = 15, step = 2}
          %odd = slice %x {axis = 3, start = 9, stop = 16, step = 2}
          %a = mul %even, %cos
          %b = mul %odd, %sin
          %c = sub %a, %b
          %d = mul %odd, %cos
          %e = mul %even, %sin
          %f = add %d, %e
          %g = concat [%c, %f] {axis = 3}
          %y = concat [%pass, %g] {axis = 3}
          return %y
        }
    After:
        func @f(%x: f32[B, S, 4, 16], %cos: f32[S, 1, 4], %sin: f32[S, 1, 4]) {
          %y = rope %x, %cos, %sin {style = "deinterleave", table = "half", start = 8, width = 8}
          return %y
        }
    """

    def rewrite(
        self, op: Add | Sub | Concat | Reshape | Cast, func: Func
    ) -> Replace | NoMatch | None:
        match op:
            case Add() | Sub():
                return _whole_row(op, func)
            case Cast():
                return _in_float32(op, func)
            case Concat():
                return _both_halves(op, func) or _part_of_row(op, func)
            case Reshape():
                return _both_halves(op, func)


# -- x * cos + turned(x) * sin --------------------------------------------------------------


def _whole_row(op: Add | Sub, func: Func) -> Replace | NoMatch | None:
    products = sum_of_products(op.y)
    if products is None:
        return None
    for straight, other in (products, products[::-1]):
        for factor, sine in (other.factors, other.factors[::-1]):
            found = turned(factor)
            if found is None:
                continue
            row = found.row
            cosine = _beside(straight, row)
            if cosine is None:
                return NoMatch(
                    f"{called(factor)} turns elements {row.start}..{row.start + row.width} of "
                    f"{called(row.root)}, and the cosine multiplies another value"
                )
            if straight.sign < 0:
                return NoMatch("the product with the cosine is subtracted")
            sign = found.sign * other.sign
            return _rope(op, row, row.pairing, cosine, sine, sign, func)
    return None


def _beside(product: Product, row: Row) -> Value | None:
    """The factor beside a row in a product; None where the row is no factor."""
    for factor, other in ((product.lhs, product.rhs), (product.rhs, product.lhs)):
        if _is_row(factor, row) or _is_row(narrow(factor), row):
            return narrow(other)
    return None


def _is_row(value: Value, row: Row) -> bool:
    whole = row.start == 0 and row.width == row.root.shape[-1]
    return (whole and value is row.root) or (
        last_dim_part(value) == Part(row.root, row.start, row.width)
    )


# -- both halves of the result on their own -------------------------------------------------


def _both_halves(op: Concat | Reshape, func: Func) -> Replace | NoMatch | None:
    parts = joined(op)
    if parts is None:
        return None
    first, second, written = parts
    upper, lower = sum_of_products(first), sum_of_products(second)
    if upper is None or lower is None:
        return None
    missed: NoMatch | None = None
    for a, b in (upper, upper[::-1]):
        for x1, cosine in (a.factors, a.factors[::-1]):
            for x2, sine in (b.factors, b.factors[::-1]):
                row = paired(x1, x2)
                if row is None:
                    continue
                signs, pairs = (a.sign, b.sign), ((x1, cosine), (x2, sine))
                found = _halves(op, row, written, signs, pairs, lower, func)
                if isinstance(found, Replace):
                    return found
                missed = nearest(missed, found)
    return missed


def _halves(
    op: Concat | Reshape,
    row: Row,
    written: Pairing,
    signs: tuple[int, int],
    upper: tuple[tuple[Value, Value], tuple[Value, Value]],
    lower: tuple[Product, Product],
    func: Func,
) -> Replace | NoMatch:
    """``a * cos - b * sin`` beside ``b * cos + a * sin``, a and b being the elements of pairs."""
    (x1, cosine), (x2, sine) = upper
    for straight, crossed in (lower, lower[::-1]):
        others = straight.other(x2), crossed.other(x1)
        if others[0] is None or others[1] is None:
            continue
        every = (*signs, straight.sign, crossed.sign)
        if every not in ((1, -1, 1, 1), (1, 1, 1, -1)):
            reason = f"the signs of the four products are {every}: not a rotation"
            return NoMatch(reason, held=_PAIRS)
        tables = tuple(
            _one_table(mine, other, written)
            for mine, other in ((cosine, others[0]), (sine, others[1]))
        )
        if tables[0] is None or tables[1] is None:
            names = [called(value) for value in (cosine, sine, *others) if value is not None]
            mine, other = " and ".join(names[:2]), " and ".join(names[2:])
            reason = f"the halves of the result read different tables: {mine}, and {other}"
            return NoMatch(reason, held=(*_PAIRS, _SIGNS))
        if row.pairing == "halves" and written == "strided":
            reason = f"pairs are read {row.width // 2} elements apart and written side by side"
            return NoMatch(reason, held=(*_PAIRS, _SIGNS, "both halves read the same tables"))
        return _rope(op, row, written, tables[0], tables[1], crossed.sign, func)
    return NoMatch("the halves of the result do not read the same pairs")


def _one_table(upper: Value, lower: Value, written: Pairing) -> Value | None:
    """The table that both halves of the result read: the same, or its own elements, paired as
    those of the result are.
    """
    if upper is lower:
        return upper
    row = paired(upper, lower)
    whole = row is not None and (row.start, row.width) == (0, row.root.shape[-1])
    return row.root if row is not None and whole and row.pairing == written else None


# -- the op ---------------------------------------------------------------------------------


def _rope(
    op: Op, row: Row, written: Pairing, cosine: Value, sine: Value, sign: int, func: Func
) -> Replace | NoMatch:
    """The rotation of a row in place of ``op``, or why the tables do not fit."""
    result = op.results[0]
    style: RopeStyle = "interleaved" if written == "strided" else "half"
    if row.pairing == "strided" and written == "halves":
        style = "deinterleave"
    halves = [half_table(t, written) or first_half(t) for t in (cosine, sine)]
    if halves[0] is not None and halves[1] is not None:
        cosine, sine = halves[0], halves[1]
    shape = (*row.root.shape[:-1], row.width)
    table: RopeTable = "full" if cosine.shape[-1:] == (row.width,) else "half"
    columns = row.width if table == "full" else row.width // 2
    for value in (cosine, sine):
        if not broadcasts(value, shape, columns):
            reason = f"a table {value.type} does not fit a row of {row.width} elements"
            return NoMatch(reason, held=(*_PAIRS, _SIGNS))
    x = row.value(func)
    if style == "half" and (source := deinterleaved(x)) is not None:
        x, style = source, "deinterleave"
    if x.dtype is not result.dtype:
        x = Cast(x, dtype=result.dtype).y
    rope = Rope(x, cosine, sine, style=style, table=table, width=row.width, sign=sign)
    if rope.y.type != result.type:
        reason = f"the rotation gives {rope.y.type}, its readers take {result.type}"
        return NoMatch(reason, held=(*_PAIRS, _SIGNS, "the tables fit"))
    return Replace({result: rope.y}, held=("each element is rotated with the other of its pair",))


# -- what stands around a rotation ----------------------------------------------------------


def _part_of_row(op: Concat, func: Func) -> Replace | None:
    """Concatenation of a rotated part of a row with the rest of that row."""
    ropes = [x.owner for x in op.xs if isinstance(x.owner, Rope)]
    if len(ropes) != 1 or op.axis != op.y.tensor.rank - 1 or len(op.xs) == 1:
        return None
    rope = ropes[0]
    if only_user(func, rope.y) is not op or rope.width != rope.x.shape[-1]:
        return None
    parts = [last_dim_part(rope.x if x is rope.y else x) for x in op.xs]
    first, root = parts[0], _root(parts)
    if first is None or root is None:
        return None
    place = first.start
    for part in parts:
        if part is None or part.root is not root or part.step != 1 or part.start != place:
            return None
        place += part.length
    inner = last_dim_part(rope.x)
    assert inner is not None, "it is one of the parts"
    if first.start or place != root.shape[-1]:  # the row is itself a part, as of q, k and v in one
        root = Slice(root, axis=op.axis, start=first.start, stop=place).y
    start = inner.start - first.start
    whole = Rope(root, rope.cos, rope.sin, **dict(rope.attributes, start=start))
    return Replace({op.y: whole.y}, held=("the rest of the row is passed through",))


def _root(parts: list[Part | None]) -> Value | None:
    """What the first of some parts is a part of."""
    return None if parts[0] is None else parts[0].root


def _in_float32(op: Cast, func: Func) -> Replace | None:
    """A rotation of a widened row that is rounded to the row's own type at the end."""
    rope = op.x.owner
    if not isinstance(rope, Rope) or only_user(func, rope.y) is not op:
        return None
    x = narrow(rope.x)
    if x is rope.x or x.dtype is not op.dtype or rope.x.dtype is not DType.F32:
        return None
    whole = Rope(x, rope.cos, rope.sin, **dict(rope.attributes, round=False))
    return Replace({op.y: whole.y}, held=("the rotation is computed in float32",))
