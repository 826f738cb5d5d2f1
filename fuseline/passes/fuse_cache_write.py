"""Let the op that makes the keys write them, and the values, straight into a static cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fuseline.ir.core import Func, Op, Value
from fuseline.ir.ops.buffer import IndexWrite, Read
from fuseline.ir.ops.fused import QkNormRope, QkNormRopeWrite
from fuseline.ir.ops.matmul import Sdpa
from fuseline.ir.ops.raised import Attention
from fuseline.ir.ops.view import Permute
from fuseline.ir.types import BufferType
from fuseline.passes.dependence import depends
from fuseline.passes.qk_chain import SWAP
from fuseline.passes.rewrite import Replace, Rewrite


@dataclass(frozen=True)
class FuseCacheWrite(Rewrite[QkNormRope], root=QkNormRope):
    """Write k and v into their caches where k is normed and rotated.

    Nothing but the write may read k, the values must be written at the same places for the same
    attention, and nothing may touch either cache between the two writes.

    Before:
        func @f(%q: f32[2, S, 4, 8], %k: f32[2, S, 2, 8], %v: f32[2, S, 2, 8], %w: f32[8],
                %at: i64[S], %kc: buffer<f32[2, 2, 16, 8]>, %vc: buffer<f32[2, 2, 16, 8]>)
            where S in 1..16 {
          %qr, %kr = qk_norm_rope %q, %k, %w, %w
          %vt = permute %v {dims = (0, 2, 1, 3)}
          index_write %kc, %at, %kr {axis = 2}
          index_write %vc, %at, %vt {axis = 2}
          %ks = read %kc
          %vs = read %vc
          %y = attention %qr, %ks, %vs, _, %at {scale = 0.35, causal = true}
          return %y
        }
    After:
        func @f(%q: f32[2, S, 4, 8], %k: f32[2, S, 2, 8], %v: f32[2, S, 2, 8], %w: f32[8],
                %at: i64[S], %kc: buffer<f32[2, 2, 16, 8]>, %vc: buffer<f32[2, 2, 16, 8]>)
            where S in 1..16 {
          %qr = qk_norm_rope_write %q, %k, %v, %at, %kc, %vc, %w, %w
          %ks = read %kc
          %vs = read %vc
          %y = attention %qr, %ks, %vs, _, %at {scale = 0.35, causal = true}
          return %y
        }
    """

    def rewrite(self, op: QkNormRope, func: Func) -> Replace | None:
        k_write = _only_write(func, op)
        v_write = k_write and _value_write(func, op, k_write)
        if k_write is None or v_write is None:
            return None
        place = func.places
        before = meeting_place(func, place, k_write, v_write)
        if before is None:
            return None
        fused = _fused(op, k_write, v_write)
        buffers = (k_write.buffer, v_write.buffer)
        later = [u for b in buffers for u in func.users(b) if place[u] > place[before]]
        later = [u for u in later if u not in (k_write, v_write)]
        if depends(func, fused.operands, later):
            return None
        return Replace(
            {op.q_out: fused.q_out},
            erase=(k_write, v_write),
            before=before,
            held=("only the cache write reads k", "v goes to the same places"),
            details={"cache": "written in place"},
        )


def _fused(op: QkNormRope, k_write: IndexWrite, v_write: IndexWrite) -> QkNormRopeWrite:
    v = v_write.src.owner
    by_token = v.x if isinstance(v, Permute) and v.dims == SWAP else None
    return QkNormRopeWrite(
        op.q,
        op.k,
        by_token or Permute(v_write.src, dims=SWAP).y,
        k_write.index,
        k_write.buffer,
        v_write.buffer,
        op.q_weight,
        op.k_weight,
        op.q_bias,
        op.k_bias,
        op.cos,
        op.sin,
        **op.attributes,
    )


def _only_write(func: Func, op: QkNormRope) -> IndexWrite | None:
    """The cache write that is the one reader of k."""
    if op.out != "bhsd" or func.use_count(op.k_out) != 1 or func.is_returned(op.k_out):
        return None
    (reader,) = func.users(op.k_out)
    return reader if isinstance(reader, IndexWrite) and _fits(reader, op.k_out) else None


def _fits(write: IndexWrite, src: Value) -> bool:
    """Whether a write puts whole heads at places along dim 2 of a cache of the same type."""
    cache = write.buffer.tensor
    one_dim = write.index.tensor.rank == 1 and not write.origin
    if write.src is not src or write.axis != 2 or cache.rank != 4 or not one_dim:
        return False
    b, h, _, d = cache.shape
    return cache.dtype is src.dtype and (b, h, d) == (*src.shape[:2], src.shape[3])


def _value_write(func: Func, op: QkNormRope, k_write: IndexWrite) -> IndexWrite | None:
    """The write of the values: to the cache that the same attention reads, at the same places."""
    for user in func.users(op.q_out):
        if not isinstance(user, (Attention, Sdpa)):
            continue
        match user.k.owner, user.v.owner:
            case Read(buffer=keys), Read(buffer=values) if keys is k_write.buffer:
                pass
            case _:
                continue
        writes = [w for w in func.users(values) if isinstance(w, IndexWrite)]
        found = [w for w in writes if w.index is k_write.index and _fits(w, w.src)]
        if values is not keys and len(found) == 1 and _same_geometry(op, found[0]):
            return found[0]
    return None


def _same_geometry(op: QkNormRope, v_write: IndexWrite) -> bool:
    """Whether the values have k's batch, heads, tokens and type; the head dim may differ."""
    v = v_write.src
    return v.shape[:3] == op.k_out.shape[:3] and v.dtype is op.k_out.dtype


def meeting_place(
    func: Func, place: Mapping[Op, int], k_write: IndexWrite, v_write: IndexWrite
) -> Op | None:
    """Which of the two writes can move to the other's place, past what lies between."""
    first, second = sorted((k_write, v_write), key=place.__getitem__)
    assert isinstance(first.buffer.type, BufferType), "a write has a buffer"

    def untouched(buffer: Value) -> bool:
        between = [u for u in func.users(buffer) if place[first] < place[u] < place[second]]
        return not between

    if untouched(second.buffer):
        return first
    return second if untouched(first.buffer) else None
