"""Runs captured programs with plain torch, and gives the caller what a compiled program owes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from fuseline import _torch
from fuseline.frontend.captured import (
    Argument,
    Captured,
    FromGraph,
    FromInput,
    FromNothing,
    FromSymbols,
    Owed,
    Return,
)
from fuseline.ir.types import substitute

Compiled: TypeAlias = "Callable[[Sequence[Argument]], Sequence[Tensor]]"
"""Compiled code: takes the flat inputs, constants included and complex ones as their real views,
writes the written ones in place, and gives the values that the graph computes for the caller."""

CompileStep: TypeAlias = "Callable[[Captured], Compiled]"


def interpret(captured: Captured) -> Compiled:
    """The captured graph run call by call through ATen: the plainest compile step."""
    count = len(captured.writes)

    def run(arguments: Sequence[Argument]) -> Sequence[Tensor]:
        targets = [cast("Tensor", arguments[index]) for index in captured.writes]
        written = {_torch.storage_of(target) for target in targets}
        with torch.no_grad():
            outputs = cast("Any", captured.module)(*arguments)
            new = [c.clone() if _torch.storage_of(c) in written else c for c in outputs[:count]]
            for target, contents in zip(targets, new, strict=True):
                target.copy_(contents)
        return outputs[count:]

    return run


class Ran(threading.local):
    """Whether a graph of a program ran, in this thread, since someone last said no."""

    yes: bool = False


def finish(
    owed: Owed, compiled: Compiled, ran: Ran | None = None
) -> Callable[..., tuple[Any, ...]]:
    """What a tracer's caller expects: takes the flat inputs, gives what the program returns."""
    constants, ran = owed.constants, ran or Ran()
    if owed.pairs:
        compiled = _with_real_views(owed.pairs, compiled)
    if all(isinstance(r, FromGraph) for r in owed.returns):

        def call(*arguments: Argument) -> tuple[Any, ...]:
            ran.yes = True
            return tuple(compiled((*arguments, *constants)))

        return call

    def call_and_collect(*arguments: Argument) -> tuple[Any, ...]:
        ran.yes = True
        given = (*arguments, *constants)
        results = compiled(given)
        bound = owed.bind(given)
        return tuple(_collect(r, given, results, bound) for r in owed.returns)

    return call_and_collect


def _with_real_views(pairs: Sequence[int], compiled: Compiled) -> Compiled:
    def run(arguments: Sequence[Argument]) -> Sequence[Tensor]:
        given = list(arguments)
        for index in pairs:
            given[index] = torch.view_as_real(cast("Tensor", given[index]))
        return compiled(given)

    return run


def _collect(
    owed: Return, given: Sequence[Argument], results: Sequence[Tensor], bound: dict[str, int]
) -> Any:
    match owed:
        case FromGraph(index):
            return results[index]
        case FromInput(index, size, stride, offset):
            shape = [substitute(s, bound) for s in size]
            strides = [substitute(s, bound) for s in stride]
            base = cast("Tensor", given[index])
            start = substitute(offset, bound)
            if not start and list(base.shape) == shape and list(base.stride()) == strides:
                return base
            return base.as_strided(shape, strides, int(base.storage_offset()) + start)
        case FromSymbols(value):
            return substitute(value, bound)
        case FromNothing(value):
            return value
