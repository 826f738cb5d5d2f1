"""Keep the latent in place of the keys and values that are expanded from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fuseline.ir.core import Func, Op, Origin, Value
from fuseline.ir.ops.buffer import IndexWrite, Read
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.ops.view import Concat, Expand, Permute, Reshape, Slice
from fuseline.ir.types import BufferType, Dim
from fuseline.passes.latent_forms import Expanded, Expansion, Shared, expanded_writes
from fuseline.passes.masks.elements import Elements
from fuseline.passes.masks.integers import Unknown
from fuseline.passes.raise_latent_attention import unfit
from fuseline.passes.rewrite import NoMatch, Replace, Rewrite
from fuseline.passes.wording import name_of

STATE = "state"
"""The kind of an argument that the program keeps itself; its name is the hint of the cache whose
place it takes."""


@dataclass(frozen=True)
class CacheLatents(Rewrite[IndexWrite], root=IndexWrite, pattern="latent_cache"):
    """Caches of keys ``[B, H, S, D]`` and values, both expanded from one latent, to a latent cache.

    The latent, and the part of the keys that all heads have in common, are written to state that
    the program keeps; what is read is expanded from them, and `RaiseLatentAttention` absorbs that.
    The caches that the model has are neither written nor read any more. This runs only on request
    (``cache="latent"``), as nobody else may look at those caches.

    Before:
        func @f(%q: f32[1, 2, 1, 5], %c: f32[1, 1, 3, 4], %r: f32[1, 1, 3, 2],
                %w: f32[12, 4] = param "kv_b", %at: i64[3],
                %kc: buffer<f32[1, 2, 3, 5]>, %vc: buffer<f32[1, 2, 3, 3]>) {
          %kv = linear %c, %w
          %heads = reshape %kv {shape = (1, 3, 2, 6)}
          %t = permute %heads {dims = (0, 2, 1, 3)}
          %n = slice %t {axis = 3, stop = 3}
          %v = slice %t {axis = 3, start = 3, stop = 6}
          %each = expand %r {shape = (1, 2, 3, 2)}
          %k = concat [%n, %each] {axis = 3}
          index_write %kc, %at, %k {axis = 2}
          index_write %vc, %at, %v {axis = 2}
          %ks = read %kc
          %vs = read %vc
          %y = attention %q, %ks, %vs {scale = 0.3}
          return %y
        }
    After:
        func @f(%q: f32[1, 2, 1, 5], %c: f32[1, 1, 3, 4], %r: f32[1, 1, 3, 2],
                %w: f32[12, 4] = param "kv_b", %at: i64[3],
                %kc: buffer<f32[1, 2, 3, 5]>, %vc: buffer<f32[1, 2, 3, 3]>,
                %l: buffer<f32[1, 1, 3, 4]> = state "kc",
                %s: buffer<f32[1, 1, 3, 2]> = state "kc") {
          index_write %l, %at, %c {axis = 2}
          index_write %s, %at, %r {axis = 2}
          %ls = read %l
          %rs = read %s
          %kv = linear %ls, %w
          %heads = reshape %kv {shape = (1, 3, 2, 6)}
          %t = permute %heads {dims = (0, 2, 1, 3)}
          %n = slice %t {axis = 3, stop = 3}
          %each = expand %rs {shape = (1, 2, 3, 2)}
          %k = concat [%n, %each] {axis = 3}
          %v = slice %t {axis = 3, start = 3, stop = 6}
          %y = attention %q, %k, %v {scale = 0.3}
          return %y
        }
    """

    reorders: ClassVar[bool] = True  # a library may sum products of more rows in another order

    def rewrite(self, op: IndexWrite, func: Func) -> Replace | NoMatch | None:
        if op.buffer.tensor.rank != 4 or op.axis != 2:
            return None
        elements = Elements(func)
        for other in _partners(op, func):
            try:
                found = expanded_writes(op, other, elements)
            except Unknown:
                continue  # a size that index arithmetic cannot hold: not a product's columns
            if not isinstance(found, Expanded) or not _keys_first(found):
                continue
            pair = _Pair(op, other, found)
            if reason := unfit({op.src.dtype, other.src.dtype}, found) or pair.refusal(func):
                return NoMatch(reason)
            return pair.replaced(func)
        return None


def _partners(op: IndexWrite, func: Func) -> list[IndexWrite]:
    """Writes to other caches at the same places."""
    return [
        other
        for other in func.users(op.index)
        if isinstance(other, IndexWrite)
        and (other.axis, other.index) == (op.axis, op.index)
        and other.buffer is not op.buffer
        and other.src.shape[:3] == op.src.shape[:3]
    ]


def _keys_first(found: Expanded) -> bool:
    """Whether the first write is that of the keys: without a shared part both look alike."""
    k, v = found.keys, found.values
    return found.shared is not None or k.product is not v.product or k.start < v.start


@dataclass(frozen=True)
class _Pair:
    """The writes of keys and values, and what both are expanded from."""

    keys: IndexWrite
    values: IndexWrite
    found: Expanded

    def refusal(self, func: Func) -> str:
        """Why the caches cannot go; empty where they can."""
        for write in (self.keys, self.values):
            cache, name = write.buffer.tensor, name_of(write.buffer)
            if not all(isinstance(d, int) for d in cache.shape):
                return f"the cache {name} is {cache}, of sizes that are not known"
            if write.origin or _around(write.src.shape) != _around(cache.shape):
                return f"{write.src.type} is written to a part of {name}, {cache}"
            if reason := self._other_user(write, func):
                return reason
        if self.keys.buffer.shape[2] != self.values.buffer.shape[2]:
            return f"caches of two lengths, {self.keys.buffer.type} and {self.values.buffer.type}"
        return ""

    def _other_user(self, write: IndexWrite, func: Func) -> str:
        """What else is done with a cache; empty where it is only read behind the write."""
        place, name = func.places, name_of(write.buffer)
        if func.is_returned(write.buffer):
            return f"the cache {name} is returned"
        for user in func.users(write.buffer):
            if user is write:
                continue
            if not isinstance(user, Read):
                return f"the cache {name} is written by {user.name} too"
            if place[user] < place[write]:
                return f"the cache {name} is read before it is written"
        return ""

    def replaced(self, func: Func) -> Replace:
        """The latent caches, and what the old ones held as an expansion of them."""
        latent, shared = self.found.latent, self.found.shared
        states = [self._state(latent, "latent")]
        writes: list[Op] = [IndexWrite(states[0], self.keys.index, latent, axis=2)]
        reads = [Read(states[0])]
        if shared is not None:
            states.append(self._state(shared.value, "shared"))
            writes.append(IndexWrite(states[1], self.keys.index, shared.value, axis=2))
            reads.append(Read(states[1]))
        keys, values = self._expand(*(read.y for read in reads))
        old = {u.y: keys for u in func.users(self.keys.buffer) if isinstance(u, Read)}
        old |= {u.y: values for u in func.users(self.values.buffer) if isinstance(u, Read)}
        narrow = sum(_width(state) for state in states)
        wide = sum(_heads_width(w.buffer) for w in (self.keys, self.values))
        return Replace(
            old,
            ops=(*writes, *(reads if old else ())),
            erase=(self.keys, self.values),
            args=states,
            held=("keys and values are expansions of one latent", "the caches are only read"),
            details={
                "caches": f"{name_of(self.keys.buffer)}, {name_of(self.values.buffer)}",
                "cache bytes per token": f"{narrow} latent, {wide} expanded",
            },
        )

    def _state(self, value: Value, what: str) -> Value:
        cache = self.keys.buffer
        batch, _, length, _ = cache.shape
        kind = value.tensor.with_shape((batch, 1, length, value.shape[3]))
        hint = f"{cache.hint}_{what}"
        return Value(BufferType(kind), hint, None, Origin(STATE, cache.hint))

    def _expand(self, latent: Value, shared: Value | None = None) -> tuple[Value, Value]:
        """Keys and values of all that the caches hold."""
        found, made = self.found, dict[Linear, Value]()

        def heads(part: Expansion) -> Value:
            product = part.product
            if product not in made:
                y = Linear(latent, product.weight, None).y
                batch, _, length, _ = latent.shape
                count = self.keys.buffer.shape[1]
                y = Reshape(y, shape=(batch, length, count, part.rows)).y
                made[product] = Permute(y, dims=(0, 2, 1, 3)).y
            if part.width == part.rows:
                return made[product]
            stop = part.start + part.width
            return Slice(made[product], axis=3, start=part.start, stop=stop).y

        def part(of: Expansion | Shared) -> Value:
            if isinstance(of, Expansion):
                return heads(of)
            assert shared is not None, "the shared part has a state of its own"
            shape = (*self.keys.buffer.shape[:3], of.width)
            return Expand(shared, shape=shape).y

        parts = tuple(part(of) for of in found.parts)
        return parts[0] if len(parts) == 1 else Concat(parts, axis=3).y, heads(found.values)


def _around(shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """The extents that an index of tokens leaves alone."""
    return (*shape[:2], *shape[3:])


def _width(state: Value) -> int:
    """Bytes of a token in a latent cache."""
    width = state.shape[3]
    return width * state.dtype.itemsize if isinstance(width, int) else 0


def _heads_width(cache: Value) -> int:
    """Bytes of a token in a cache of heads."""
    heads, width = cache.shape[1], cache.shape[3]
    if not isinstance(heads, int) or not isinstance(width, int):
        return 0
    return heads * width * cache.dtype.itemsize
