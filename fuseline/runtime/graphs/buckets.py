"""Sizes that stand for several: a call runs from the recording of the next larger ones.

Sizes whose rows are independent (`Plan.pads`) are rounded up to 1, 2, 4, 8, 16, 24, ... 256, 272,
... 512: the sizes that serving engines record. So every size has a recording after few calls, and
computes at most 7 rows too many up to 256, 15 beyond. Counts (`Plan.variants`) are rounded up to
powers of two. Where a size has an upper limit below the next bucket, the limit is the bucket.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fuseline.runtime.executor import BoundView, Program, bind_view
from fuseline.runtime.memory import copy_over, once
from fuseline.runtime.plan import Expr, PadArg, PadRule

Key: TypeAlias = tuple[int, ...]
"""The values of a plan's symbols."""

LARGEST_BUCKET = 512
"""Rows that are rounded up at most: beyond, those that are added would cost."""

COPIED = 64 * 1024**2
"""Bytes of an input up to which it is copied in every call; a larger one must stay where it is."""


def bucket_of(rows: int) -> int:
    """The size that so many rows are recorded as."""
    if rows <= 4:
        return next_power(rows)
    if rows > LARGEST_BUCKET:
        return rows
    step = 8 if rows <= 256 else 16
    return -(-rows // step) * step


def next_power(count: int) -> int:
    """The next power of two; none for none."""
    return 1 << (count - 1).bit_length() if count else 0


@dataclass(frozen=True)
class Cut:
    """A dim of a result with more rows than a call has: ``outer`` times ``wide`` rows of ``inner``
    elements, the first ``real`` of which are the call's.
    """

    axis: int
    outer: int
    wide: int
    inner: int
    real: int

    def __call__(self, tensor: Tensor) -> Tensor:
        """The call's own rows."""
        if self.outer == 1:
            return tensor.narrow(self.axis, 0, self.real * self.inner)
        before, after = tensor.shape[: self.axis], tensor.shape[self.axis + 1 :]
        apart = tensor.reshape(*before, self.outer, self.wide, self.inner, *after)
        own = apart.narrow(self.axis + 1, 0, self.real)
        return own.reshape(*before, self.outer * self.real * self.inner, *after)


@dataclass(frozen=True)
class Wider:
    """A call as one of larger sizes.

    Attributes:
        key: the sizes.
        args: the dims of each argument that grow.
        forms: its shape and strides then.
        cuts: what to take of each result.
        results: the form that each has in the call.
        sizes: bytes of the memory of each.
        counted: whether a count is among those that are larger.
    """

    key: Key
    args: Mapping[int, tuple[PadArg, ...]]
    forms: Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]]
    cuts: tuple[tuple[Cut, ...], ...]
    results: tuple[BoundView, ...]
    sizes: tuple[int, ...]
    counted: bool = False


class Buckets:
    """Rounds the sizes of a program's calls.

    Args:
        program: with the plan that says what may be rounded.
        largest: most tokens (rows of an input) of sizes that are recorded; None for any.

    """

    def __init__(self, program: Program, largest: int | None) -> None:
        self.program = program
        self.largest = largest
        self.counts = {variant.symbol: variant for variant in program.plan.variants}

    def refusal(self, key: Key) -> str:
        """Why sizes are not recorded; empty where they are."""
        known = self._named(key)
        for symbol, variant in self.counts.items():
            if known[symbol] > variant.most:
                return f"more than {variant.most} {variant.name}"
        if self.largest is not None and tokens(self.program, key) > self.largest:
            return f"more than {self.largest} tokens, which keep the device busy"
        return ""

    def of(self, key: Key) -> Wider | None:
        """The sizes that stand for these; None where that is these alone."""
        known = self._named(key)
        counts = {s: min(next_power(known[s]), v.most) for s, v in self.counts.items()}
        wide = known | self._rows(key) | counts
        if self.refusal(tuple(wide.values())) or not self._fits(wide, known):
            wide = known | counts
        if wide == known or not self._fits(wide, known):
            return None
        wider = self._wider(known, wide)
        return None if any(_overlaps(*form) for form in wider.forms.values()) else wider

    def _named(self, key: Key) -> dict[str, int]:
        return dict(zip(self.program.plan.symbols, key, strict=True))

    def _rows(self, key: Key) -> dict[str, int]:
        """The sizes that are rounded up, each to its bucket, or to its limit below that."""
        plan, value, known = self.program.plan, self.program.numbers(key), self._named(key)
        found: dict[str, int] = {}
        for name, rule in plan.pads.items():
            limits = [value(limit) for limit in rule.limits]
            greatest = plan.ranges.get(name, (0, None))[1]
            limits += [] if greatest is None else [greatest]
            if name not in self.counts:
                found[name] = max(known[name], min([bucket_of(known[name]), *limits]))
        return found

    def _grown(self, known: Mapping[str, int], wide: Mapping[str, int]) -> dict[int, list[PadArg]]:
        """The dims of arguments that grow, by argument."""
        found: dict[int, list[PadArg]] = {}
        for name, rule in self._rules().items():
            for each in rule.args if wide[name] > known[name] else ():
                found.setdefault(each.arg, []).append(each)
        return found

    def _rules(self) -> dict[str, PadRule]:
        counted = {s: PadRule(v.args) for s, v in self.counts.items()}
        return {**self.program.plan.pads, **counted}

    def _fits(self, wide: Mapping[str, int], known: Mapping[str, int]) -> bool:
        """Whether every argument that grows is small enough to be copied."""
        value, plan = self.program.numbers(tuple(wide.values())), self.program.plan
        return all(
            math.prod(map(value, plan.args[arg].shape)) * plan.args[arg].dtype.itemsize <= COPIED
            for arg in self._grown(known, wide)
        )

    def _wider(self, known: Mapping[str, int], wide: Mapping[str, int]) -> Wider:
        plan, key = self.program.plan, tuple(wide.values())
        value, own = self.program.numbers(key), self.program.numbers(tuple(known.values()))
        grown = self._grown(known, wide)
        specs = {arg: plan.args[arg] for arg in grown}
        return Wider(
            key,
            {arg: tuple(dims) for arg, dims in grown.items()},
            {a: (_all(value, s.shape), _all(value, s.strides)) for a, s in specs.items()},
            self._cuts(known, wide),
            tuple(bind_view(view, own) for view in plan.returns),
            tuple(own(plan.buffers[view.buffer].nbytes) for view in plan.returns),
            any(wide[symbol] != known[symbol] for symbol in self.counts),
        )

    def _cuts(
        self, known: Mapping[str, int], wide: Mapping[str, int]
    ) -> tuple[tuple[Cut, ...], ...]:
        """What to take of each result, symbol by symbol: what was cut has its own size then."""
        plan, now = self.program.plan, dict(wide)
        cuts: list[list[Cut]] = [[] for _ in plan.returns]
        for name, rule in self._rules().items():
            if now[name] == known[name]:
                continue
            value = self.program.numbers(tuple(now.values()))
            for found, dims in zip(cuts, rule.returns, strict=False):
                found += [
                    Cut(d.axis, value(d.outer), now[name], value(d.inner), known[name])
                    for d in dims
                ]
            now[name] = known[name]
        return tuple(map(tuple, cuts))


def tokens(program: Program, key: Key) -> int:
    """The rows of the input that has most: of numbers all, of indices each element."""
    value, most = program.numbers(key), 0
    for spec in program.plan.args:
        if spec.kind == "tensor" and not spec.fixed and not spec.written:
            rows = spec.shape[:-1] if spec.dtype.is_floating_point else spec.shape
            most = max(most, math.prod(map(value, rows)))
    return most


def _all(value: Callable[[Expr], int], exprs: Sequence[Expr]) -> tuple[int, ...]:
    return tuple(map(value, exprs))


def _overlaps(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements share memory, but for those along a dim whose stride is 0."""
    end = 0
    for stride, extent in sorted(
        (s, e) for s, e in zip(strides, shape, strict=True) if s and e > 1
    ):
        if stride < end:
            return True
        end = stride * extent
    return False


def fill(memory: Tensor, given: Tensor, dims: Sequence[PadArg]) -> None:
    """Copy a tensor to the beginning of larger memory, and put into the rest what it holds."""
    part = memory
    for each in dims:
        part = part.narrow(each.axis, 0, given.shape[each.axis])
    copy_over(part, given)
    for number, each in enumerate(dims):
        part = memory
        for later in dims[number + 1 :]:
            part = part.narrow(later.axis, 0, given.shape[later.axis])
        real, wide = given.shape[each.axis], memory.shape[each.axis]
        rest = part.narrow(each.axis, real, wide - real)
        if each.fill is not None:
            once(rest).fill_(each.fill)
        elif part.stride(each.axis):  # else every row is the same memory
            copy_over(rest, part.narrow(each.axis, real - 1, 1).expand_as(rest))


def own_rows(
    program: Program, wider: Wider, found: Sequence[Tensor], given: Sequence[Any]
) -> list[Tensor]:
    """The results of a call, in new memory and in their form, out of those of larger sizes; what
    was given is given back as it is.
    """
    made: dict[int, Tensor] = {}
    results: list[Tensor] = []
    for tensor, cuts, form, nbytes in zip(
        found, wider.cuts, wider.results, wider.sizes, strict=True
    ):
        buffer = program.plan.buffers[form.buffer]
        if buffer.kind == "arg":
            results.append(form.on(given[buffer.arg]))
            continue
        if buffer.kind == "host":
            fresh = torch.empty_strided(
                form.shape, form.strides, dtype=form.dtype, device=program.device
            )
        else:
            memory = made.setdefault(form.buffer, program.memory(nbytes))
            fresh = form.on(memory)
        for cut in cuts:
            tensor = cut(tensor)
        if fresh.numel():
            copy_over(fresh, tensor)
        results.append(fresh)
    return results


__all__ = [
    "COPIED",
    "LARGEST_BUCKET",
    "Buckets",
    "Cut",
    "Key",
    "Wider",
    "bucket_of",
    "fill",
    "own_rows",
    "tokens",
]
