"""Compute small state where it is kept, and the state of all layers in one kernel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fuseline.ir.core import Func, Op, Trait, Value
from fuseline.ir.ops.buffer import Read, Write
from fuseline.ir.ops.fused import Pointwise, PointwiseWrite
from fuseline.ir.region import REDUCTIONS, as_body, is_pointwise
from fuseline.ir.types import same
from fuseline.passes.rewrite import Replace, Rewrite


@dataclass(frozen=True)
class FuseWrites(Rewrite[Write], root=Write):
    """Count the tokens in the caches of all layers at once.

    A cache of each layer has a counter of its own, of one element, and each is moved on by a kernel
    and a copy that take no time but that of their launch. What is written to a buffer of one
    element is computed straight into it, together with all others of which none reads another.
    ``max-buffers`` bounds how many.

    Before:
        func @f(%a: buffer<i64[]>, %b: buffer<i64[]>, %n: i64[]) {
          %x = read %a
          %y = read %b
          %p = add %x, %n
          %q = add %y, %n
          write %a, %p
          write %b, %q
          return
        }
    After:
        func @f(%a: buffer<i64[]>, %b: buffer<i64[]>, %n: i64[]) {
          %x = read %a
          %y = read %b
          pointwise_write [%a, %b], [%x, %n, %y]
            {body = func @region(%x: i64[], %n: i64[], %y: i64[]) {
              %p = add %x, %n
              %q = add %y, %n
              return %p, %q
            }}
          return
        }
    """

    max_buffers: int = 32

    def rewrite(self, op: Write, func: Func) -> Replace | None:
        group = self._group(op, func)
        if not group:
            return None
        return Replace(
            ops=(_joined(group),),
            erase=[each.write for each in group],
            before=group[-1].write,
            held=("one element each", "nothing touches a buffer before the last write"),
        )

    def _group(self, op: Write, func: Func) -> list[_Computed]:
        """The writes from this one on that can be done together."""
        found: list[_Computed] = []
        place = func.places
        for write in (w for w in func.ops[place[op] :] if isinstance(w, Write)):
            if any(_touched(func, f.write, write) for f in found) or len(found) >= self.max_buffers:
                break
            each = _computed(write, func)
            if each is None or write.buffer.shape != op.buffer.shape:
                if not found:
                    break
                continue
            if not any(each.meets(other) for other in found):
                found.append(each)
        return found


@dataclass(frozen=True)
class _Computed:
    """A write of one element, and the region that computes it from ``xs``."""

    write: Write
    xs: tuple[Value, ...]
    body: Func

    def meets(self, other: _Computed) -> bool:
        """Whether one of the two writes what the other reads or writes."""
        mine, its = self.write.buffer, other.write.buffer
        return mine is its or mine in _buffers(other.xs) or its in _buffers(self.xs)


def _computed(write: Write, func: Func) -> _Computed | None:
    """A write of one element that nothing else reads, and that is computed from such."""
    maker, x = write.x.owner, write.x
    if maker is None or not same(x.tensor.numel, 1) or x.dtype is not write.buffer.dtype:
        return None
    if func.use_count(x) != 1 or func.is_returned(x) or len(maker.results) != 1:
        return None
    xs: tuple[Value, ...]
    if isinstance(maker, Pointwise):
        xs, body = maker.xs, maker.body
    elif is_pointwise(maker):
        xs, body = tuple(dict.fromkeys(maker.operands)), as_body(maker)
    else:
        return None
    single = all(same(x.tensor.numel, 1) for x in xs)
    reduces = any(isinstance(op, REDUCTIONS) for op in body.ops)
    return _Computed(write, xs, body) if single and not reduces else None


def _touched(func: Func, write: Write, later: Op) -> bool:
    """Whether anything reads or writes a write's buffer between it and a later op."""
    place = func.places
    return any(place[write] < place[u] < place[later] for u in func.users(write.buffer))


def _buffers(values: Iterable[Value]) -> set[Value]:
    """The buffers that values are read from, or may be views of."""
    found: set[Value] = set()
    stack = [v.owner for v in values if v.owner is not None]
    while stack:
        op = stack.pop()
        if isinstance(op, Read):
            found.add(op.buffer)
        elif op.has(Trait.VIEW):
            stack += [v.owner for v in op.operands if v.owner is not None]
    return found


def _joined(group: Sequence[_Computed]) -> PointwiseWrite:
    """One op for all writes of a group."""
    body = Func("region")
    mapping: dict[Value, Value] = {}
    returns: list[Value] = []
    for each in group:
        inner: dict[Value, Value] = {}
        for x, arg in zip(each.xs, each.body.args, strict=True):
            if x not in mapping:
                mapping[x] = body.add_arg(x.tensor, x.hint)
            inner[arg] = mapping[x]
        for op in each.body.ops:
            copy = body.append(op.clone(inner))
            inner.update(zip(op.results, copy.results, strict=True))
        returns += [inner[v] for v in each.body.returns]
        body.symbols |= each.body.symbols
    body.set_returns(returns)
    return PointwiseWrite(tuple(e.write.buffer for e in group), tuple(mapping), body=body)


__all__ = ["FuseWrites"]
