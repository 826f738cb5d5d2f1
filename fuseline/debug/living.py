"""The values of a func under one set of arguments, kept up as rewrites change the func.

The func as imported is evaluated twice, op by op: in its own types, which is what eager computes,
and in float64. Each value of it is an *anchor*. What a rewrite puts in the place of an anchored
value is evaluated from eager's values, compared, and is that anchor from then on: errors of one
rewrite never hide in those of another. Values that only rewrites know (a merged product, say) have
no anchor; where one of them changes, what is computed from it is evaluated again, up to anchors.

Decisions follow eager: integers and booleans (indices of the largest, masks) are not computed again
in float64, as another choice there would tell nothing about rounding.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from fuseline import _torch
from fuseline.debug.gaps import SAME, Gap, gap
from fuseline.debug.oracle import widely, widened
from fuseline.ir.core import Func, Op, Trait, Value
from fuseline.ir.evaluate import Argument, bind, call_reference, with_sizes_of
from fuseline.ir.ops.call import AtenCall, called, resolve
from fuseline.ir.ops.reduce import Sort, TopK
from fuseline.ir.types import BufferType

Held: TypeAlias = "Tensor | str"
"""A tensor, or why there is none."""

_RANDOM = "it draws random numbers"


@dataclass(frozen=True)
class Anchor:
    """What eager computes for a value, and what float64 does; `chance`: from random numbers."""

    eager: Tensor
    exact: Tensor
    chance: bool = False


@dataclass(frozen=True)
class Compared:
    """One comparison; `gap` is None where there was none, and `reason` says why."""

    value: Value
    gap: Gap | None
    reason: str = ""
    direct: bool = False
    """Whether the value itself was replaced, rather than what it is computed from."""


@dataclass(frozen=True)
class Expected:
    """What a program must give and leave behind.

    Attributes:
        results: the returned values; None where eager's is not known.
        finals: what the arguments of these numbers must hold in the end.
        refusal: why a run cannot be compared; empty where it can.
    """

    results: Sequence[tuple[Value, Anchor | None]]
    finals: Mapping[int, tuple[Value, Anchor]]
    refusal: str = ""

    def compared(self, results: Sequence[Tensor], arguments: Sequence[Argument]) -> list[Compared]:
        """Compare what a run gave, and what its arguments hold then."""
        if self.refusal:
            return [Compared(value, None, self.refusal) for value, _ in self.results]
        found: list[Compared] = []
        with torch.no_grad():
            for (value, anchor), tensor in zip(self.results, results, strict=True):
                found.append(_of_run(value, tensor, anchor))
            for number, (value, anchor) in self.finals.items():
                held = arguments[number]
                if isinstance(held, Tensor):
                    found.append(_of_run(value, held, anchor))
        return found


class Living:
    """The values of a func that passes edit.

    Args:
        func: as imported; evaluated at once.
        arguments: of the func, in order; nothing is written to them.

    Raises:
        IRError: the arguments do not fit.

    """

    def __init__(self, func: Func, arguments: Sequence[Argument]) -> None:
        self.func = func
        self.binding: Mapping[str, int] = bind(func, arguments)
        self.args = tuple(func.args)
        self.now: dict[Value, Held] = {}
        self.anchors: dict[Value, Anchor] = {}
        self.finals: dict[Value, Anchor] = {}
        """What written buffers hold in the end."""
        self.restarts: list[tuple[Value, str]] = []
        """Values with no float64 form, from which on float64 begins with eager's anew."""
        self._first: dict[Value, Held] = {}
        self._left: dict[tuple[Op, Value], Held] = {}
        """What each write leaves in a buffer."""
        self._numbers: dict[Value, int] = {}
        for arg, given in zip(func.args, arguments, strict=True):
            if not isinstance(given, Tensor):
                self._numbers[arg] = int(given)
            elif isinstance(arg.type, BufferType):
                self._first[arg] = given.detach().cpu().clone()
            else:
                self.now[arg] = given.detach().cpu()
        with torch.no_grad(), _own_generator():
            self._start()

    # -- the func as imported ---------------------------------------------------------------

    def _start(self) -> None:
        exact: dict[Value, Tensor] = {
            b: widened(t.clone()) for b, t in self._first.items() if isinstance(t, Tensor)
        }
        chance: set[Value] = set()
        for op in self.func.ops:
            found = self._evaluate(op, first=True)
            if _is_random(op) or not chance.isdisjoint(op.operands):
                chance.update(op.results, _buffers(op) if op.has(Trait.WRITES) else ())
            if isinstance(op, AtenCall) and all(isinstance(t, Tensor) for t in found):
                results = [t for t in found if isinstance(t, Tensor)]
                self.binding = with_sizes_of(op, results, self.binding)
            self._anchor(op, found, exact, chance)
        for buffer, contents in exact.items():
            eager = self.contents(buffer)
            if isinstance(eager, Tensor) and self._is_written(buffer):
                self.finals[buffer] = Anchor(eager, contents, buffer in chance)

    def _anchor(
        self, op: Op, found: Sequence[Held], exact: dict[Value, Tensor], chance: set[Value]
    ) -> None:
        """Note eager's results, and the same in float64; ``exact`` has what buffers hold there."""
        wide = self._widely(op, found, exact)
        for number, (value, eager) in enumerate(zip(op.results, found, strict=True)):
            self.now[value] = eager
            if not isinstance(eager, Tensor):
                self.restarts.append((value, eager))
                continue
            right = eager
            if eager.is_floating_point():
                right = widened(eager) if isinstance(wide, str) else wide[number]
                if right.shape != eager.shape:
                    wide = f"{called(op)} gives another shape in float64"
                    right = widened(eager)
                if isinstance(wide, str):
                    self.restarts.append((value, wide))
            self.anchors[value] = Anchor(eager, right, value in chance)

    def _widely(
        self, op: Op, found: Sequence[Held], exact: dict[Value, Tensor]
    ) -> Sequence[Tensor] | str:
        """The results of an op in float64, or why there are none."""
        if _is_random(op):
            return _RANDOM
        given: dict[Value, Tensor] = {}
        for value in op.operands:
            if value in self.anchors:
                given[value] = self.anchors[value].exact
            elif value in exact:
                given[value] = exact[value]
            elif isinstance(held := self._held(value, op), Tensor):
                given[value] = widened(held)
            else:
                return held
        if isinstance(op, (TopK, Sort)) and isinstance(found[1], Tensor):
            return [torch.gather(given[op.x], op.axis, found[1]), found[1]]
        try:
            with widely():
                return call_reference(op, given, self.binding)
        except Exception as error:  # whatever an operator raises that has no float64 form
            for buffer in _buffers(op):
                if op.has(Trait.WRITES) and isinstance(left := self._left[op, buffer], Tensor):
                    exact[buffer] = widened(left)
            return f"{called(op)} has no float64 form: {_line(error)}"

    def expected(self) -> Expected:
        """What the func, as it is now, must give: what eager does."""
        returns = [(v, self.anchors.get(v)) for v in self.func.returns]
        numbers = {arg: number for number, arg in enumerate(self.args)}
        finals = {
            numbers[buffer]: (buffer, anchor)
            for buffer, anchor in self.finals.items()
            if self._is_written(buffer)  # else the program keeps that state itself
        }
        own = [a.hint for a in self.func.args if a.origin and a.origin.kind == "state"]
        refusal = f"earlier calls may have left something in %{', %'.join(own)}" if own else ""
        return Expected(returns, finals, refusal)

    # -- after a change ---------------------------------------------------------------------

    def changed(
        self,
        values: Sequence[tuple[Value, Value]],
        new: Iterable[Op],
        removed: Iterable[Op],
        moved: Iterable[Op] = (),
    ) -> list[Compared]:
        """Evaluate what is new in the func, and compare what it takes the place of.

        Args:
            values: old values, each with one that is read in its place.
            new: ops that are in the func now.
            removed: ops that were.
            moved: others that read or write buffers, where their order may be another now.

        """
        place = self.func.places
        new, removed = sorted(new, key=place.__getitem__), list(removed)
        compared: list[Compared] = []
        loose: list[Value] = []
        with torch.no_grad(), _own_generator():
            for op in new:
                self.now.update(zip(op.results, self._evaluate(op), strict=True))
            for old, value in values:
                anchor = self.anchors.get(old)
                if anchor is None:
                    held = self._held(value, None)
                    if _same(held, self.now.get(old)):
                        compared.append(
                            Compared(value, SAME)
                            if isinstance(held, Tensor)
                            else Compared(value, None, held)
                        )
                    else:
                        loose.append(value)
                    continue
                compared.append(_compare(value, self._held(value, None), anchor, direct=True))
                if value.owner is not None and value not in self.anchors:
                    self.anchors[value], self.now[value] = anchor, anchor.eager
            touched = dict.fromkeys(b for op in (*new, *removed, *moved) for b in _buffers(op))
            compared += self._replay(touched, loose)
            compared += self._spread(loose)
        for op in removed:
            self._forget(op)
        return compared

    def _replay(self, buffers: Iterable[Value], loose: list[Value]) -> list[Compared]:
        """Run all that touches some buffers again, in the order that it has now."""
        buffers = [b for b in buffers if b in self._first or self._held_first(b) is not None]
        place = self.func.places
        users = {op for b in buffers for op in self.func.users(b) if op in self.func}
        compared: list[Compared] = []
        for op in sorted(users, key=place.__getitem__):
            compared += self._again(op, loose)
        for buffer in buffers:
            if buffer in self.finals:
                compared.append(_compare(buffer, self._final(buffer), self.finals[buffer]))
        return compared

    def _final(self, buffer: Value) -> Held:
        """What a buffer holds in the end; of one that state takes the place of, nothing is owed."""
        state = any(a.origin and a.origin.kind == "state" for a in self.func.args)
        if state and not self.func.users(buffer):
            return "the program keeps state in the place of this buffer"
        return self.contents(buffer)

    def _spread(self, loose: Iterable[Value]) -> list[Compared]:
        """Evaluate the readers of values without an anchor again, as far as to anchors."""
        place = self.func.places
        compared: list[Compared] = []
        queue: list[tuple[int, int]] = []
        waiting: dict[int, Op] = {}

        def read(values: Iterable[Value]) -> None:
            for op in (u for v in values for u in self.func.users(v) if u in self.func):
                if id(op) not in waiting:
                    waiting[id(op)] = op
                    heapq.heappush(queue, (place[op], id(op)))

        read(loose)
        while queue:
            op = waiting.pop(heapq.heappop(queue)[1])
            further: list[Value] = []
            compared += self._again(op, further)
            read(further)
            for buffer in _buffers(op):
                if op.has(Trait.WRITES) and buffer in self.finals:
                    compared.append(_compare(buffer, self._final(buffer), self.finals[buffer]))
        return compared

    def _again(self, op: Op, loose: list[Value]) -> list[Compared]:
        """Evaluate an op again: compare its anchored results, and note others that differ."""
        compared: list[Compared] = []
        for value, held in zip(op.results, self._evaluate(op), strict=True):
            if value in self.anchors:
                compared.append(_compare(value, held, self.anchors[value]))
            elif not _same(held, self.now.get(value)):
                self.now[value] = held
                loose.append(value)
        return compared

    def _forget(self, op: Op) -> None:
        for value in op.results:
            self.now.pop(value, None)
            self.anchors.pop(value, None)
        for buffer in _buffers(op):
            self._left.pop((op, buffer), None)

    # -- evaluating -------------------------------------------------------------------------

    def _evaluate(self, op: Op, *, first: bool = False) -> Sequence[Held]:
        """The results of an op in its own types; what it leaves in buffers is noted."""
        given: dict[Value, Tensor] = {}
        for value in op.operands:
            held = self._held(value, op)
            if isinstance(held, str):
                return self._nothing(op, held)
            writes = op.has(Trait.WRITES) and isinstance(value.type, BufferType)
            given[value] = held.clone() if writes else held
        if _is_random(op) and not first:
            return self._nothing(op, _RANDOM)
        try:
            results = call_reference(op, given, self.binding)
        except Exception as error:  # whatever an operator raises: an op without a reference here
            return self._nothing(op, f"{called(op)} cannot be evaluated here: {_line(error)}")
        if op.has(Trait.WRITES):
            self._left.update({(op, b): given[b] for b in _buffers(op)})
        return results

    def _nothing(self, op: Op, reason: str) -> Sequence[Held]:
        if op.has(Trait.WRITES):
            self._left.update({(op, b): reason for b in _buffers(op)})
        return [reason for _ in op.results]

    def _held(self, value: Value, reader: Op | None) -> Held:
        """What a value is, as an op finds it; of a buffer what it holds there."""
        if isinstance(value.type, BufferType):
            return self.contents(value, reader)
        held = self.now.get(value)
        return self._added(value) if held is None else held

    def _added(self, value: Value) -> Held:
        """An argument that a pass has added, or has made a tensor of."""
        origin = value.origin
        if value in self._numbers:
            return torch.tensor(self._numbers[value])
        if origin is not None and origin.kind == "count":
            return torch.tensor(self.binding[origin.name])
        return f"%{value.hint} is not known here"

    def contents(self, buffer: Value, reader: Op | None = None) -> Held:
        """What a buffer holds where an op reads it; in the end, without one."""
        place = self.func.places
        writes = [
            op
            for op in self.func.users(buffer)
            if op.has(Trait.WRITES) and op in self.func and (op, buffer) in self._left
        ]
        if reader is not None:
            writes = [op for op in writes if place[op] < place[reader]]
        if writes:
            return self._left[max(writes, key=place.__getitem__), buffer]
        held = self._held_first(buffer)
        return f"%{buffer.hint} is not known here" if held is None else held

    def _held_first(self, buffer: Value) -> Held | None:
        """What a buffer holds before the call."""
        if buffer not in self._first and buffer.origin and buffer.origin.kind == "state":
            replaced = [b for b in self._first if b.hint == buffer.origin.name]
            self._first[buffer] = self._zeros(buffer, replaced)
        return self._first.get(buffer)

    def _zeros(self, state: Value, replaced: Sequence[Value]) -> Held:
        """State that the program keeps begins with zeros, as what it stands for must have done."""
        if any(isinstance(t := self._first[b], Tensor) and bool(t.any()) for b in replaced):
            return f"%{state.hint} is state that the program keeps, in the place of a filled cache"
        return torch.zeros(*map(int, state.shape), dtype=state.dtype.torch)

    def _is_written(self, buffer: Value) -> bool:
        return any(op.has(Trait.WRITES) for op in self.func.users(buffer))


def _of_run(value: Value, found: Tensor, anchor: Anchor | None) -> Compared:
    """The comparison of what a run gave: it drew random numbers of its own."""
    if anchor is not None and anchor.chance:
        return Compared(value, None, "it depends on random numbers")
    return _compare(value, found.detach().cpu(), anchor, direct=True)


def _compare(value: Value, held: Held, anchor: Anchor | None, *, direct: bool = False) -> Compared:
    if isinstance(held, str) or anchor is None:
        held = held if isinstance(held, str) else "eager's value is not known"
        return Compared(value, None, held, direct)
    return Compared(value, gap(held, anchor.eager, anchor.exact), direct=direct)


@contextmanager
def _own_generator() -> Generator[None]:
    """Leaves the state of torch's random numbers as it was; what is drawn inside is seeded."""
    with cast("Any", torch).random.fork_rng(devices=[]):
        cast("Any", torch).manual_seed(0)
        yield


def _buffers(op: Op) -> Iterator[Value]:
    return (v for v in dict.fromkeys(op.operands) if isinstance(v.type, BufferType))


def _is_random(op: Op) -> bool:
    return isinstance(op, AtenCall) and _torch.is_random(resolve(op.target))


def _same(one: Held, other: Held | None) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return one == other if isinstance(one, str) else False


def _line(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200]


__all__ = ["Anchor", "Compared", "Living"]
