"""Merge sibling row ops: norms and rotations of the same tokens become one op, for one launch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fuseline.ir.core import Func, Op, Trait, Value
from fuseline.ir.ops.buffer import Read
from fuseline.ir.ops.merged_rows import MergedRows
from fuseline.ir.ops.raised import RmsNorm, Rope
from fuseline.ir.ops.view import Reshape
from fuseline.ir.types import Dim, format_dim, same
from fuseline.passes.dependence import depends
from fuseline.passes.match import reshaped
from fuseline.passes.qk_chain import Chain, Order, Table, table
from fuseline.passes.rewrite import NoMatch, Replace, Rewrite
from fuseline.passes.wording import called

LONGEST = 32768
"""Bytes of a row, at most, in powers of two: what one block of a kernel of several rows holds."""

_NORM = ("eps", "offset", "cast")
_ROPE = ("style", "table", "start", "width", "sign", "round")


@dataclass(frozen=True)
class MergeRows(Rewrite[Op], root=(RmsNorm, Rope), pattern="merged_rows"):
    """Norm, or rotate, rows of the same tokens in one op where none needs what another gives.

    A launch of a few rows takes a GPU little more than the launch itself. Norms must have the same
    attributes, rotations the same tables and one head; at most ``near`` other ops may lie between
    one and the next. What was found by fusions before (of q and k, of latents) is no row by itself.

    Before:
        func @f(%q: bf16[1, S, 24], %kv: bf16[1, S, 20], %qn: bf16[24], %n: bf16[16],
                %cos: bf16[1, 1, S, 4], %sin: bf16[1, 1, S, 4]) {
          %c = slice %kv {axis = 2, stop = 16}
          %k = slice %kv {axis = 2, start = 16, stop = 20}
          %kh = reshape %k {shape = (1, 1, S, 4)}
          %kr = rope %kh, %cos, %sin {width = 4, style = "deinterleave"}
          %qz = rms_norm %q, %qn
          %cz = rms_norm %c, %n
          return %qz, %cz, %kr
        }
    After:
        func @f(%q: bf16[1, S, 24], %kv: bf16[1, S, 20], %qn: bf16[24], %n: bf16[16],
                %cos: bf16[1, 1, S, 4], %sin: bf16[1, 1, S, 4]) {
          %c = slice %kv {axis = 2, stop = 16}
          %k = slice %kv {axis = 2, start = 16, stop = 20}
          %cs = reshape %cos {shape = (1, S, 4)}
          %sn = reshape %sin {shape = (1, S, 4)}
          %qz, %cz, %kt = merged_rows [%q, %c], [%qn, %n], [%k], %cs, %sn {
            width = 4, style = "deinterleave"
          }
          %kr = reshape %kt {shape = (1, 1, S, 4)}
          return %qz, %cz, %kr
        }
    """

    near: int = 4

    def rewrite(self, op: Op, func: Func) -> Replace | NoMatch | None:
        first = _row(op)
        if first is None or first.too_long:
            return None
        group, reason = [first], ""
        for other, beside in self._behind(op, group, func):
            row = _row(other)
            if row is None:
                continue
            unlike = _unlike(group, row, func)
            if not unlike:
                group.append(row)
            elif beside and len(group) == 1:
                reason = reason or f"{row.title} behind it {unlike}"
        if len(group) > 1:
            return _merged(group)
        return NoMatch(reason) if reason else None

    def _behind(self, op: Op, group: Sequence[_Row], func: Func) -> Iterator[tuple[Op, bool]]:
        """The norms and rotations that are near a growing group, and whether nothing but writes
        lies between its last row and them.
        """
        between: list[Op] = []
        for other in func.ops[func.places[op] + 1 :]:
            if other.has(Trait.VIEW) or isinstance(other, Read) or not other.operands:
                continue
            if isinstance(other, (RmsNorm, Rope)):
                yield other, all(o.has(Trait.WRITES) for o in between)
            between = [] if group[-1].op is other else [*between, other]
            if len(between) > self.near:
                return


@dataclass(frozen=True)
class _Row:
    """What ``op`` does to ``source`` ``[B, S, W]``, by ``tables`` where it is a rotation."""

    op: RmsNorm | Rope
    source: Value
    tables: tuple[Table, Table] | None = None

    @property
    def too_long(self) -> bool:
        """Whether no block of a kernel of several rows holds it, tiles being powers of two."""
        width = self.source.shape[-1]
        if not isinstance(width, int):
            return True
        held = (1 << (width - 1).bit_length()) * self.source.dtype.itemsize
        return held * (2 if self.tables else 1) > LONGEST  # of a rotated row, parts are tiles

    @property
    def title(self) -> str:
        """The row in reasons."""
        what = "norm" if isinstance(self.op, RmsNorm) else "rotation"
        return f"the {what} of {called(self.op.x)}"

    @property
    def work(self) -> str:
        """What is done, for the site."""
        what = "norm" if isinstance(self.op, RmsNorm) else "rotation"
        return f"{what} of {format_dim(self.source.shape[-1])}"


def _row(op: Op) -> _Row | None:
    """The row that an op works on; None where it has more than one a token."""
    match op:
        case RmsNorm(x=x) if x.tensor.rank in (2, 3):
            lead: tuple[Dim, ...] = (1,) if x.tensor.rank == 2 else ()
            return _Row(op, reshaped(x, (*lead, *x.shape)))
        case Rope(x=x) if x.tensor.rank == 4:
            return _rotated(op, x)
        case _:
            return None


def _rotated(op: Rope, x: Value) -> _Row | None:
    """The one head of each token that a rotation turns; None where there are more, or the tables
    are not those of its tokens.
    """
    order: Order = "bhsd" if same(x.shape[1], 1) else "bshd"
    chain = Chain(op.y, x, order, order, steps=[op])
    chain.orders[op] = order
    b, heads, s, width = chain.bhsd
    if not same(heads, 1):
        return None
    cos, sin = (table(chain, value) for value in (op.cos, op.sin))
    if isinstance(cos, str) or isinstance(sin, str):
        return None
    return _Row(op, reshaped(chain.by_token(), (b, s, width)), (cos, sin))


def _unlike(group: Sequence[_Row], row: _Row, func: Func) -> str:
    """Why a row cannot join a group; empty where it can."""
    mine, its = group[0].source, row.source
    for other in group:
        if depends(func, row.op.operands, [other.op]):
            return f"needs what {other.title} gives"
    if not all(map(same, mine.shape[:2], its.shape[:2])):
        have, want = (" x ".join(map(format_dim, v.shape[:2])) for v in (its, mine))
        return f"is of {have} tokens, not of {want}"
    if mine.dtype is not its.dtype:
        return f"is of {its.dtype}, not of {mine.dtype}"
    if row.too_long:
        return f"is of rows {its.type}; a block holds {LONGEST} bytes of each"
    alike = [other.op for other in group if type(other.op) is type(row.op)]
    return _differ(alike[0], row.op) if alike else ""


def _differ(mine: RmsNorm | Rope, its: RmsNorm | Rope) -> str:
    """How two norms, or two rotations, differ in more than their rows; empty where they do not."""
    if isinstance(mine, Rope) and isinstance(its, Rope):
        if mine.cos is not its.cos or mine.sin is not its.sin:
            return "has other tables"
    elif isinstance(mine, RmsNorm) and isinstance(its, RmsNorm):
        have, want = (_weighted(norm) for norm in (its, mine))
        if have != want:
            return f"has {have}, not {want}"
    for name, value in mine.attributes.items():
        if its.attributes[name] != value:
            return f"has {name} {its.attributes[name]}, not {value}"
    return ""


def _weighted(norm: RmsNorm) -> str:
    return "no weight" if norm.weight is None else f"a weight of {norm.weight.dtype}"


def _merged(group: Sequence[_Row]) -> Replace:
    norms = [op for row in group if isinstance(op := row.op, RmsNorm)]
    turned = [row for row in group if row.tables]
    fields: dict[str, Any] = {}
    if norms:
        fields |= {name: norms[0].attributes[name] for name in _NORM}
    if turned and turned[0].tables:
        cos, sin = (each.value() for each in turned[0].tables)
        fields |= {"cos": cos, "sin": sin}
        fields |= {name: turned[0].op.attributes[name] for name in _ROPE}
    fused = MergedRows(
        xs=tuple(row.source for row in group if not row.tables),
        weights=tuple(norm.weight for norm in norms if norm.weight is not None),
        turned=tuple(row.source for row in turned),
        **fields,
    )
    ordered = [*(row for row in group if not row.tables), *turned]
    return Replace(
        {row.op.y: _shaped(y, row.op.y) for row, y in zip(ordered, fused.ys, strict=True)},
        before=group[-1].op,
        held=("rows of the same tokens", "none needs what another gives"),
        details={"rows": ", ".join(row.work for row in ordered)},
        work=fused,
    )


def _shaped(y: Value, like: Value) -> Value:
    return y if y.shape == like.shape else Reshape(y, shape=like.shape).y


__all__ = ["MergeRows"]
