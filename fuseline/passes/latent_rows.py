"""The rows that stand before attention over a latent: each a projection's columns, then a norm,
a number or a rotation, read backwards from what is attended to or written to a cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func, Op, Value
from fuseline.ir.ops.buffer import IndexWrite, Read
from fuseline.ir.ops.pointwise import Mul
from fuseline.ir.ops.raised import RmsNorm, Rope
from fuseline.ir.ops.view import Reshape, View
from fuseline.ir.types import Dim, same
from fuseline.passes.constants import number
from fuseline.passes.latent_details import query_norm
from fuseline.passes.match import reshaped
from fuseline.passes.qk_chain import Chain, trace, written_key


@dataclass(frozen=True)
class Row:
    """What becomes of ``source`` ``[B, S, W]``: ``value``, in whatever shape the model gave it."""

    value: Value
    source: Value
    norm: RmsNorm | None = None
    scale: float = 1.0
    rope: Rope | None = None
    chain: Chain | None = None

    @property
    def works(self) -> bool:
        """Whether anything is done to the row."""
        return self.norm is not None or self.rope is not None


@dataclass(frozen=True)
class Refused:
    """Why a row cannot be taken."""

    reason: str


def latent_row(func: Func, latent: Value) -> Row | Refused:
    """The latent of this step's tokens: normed, or not, and multiplied by a number."""
    value = step_value(func, latent)
    inner, scale = _unscaled(value)
    chain = trace(_by_head(inner))
    match chain.steps:
        case []:
            return Row(value, _by_token(_by_head(value))) if scale == 1.0 else _plain(value)
        case [RmsNorm() as norm]:
            last = norm.y if scale == 1.0 else _before_views(value)
            if reason := _unfit(norm):
                return Refused(f"the latent's {reason}")
            return Row(last, _by_token(chain.by_token()), norm, scale)
        case _:
            return Refused(f"the latent is {chain.describe()}")


def _plain(value: Value) -> Refused:
    return Refused(f"the latent {value.type} is multiplied by a number without a norm")


def shared_row(func: Func, shared: Value | None) -> Row | Refused | None:
    """The part of the keys that heads have in common, of this step's tokens: rotated, or not."""
    if shared is None:
        return None
    value = step_value(func, shared)
    chain = trace(_by_head(value))
    match chain.steps:
        case []:
            return Row(value, _by_token(_by_head(value)))
        case [Rope() as rope]:
            if rope.y.dtype is not rope.x.dtype:
                return Refused(f"the rotation turns {rope.x.dtype} into {rope.y.dtype}")
            return Row(rope.y, _by_token(chain.by_token()), rope=rope, chain=chain)
        case _:
            return Refused(f"the shared key is {chain.describe()}")


def query_row(q: Value, tokens: tuple[Dim, ...]) -> Row | Refused | None:
    """The normed latent of the queries, as a row of the same tokens; None where q has none."""
    norm = query_norm(q)
    if norm is None:
        return None
    if reason := _unfit(norm):
        return Refused(f"q's {reason}")
    rows = (*tokens, norm.x.shape[-1])
    if not same(norm.x.tensor.numel, norm.x.tensor.with_shape(rows).numel):
        return Refused(f"q's latent is {norm.x.type}, not a row for each token")
    return Row(norm.y, reshaped(norm.x, rows), norm)


def step_value(func: Func, value: Value) -> Value:
    """What this step puts into what it attends to: what was written to a cache, else the value."""
    inner = _before_views(value)
    if isinstance(inner.owner, Read):
        return written_key(func, inner)
    return written_key(func, value)


def write_behind(func: Func, value: Value | None) -> IndexWrite | None:
    """The write of this step's tokens into the cache that a value is read from."""
    owner = None if value is None else _before_views(value).owner
    if not isinstance(owner, Read):
        return None
    place = func.places
    users = func.users(owner.buffer)
    writes = [w for w in users if isinstance(w, IndexWrite) and place[w] < place[owner]]
    return max(writes, key=place.__getitem__, default=None)


def cache_write(func: Func, value: Value | None) -> IndexWrite | None:
    """The write of this step's rows into the cache that is attended to."""
    write = write_behind(func, value)
    return write if write is not None and _fits(write) else None


def _fits(write: IndexWrite) -> bool:
    """Whether a write puts rows at places of a whole cache ``[B, 1, S, W]`` or ``[B, S, W]``."""
    cache, src = write.buffer.tensor, write.src.tensor
    one = cache.rank == 3 or (cache.rank == 4 and same(cache.shape[1], 1))
    along = write.axis == cache.rank - 2 and write.index.tensor.rank == 1
    whole = src.with_shape((*src.shape[: write.axis], *src.shape[write.axis + 1 :]))
    of = cache.with_shape((*cache.shape[: write.axis], *cache.shape[write.axis + 1 :]))
    return one and along and whole == of and not write.origin


def only_written(func: Func, row: Row, write: Op) -> bool:
    """Whether a write is all that reads a row, through views."""
    if not row.works:
        return True  # its projection is read in place of what the views make of it
    value = row.value
    while True:
        if func.is_returned(value) or func.use_count(value) != 1:
            return False
        (user,) = func.users(value)
        if user is write:
            return True
        if not isinstance(user, View):
            return False
        value = user.results[0]


def _unfit(norm: RmsNorm) -> str:
    """Why a norm is none that the op has; empty where it is."""
    if norm.y.dtype is norm.x.dtype:
        return ""
    return f"norm turns {norm.x.dtype} into {norm.y.dtype}"


def _unscaled(value: Value) -> tuple[Value, float]:
    """A value before it was multiplied by a number, and the number."""
    inner = _before_views(value)
    if isinstance(inner.owner, Mul):
        for x, other in (inner.owner.operands, inner.owner.operands[::-1]):
            factor = number(other)
            if factor is not None and not other.shape and x.dtype is inner.dtype:
                return Reshape(x, shape=value.shape).y, float(factor)
    return value, 1.0


def _before_views(value: Value) -> Value:
    while isinstance(value.owner, View):
        value = value.owner.x
    return value


def _by_head(value: Value) -> Value:
    """``[B, 1, S, W]`` of that or of ``[B, S, W]``."""
    if value.tensor.rank == 4:
        return value
    b, s, w = value.shape
    return Reshape(value, shape=(b, 1, s, w)).y


def _by_token(value: Value) -> Value:
    """``[B, S, W]`` of rows with one head, in whichever order."""
    b, x, y, w = value.shape
    return reshaped(value, (b, y if same(x, 1) else x, w))
