"""Turn "make a new buffer, then copy it over the old one" back into a write in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from fuseline.ir.core import Func, Op, Trait, Value
from fuseline.ir.ops.buffer import Read, Write
from fuseline.ir.ops.call import AtenCall
from fuseline.ir.ops.view import Concat
from fuseline.passes.in_place import Update, as_update, in_place, updated
from fuseline.passes.rewrite import NoMatch, Replace, Rewrite
from fuseline.passes.wording import name_of


@dataclass(frozen=True)
class RestoreMutations(Rewrite[Write], root=Write, pattern="in_place_write"):
    """Write the changed part of a buffer where it becomes known, and read the buffer afterwards.

    Tracing makes each write to a buffer functional: a read at the start, updates of what was read,
    and a write of the outcome at the end. One update at a time becomes a write in place, as early
    as the readers of the old contents allow, and what read the outcome reads the buffer after it.
    What reads the old contents later than that, or returns them, prevents it.

    Before:
        func @f(%k: buffer<f32[2, 16, 8]>, %at: i64[S], %x: f32[2, S, 8]) where S in 1..16 {
          %old = read %k
          %e = exp %x
          %new = index_copy %old, %at, %e {axis = 1}
          %y = sum %new {axes = (1,)}
          write %k, %new
          return %y
        }
    After:
        func @f(%k: buffer<f32[2, 16, 8]>, %at: i64[S], %x: f32[2, S, 8]) where S in 1..16 {
          %e = exp %x
          index_write %k, %at, %e {axis = 1}
          %new = read %k
          %y = sum %new {axes = (1,)}
          return %y
        }
    """

    def rewrite(self, op: Write, func: Func) -> Replace | NoMatch | None:
        update = _first_update(op.x)
        source = op.x if update is None else updated(update)
        if not isinstance(source.owner, Read) or source.owner.buffer is not op.buffer:
            return _whole(op, source)
        place = func.places
        window = range(place[source.owner], place[op])
        if writer := _other_write(func, op, window, place):
            return NoMatch(f"{writer.name} writes {name_of(op.buffer)} before the whole is written")
        if update is None:
            return Replace(erase=(op,), held=("the buffer is given what it holds",))
        return _restore(func, op, update, place)


def _restore(func: Func, root: Write, update: Update, place: Mapping[Op, int]) -> Replace | NoMatch:
    """The write in place of one update of what was read, where its readers leave room for it."""
    reads = [u for u in func.users(root.buffer) if isinstance(u, Read) and place[u] < place[root]]
    old = list(_aliases(func, reads))
    if any(func.is_returned(v) for v in old):
        return NoMatch(f"the old contents of {name_of(root.buffer)} are returned")
    readers = [u for v in old for u in func.users(v) if u is not update and not _is_view(u)]
    last = max(readers, key=place.__getitem__, default=None)
    earliest = max(place[update], place[last] + 1 if last else 0)
    hurried = [u for u in func.users(update.y) if place[u] < earliest]
    if last is not None and (hurried or earliest > place[root]):
        reader = hurried[0].name if hurried else "the write"
        return NoMatch(
            f"{last.name} reads the old contents of {name_of(root.buffer)} after {reader} "
            "takes the new ones"
        )
    write = in_place(root.buffer, update)
    if isinstance(write, NoMatch):
        return write
    read = Read(root.buffer)
    return Replace(
        {update.y: read.y},
        ops=(write, read),
        before=func.ops[earliest],
        held=("no reader of the old contents comes after the write",),
        details={"buffer": name_of(root.buffer)},
    )


def _first_update(value: Value) -> Update | None:
    """The innermost of the updates that lead to a value."""
    found: Update | None = None
    while (update := as_update(value.owner)) is not None:
        found, value = update, updated(update)
    return found


def _whole(op: Write, source: Value) -> NoMatch | None:
    """Why a buffer is written as a whole; nothing to say where what it held is not passed on."""
    if not _passes_on(source, op.buffer):
        return None
    maker = "an argument" if source.owner is None else source.owner.name
    return NoMatch(f"the new contents come from {maker}, not from updates of {name_of(op.buffer)}")


def _passes_on(value: Value, buffer: Value) -> bool:
    """Whether a value has elements of what the buffer held, in another arrangement."""
    stack, seen = [value], set[Value]()
    while stack:
        current = stack.pop()
        owner = current.owner
        if owner is None or current in seen:
            continue
        seen.add(current)
        if isinstance(owner, Read) and owner.buffer is buffer:
            return True
        if _is_view(owner) or isinstance(owner, Concat) or as_update(owner) is not None:
            stack += owner.operands
    return False


def _other_write(func: Func, root: Write, window: range, place: Mapping[Op, int]) -> Op | None:
    """A write of the buffer between the read and the root."""
    writers = [u for u in func.users(root.buffer) if u.has(Trait.WRITES) and u is not root]
    return next((w for w in writers if place[w] in window), None)


def _is_view(op: Op) -> bool:
    """Whether an op may give its operand's memory as a result."""
    return op.has(Trait.VIEW) or isinstance(op, AtenCall)


def _aliases(func: Func, reads: Iterable[Read]) -> Iterator[Value]:
    """What some reads gave, and every view of it."""
    stack, seen = [r.y for r in reads], set[Value]()
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        yield value
        stack += [v for u in func.users(value) if _is_view(u) for v in u.results]
