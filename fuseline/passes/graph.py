"""Finds repeated layers: regions of a func that do the same to other operands.

A decoder is one layer written down many times. `repeated_layers` finds such copies from program
order alone, without names: ops are compared by what they are (op, attributes, types), the period
at which they come back is the length of a layer, and copies are held equal by a digest of their
inner wiring. Copies form a chain, each reading what the one before it made: two norms side by side
are no layers.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fuseline.ir.core import Func, Op, Value, digest

_PERIODS = 64
"""How many distances are tried as the length of a layer, the most frequent ones first."""


@dataclass(frozen=True)
class Region:
    """Ops that stand together in program order.

    Attributes:
        ops: in program order; ops without operands (constants) are never among them.
        inputs: the values read from outside, in the order of their first reading.
        outputs: the values that are read outside, or returned.
    """

    ops: tuple[Op, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


@dataclass(frozen=True)
class Group:
    """Regions of equal structure: they differ in nothing but the values of their inputs.

    The inputs of all regions correspond one to one, as do their ops and outputs.
    """

    digest: str
    regions: tuple[Region, ...]

    def __len__(self) -> int:
        return len(self.regions)


def repeated_layers(func: Func, *, smallest: int = 3) -> tuple[Group, ...]:
    """Groups of two or more equal regions, in program order of their first ones.

    Regions do not overlap. A region that repeats inside of a larger one that repeats too (five
    sliding layers and a full one, over and over) counts by itself.

    Args:
        func: read only.
        smallest: regions of fewer ops are not looked for.

    """
    ops = [op for op in func.ops if op.operands]
    texts = [_token(op) for op in ops]
    finder = _Finder(ops, texts, smallest)
    groups: dict[str, list[Region]] = {}
    for start, stop in sorted(finder.spans(0, len(ops))):
        region, key = _region(func, ops[start:stop], texts[start:stop])
        groups.setdefault(key, []).append(region)
    return tuple(Group(key, tuple(found)) for key, found in groups.items() if len(found) > 1)


def _region(func: Func, ops: Sequence[Op], texts: Sequence[str]) -> tuple[Region, str]:
    """A region, and the digest of its structure."""
    inside: dict[Value, str] = {}
    inputs: dict[Value, int] = {}
    lines: list[str] = []
    for op, text in zip(ops, texts, strict=True):
        reads: list[str] = []
        for value in op.operands:
            if value not in inside:
                number = inputs.setdefault(value, len(inputs))
                inside[value] = f"input {number} {_outside(value)}"
            reads.append(inside[value])
        lines.append(f"{text} {reads}")
        for result in op.results:
            inside[result] = f"%{len(inside)}"
    own = set(ops)
    outputs = [
        value
        for op in ops
        for value in op.results
        if func.is_returned(value) or any(user not in own for user in func.users(value))
    ]
    lines.append(str([inside[v] for v in outputs]))
    region = Region(tuple(ops), tuple(inputs), tuple(outputs))
    return region, digest("\n".join(lines).encode())


def _outside(value: Value) -> str:
    """What tells inputs apart: their type, and the constant that they are."""
    if value.owner is not None and not value.owner.operands:
        return _token(value.owner)
    kind = value.origin.kind if value.origin is not None else "value"
    return f"{kind} {value.type}"


def _token(op: Op) -> str:
    """What an op is, whatever it reads: its name, attributes and types."""
    types = [str(v.type) for v in (*op.operands, *op.results)]
    return f"{op.name} {sorted(op.attributes.items(), key=lambda a: a[0])!r} {types}"


@dataclass(frozen=True)
class _Run:
    """Copies of ``period`` ops each, one behind the other from ``start`` on."""

    start: int
    period: int
    copies: int

    @property
    def stop(self) -> int:
        return self.start + self.period * self.copies


class _Finder:
    """Finds runs of equal ops in a list."""

    def __init__(self, ops: Sequence[Op], texts: Sequence[str], smallest: int) -> None:
        self.ops = ops
        self.smallest = smallest
        numbers: dict[str, int] = {}
        self.tokens = [numbers.setdefault(text, len(numbers)) for text in texts]
        self.place = {op: i for i, op in enumerate(ops)}
        self.made = [self._reads(op) for op in ops]

    def _reads(self, op: Op) -> list[int]:
        """The places of the ops whose results an op reads."""
        owners = (v.owner for v in op.operands)
        return [self.place[owner] for owner in owners if owner in self.place]

    def spans(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The regions between two places."""
        run = self._best_run(start, stop)
        if run is None:
            return
        yield from self.spans(start, run.start)
        inner = self._pieces(run.start, run.start + run.period)
        for copy in range(run.copies):
            offset = copy * run.period
            yield from ((a + offset, b + offset) for a, b in inner)
        yield from self.spans(run.stop, stop)

    def _pieces(self, start: int, stop: int) -> list[tuple[int, int]]:
        """One copy, cut where something inside of it repeats in its turn."""
        cuts = {start, stop}
        cuts.update(itertools.chain.from_iterable(self.spans(start, stop)))
        return list(itertools.pairwise(sorted(cuts)))

    def _best_run(self, start: int, stop: int) -> _Run | None:
        """The run that covers most; of two that cover nearly the same, the shorter period."""
        best: _Run | None = None
        for period in sorted(self._periods(start, stop)):
            run = self._run(period, start, stop)
            if run is None or not self._is_chain(run):
                continue
            covered = run.copies * run.period
            if best is None or covered > 1.1 * best.copies * best.period:
                best = run
        return best

    def _periods(self, start: int, stop: int) -> list[int]:
        """The distances at which ops come back."""
        last: dict[int, int] = {}
        distances: Counter[int] = Counter()
        for place in range(start, stop):
            token = self.tokens[place]
            if token in last:
                distances[place - last[token]] += 1
            last[token] = place
        # A token that occurs several times in a layer comes back after parts of the period only.
        sums = Counter(distances)
        for one, other in itertools.combinations(list(distances)[:_PERIODS], 2):
            sums[one + other] += min(distances[one], distances[other])
        found = [d for d, _ in sums.most_common(4 * _PERIODS) if d >= self.smallest]
        return [d for d in found if 2 * d <= stop - start][:_PERIODS]

    def _run(self, period: int, start: int, stop: int) -> _Run | None:
        """The longest run of a period, cut where the fewest values cross from copy to copy."""
        first, length = self._longest_match(period, start, stop)
        if length < period:
            return None
        crossing = self._crossing(first, first + length + period)
        candidates = [
            _Run(first + shift, period, (length + period - shift) // period)
            for shift in range(period)
        ]
        whole = [run for run in candidates if run.copies > 1]
        return min(
            whole,
            key=lambda run: (crossing[run.start + period - first], -run.copies, run.start),
            default=None,
        )

    def _longest_match(self, period: int, start: int, stop: int) -> tuple[int, int]:
        """The first place, and the number of ops in a row, that come again after a period."""
        best, length = (start, 0), 0
        for place in range(start, stop - period):
            same = self.tokens[place] == self.tokens[place + period]
            length = length + 1 if same else 0
            if length > best[1]:
                best = (place - length + 1, length)
        return best

    def _crossing(self, start: int, stop: int) -> list[int]:
        """For each place of a stretch, how many of its values are made before and read later."""
        last: dict[int, int] = {}
        for place in range(start, len(self.ops)):
            for maker in self.made[place]:
                if start <= maker < stop:
                    last[maker] = min(place, stop)
        changes = [0] * (stop - start + 2)
        for maker, reader in last.items():
            changes[maker + 1 - start] += 1
            changes[reader + 1 - start] -= 1
        return list(itertools.accumulate(changes))

    def _is_chain(self, run: _Run) -> bool:
        """Whether each copy reads what the one before it made, and nothing of earlier ones."""
        for copy in range(1, run.copies):
            begin = run.start + copy * run.period
            before = {
                (maker - run.start) // run.period
                for place in range(begin, begin + run.period)
                for maker in self.made[place]
                if run.start <= maker < begin
            }
            if before != {copy - 1}:
                return False
        return True
