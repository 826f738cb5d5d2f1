"""Spell assignments by index that replace whole slices as what there is a kernel for."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func
from fuseline.ir.ops.index import IndexCopy, IndexPut, Scatter
from fuseline.passes.rewrite import NoMatch, Replace, Rewrite
from fuseline.passes.slices import as_slices


@dataclass(frozen=True)
class LowerIndexPut(Rewrite[IndexPut | Scatter], root=(IndexPut, Scatter)):
    """Replace an assignment by index along one axis, over all of the others, by an index_copy.

    Negative places count from the end; those outside stay outside, and are an error as they were.

    Before:
        func @f(%x: f32[2, 9, 4], %at: i64[3], %src: f32[2, 3, 4]) {
          %y = index_put %x, [%at], %src {axes = (1,)}
          return %y
        }
    After:
        func @f(%x: f32[2, 9, 4], %at: i64[3], %src: f32[2, 3, 4]) {
          %zero = full {value = 0, dtype = i64}
          %behind = lt %at, %zero
          %size = full {value = 9, dtype = i64}
          %from_end = add %at, %size
          %place = where %behind, %from_end, %at
          %y = index_copy %x, %place, %src {axis = 1}
          return %y
        }
    """

    def rewrite(self, op: IndexPut | Scatter, func: Func) -> Replace | None:
        slices = as_slices(op, op.x.shape)
        if isinstance(slices, NoMatch) or slices.src.dtype is not op.x.dtype:
            return None
        return Replace({op.y: IndexCopy(op.x, slices.index, slices.src, axis=slices.axis).y})
