"""Write the parts that a key is put together from straight into the cache."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func
from fuseline.ir.ops.buffer import IndexWrite
from fuseline.ir.ops.view import Concat
from fuseline.ir.types import Dim, dim
from fuseline.passes.rewrite import Replace, Rewrite


@dataclass(frozen=True)
class SplitCacheWrite(Rewrite[IndexWrite], root=IndexWrite):
    """Write what a concatenation puts side by side part by part, where nothing else reads it.

    The keys of latent attention have a part from the latent and a rotated one that all heads have
    in common: put together first, each would be copied twice.

    Before:
        func @f(%n: f32[1, 2, S, 6], %r: f32[1, 2, S, 4], %at: i64[S],
                %kc: buffer<f32[1, 2, 16, 10]>) where S in 1..16 {
          %k = concat [%n, %r] {axis = 3}
          index_write %kc, %at, %k {axis = 2}
          return
        }
    After:
        func @f(%n: f32[1, 2, S, 6], %r: f32[1, 2, S, 4], %at: i64[S],
                %kc: buffer<f32[1, 2, 16, 10]>) where S in 1..16 {
          index_write %kc, %at, %n {axis = 2, origin = (0, 0, 0, 0)}
          index_write %kc, %at, %r {axis = 2, origin = (0, 0, 0, 6)}
          return
        }
    """

    def rewrite(self, op: IndexWrite, func: Func) -> Replace | None:
        whole = op.src.owner
        if not isinstance(whole, Concat) or whole.axis == op.axis:
            return None
        if func.use_count(whole.y) != 1 or func.is_returned(whole.y):
            return None
        origin: list[Dim] = list(op.origin or (0,) * op.src.tensor.rank)
        writes: list[IndexWrite] = []
        for part in whole.xs:
            writes.append(IndexWrite(op.buffer, op.index, part, axis=op.axis, origin=tuple(origin)))
            origin[whole.axis] = dim(origin[whole.axis] + part.shape[whole.axis])
        return Replace({}, ops=writes, erase=(op,), held=("nothing else reads the whole",))
