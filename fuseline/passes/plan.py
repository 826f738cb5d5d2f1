"""Planning: which memory every value gets, from live ranges.

Values whose sizes are equal as expressions share memory when their live ranges do not overlap, so
one plan serves all values of the symbols, and the layers of a model reuse the same few buffers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fuseline.ir.core import Func, Op, Trait, Value
from fuseline.ir.layout import Layout, LayoutMap, dense
from fuseline.ir.ops.buffer import Read
from fuseline.ir.ops.fused import Copy, Pointwise, PointwiseWrite, QkNormRope
from fuseline.ir.ops.raised import Rope
from fuseline.ir.ops.view import Permute
from fuseline.ir.types import Dim, same
from fuseline.passes.rewrite import FuncPass


@dataclass(frozen=True)
class LiveRange:
    """From the step that defines a root value to the last step that reads it or a view of it."""

    value: Value
    first: int
    last: int


@dataclass
class Memory:
    """Where root values live.

    Attributes:
        temps: bytes of each temporary.
        place: the temporary of each root value that has one; the others are arguments, outputs,
            or made by the host.
    """

    temps: list[Dim] = field(default_factory=list[Dim])
    place: dict[Value, int] = field(default_factory=dict[Value, int])


def live_ranges(func: Func, layouts: LayoutMap, steps: Sequence[Op]) -> dict[Value, LiveRange]:
    """The live range of each root value that a step makes, in step numbers.

    Returned values (and roots of returned views) live to the end.
    """
    number = {op: i for i, op in enumerate(steps)}
    first: dict[Value, int] = {}
    last: dict[Value, int] = {}
    for op, i in number.items():
        for value in op.results:
            root = layouts.root(value)
            first.setdefault(root, i)
            last[root] = max(last.get(root, i), i)
        for value in op.operands:
            if value in layouts.places:
                last[layouts.root(value)] = i
    for value in func.returns:
        last[layouts.root(value)] = len(steps)
    return {v: LiveRange(v, start, last[v]) for v, start in first.items()}


def share_memory(
    ranges: Iterable[LiveRange], sizes: dict[Value, Dim], taken: Iterable[Value]
) -> Memory:
    """Give each root a temporary; one is reused once its last value is dead.

    Args:
        ranges: live ranges of the roots that need memory.
        sizes: bytes of each.
        taken: roots that get their memory elsewhere (outputs, host results).

    """
    skip = set(taken)
    memory = Memory()
    free: dict[Dim, list[int]] = {}
    busy: list[tuple[int, int]] = []
    for item in sorted(ranges, key=lambda r: r.first):
        if item.value in skip:
            continue
        still: list[tuple[int, int]] = []
        for until, temp in busy:
            if until < item.first:
                free.setdefault(memory.temps[temp], []).append(temp)
            else:
                still.append((until, temp))
        busy = still
        size = sizes[item.value]
        spare = free.get(size)
        if spare:
            temp = spare.pop()
        else:
            temp = len(memory.temps)
            memory.temps.append(size)
        memory.place[item.value] = temp
        busy.append((item.last, temp))
    return memory


@dataclass(frozen=True)
class ProtectReads(FuncPass):
    """Copy what was read from a buffer where a write comes before the last use of it.

    Before:
        func @f(%k: buffer<f32[4]>, %x: f32[4]) {
          %old = read %k
          write %k, %x
          %y = add %old, %x
          return %y
        }
    After:
        func @f(%k: buffer<f32[4]>, %x: f32[4]) {
          %old = read %k
          %saved = copy %old
          write %k, %x
          %y = add %saved, %x
          return %y
        }
    """

    def run(self, func: Func) -> None:
        """Insert copies after the reads that need one."""
        number = {op: i for i, op in enumerate(func.ops)}
        for op in func.ops:
            if not isinstance(op, Read):
                continue
            written = _next_write(func, op, number)
            if written is None or _last_use(func, op, number) <= _overtakes(written, number):
                continue
            readers = [user for user in func.users(op.y) if not isinstance(user, Copy)]
            copy = Copy(op.y)
            copy.place_like(op)
            following = func.ops[func.ops.index(op) + 1]
            func.edit(before=following, insert=[copy], replace_values={})
            for user in readers:
                func.replace_operands(user, {op.y: copy.y})
            if func.is_returned(op.y):
                func.set_returns(copy.y if v is op.y else v for v in func.returns)


def _next_write(func: Func, read: Read, number: dict[Op, int]) -> Op | None:
    writes = [
        user
        for user in func.users(read.buffer)
        if user.has(Trait.WRITES) and number.get(user, -1) > number[read]
    ]
    return min(writes, key=number.__getitem__, default=None)


def _overtakes(write: Op, number: dict[Op, int]) -> int:
    """The last step that still finds what was there before a write: one that reads an element
    before it writes it may be the last reader itself.
    """
    return number[write] if isinstance(write, PointwiseWrite) else number[write] - 1


def _last_use(func: Func, op: Op, number: dict[Op, int]) -> int:
    """The last step that reads the op's result, or a value that may share its memory."""
    last = number[op]
    stack = [op]
    while stack:
        maker = stack.pop()
        for value in maker.results:
            if func.is_returned(value):
                return len(number)
            for user in func.users(value):
                last = max(last, number.get(user, 0))
                if user.has(Trait.VIEW):
                    stack.append(user)
    return last


@dataclass(frozen=True)
class Owed:
    """The memory that a caller may expect of a returned value.

    Attributes:
        group: values of one group may share memory, those of different groups may not.
        strides: in elements.
    """

    group: int
    strides: tuple[Dim, ...]


def own_results(
    func: Func, args: Mapping[Value, Layout], owed: Sequence[Owed]
) -> dict[Value, Layout]:
    """Give returned values memory where the caller expects them, by a copy where need be.

    Copies that a program makes are dropped when it is imported, equal values become one, and a
    kernel lays out its result as it likes. A caller must not see any of that: a returned value
    never is an argument's memory (views of arguments are not returned values of a func), nor that
    of a value that was another tensor, and it has eager's strides.

    Returns:
        The layouts of the values that their kernels are to write in that form, without a copy.
    """
    layouts = LayoutMap(func, args)
    taken: dict[Value, int] = {}
    returns: list[Value] = []
    found: dict[Value, Layout] = {}
    for value, form in zip(func.returns, owed, strict=True):
        placed = layouts[value]
        is_argument = placed.root.owner is None
        shared = is_argument or taken.get(placed.root, form.group) != form.group
        order = _dense_order(value.shape, form.strides)
        strange = order is not None and not _equal(value.shape, placed.layout.strides, form.strides)
        if strange and not shared and _may_lie_so(func, value, form.strides):
            found[value] = Layout(0, form.strides)
        elif strange or shared:
            value = _copied(func, value, order)
        else:
            taken[placed.root] = form.group
        returns.append(value)
    func.set_returns(returns)
    return found


def _may_lie_so(func: Func, value: Value, strides: Sequence[Dim]) -> bool:
    """Whether a value is only returned, and made by an op whose kernels write these strides."""
    op = value.owner
    if op is None or func.users(value) or func.use_count(value) != 1:
        return False
    if isinstance(op, (QkNormRope, Rope)):  # which write a head's elements side by side
        return same(strides[-1], 1) or same(value.shape[-1], 1)
    return isinstance(op, Pointwise) or op.has(Trait.POINTWISE)


def _equal(shape: Sequence[Dim], one: Sequence[Dim], other: Sequence[Dim]) -> bool:
    """Whether strides are the same, but for dims of extent 1."""
    return all(same(e, 1) or same(a, b) for e, a, b in zip(shape, one, other, strict=True))


def _dense_order(shape: Sequence[Dim], strides: Sequence[Dim]) -> tuple[int, ...] | None:
    """The dims from the outermost to the innermost, where the strides are those of a dense tensor
    with its dims permuted; None where they are not (repeated rows, or gaps).
    """
    for order in itertools.permutations(range(len(shape))):
        permuted = [shape[d] for d in order]
        if _equal(permuted, dense(permuted).strides, [strides[d] for d in order]):
            return order
    return None


def _copied(func: Func, value: Value, order: tuple[int, ...] | None) -> Value:
    """A copy of a value behind all other ops, its dims in this order in memory."""
    back = None
    ops: list[Op] = []
    if order is not None and order != tuple(range(len(order))):
        ops.append(Permute(value, dims=order))
        back = tuple(sorted(range(len(order)), key=order.__getitem__))
    ops.append(Copy(ops[-1].results[0] if ops else value))
    if back is not None:
        ops.append(Permute(ops[-1].results[0], dims=back))
    for op in ops:
        if value.owner is not None:
            op.place_like(value.owner)
        func.append(op)
    return ops[-1].results[0]
