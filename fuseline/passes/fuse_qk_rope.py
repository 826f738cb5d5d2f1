"""Rotate the q and k of one attention in one op, where neither has a norm."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func, Op, Value
from fuseline.ir.ops.view import Concat, View
from fuseline.passes.fuse_qk_norm import join
from fuseline.passes.qk_pair import ROOTS, chains
from fuseline.passes.rewrite import NoMatch, Replace, Rewrite


@dataclass(frozen=True)
class FuseQkRope(Rewrite[Op], root=ROOTS, pattern="rope"):
    """Join the rotations of one attention's q and k; with norms it is ``fuse-qk-norm``'s.

    Before:
        func @f(%q: f32[2, 4, S, 8], %k: f32[2, 2, S, 8], %v: f32[2, 2, S, 8],
                %cos: f32[2, S, 8], %sin: f32[2, S, 8]) {
          %c = reshape %cos {shape = (2, 1, S, 8)}
          %s = reshape %sin {shape = (2, 1, S, 8)}
          %qr = rope %q, %c, %s {width = 8, style = "interleaved"}
          %kr = rope %k, %c, %s {width = 8, style = "interleaved"}
          %y = attention %qr, %kr, %v {scale = 0.35, causal = true}
          return %y
        }
    After:
        func @f(%q: f32[2, 4, S, 8], %k: f32[2, 2, S, 8], %v: f32[2, 2, S, 8],
                %cos: f32[2, S, 8], %sin: f32[2, S, 8]) {
          %qt = permute %q {dims = (0, 2, 1, 3)}
          %kt = permute %k {dims = (0, 2, 1, 3)}
          %qr, %kr = qk_norm_rope %qt, %kt, _, _, _, _, %cos, %sin {
            norm = "none", width = 8, style = "interleaved"
          }
          %y = attention %qr, %kr, %v {scale = 0.35, causal = true}
          return %y
        }
    """

    def rewrite(self, op: Op, func: Func) -> Replace | NoMatch | None:
        pair = chains(op, func)
        if pair is None:
            return None
        q, k = pair
        if q.norm is not None or k.norm is not None or not (q.steps or k.steps):
            return None
        if not k.steps and _is_joined(k.source):
            return None
        return join(func, q, k)


def _is_joined(value: Value) -> bool:
    """Whether a key is put together of parts, of which one may be rotated by itself (MLA)."""
    while isinstance(value.owner, View):
        value = value.owner.x
    return isinstance(value.owner, Concat)
