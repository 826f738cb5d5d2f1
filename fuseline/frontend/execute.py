"""Runs captured programs with plain torch, and gives the caller what a compiled program owes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import sympy
import torch
from torch import Tensor

from fuseline.frontend.captured import (
    Argument,
    Captured,
    FromGraph,
    FromInput,
    FromNothing,
    FromSymbols,
    Return,
)

Compiled: TypeAlias = "Callable[[Sequence[Argument]], Sequence[Tensor]]"
"""Compiled code: takes the flat inputs, constants included, writes the written ones in place, and
gives the values that the graph computes for the caller."""

CompileStep: TypeAlias = "Callable[[Captured], Compiled]"


def interpret(captured: Captured) -> Compiled:
    """The captured graph run call by call through ATen: the plainest compile step."""
    count = len(captured.writes)

    def run(arguments: Sequence[Argument]) -> Sequence[Tensor]:
        with torch.no_grad():
            outputs = cast("Any", captured.module)(*arguments)
            for index, contents in zip(captured.writes, outputs[:count], strict=True):
                cast("Tensor", arguments[index]).copy_(contents)
        return outputs[count:]

    return run


def finish(captured: Captured, compiled: Compiled) -> Callable[..., tuple[Any, ...]]:
    """What a tracer's caller expects: takes the flat inputs, gives what the program returns."""
    constants = captured.constants
    compiled = _guarded(captured, compiled)
    if all(isinstance(r, FromGraph) for r in captured.returns):

        def call(*arguments: Argument) -> tuple[Any, ...]:
            return tuple(compiled((*arguments, *constants)))

        return call

    def call_and_collect(*arguments: Argument) -> tuple[Any, ...]:
        given = (*arguments, *constants)
        results = compiled(given)
        bound = captured.bind(given)
        return tuple(_collect(r, given, results, bound) for r in captured.returns)

    return call_and_collect


def _guarded(captured: Captured, compiled: Compiled) -> Compiled:
    """Leave calls in which a symbol is negative, which dims cannot be, to plain ATen."""
    signed = [s.source for s in captured.symbols if s.low is None or s.low < 0]
    if not signed:
        return compiled
    plain = interpret(captured)

    def run(arguments: Sequence[Argument]) -> Sequence[Tensor]:
        negative = any(dim is None and cast("int", arguments[i]) < 0 for i, dim in signed)
        return (plain if negative else compiled)(arguments)

    return run


def _collect(
    owed: Return, given: Sequence[Argument], results: Sequence[Tensor], bound: dict[str, int]
) -> Any:
    match owed:
        case FromGraph(index):
            return results[index]
        case FromInput(index, size, stride, offset):
            shape = [_number(s, bound) for s in size]
            strides = [_number(s, bound) for s in stride]
            base = cast("Tensor", given[index])
            if list(base.shape) == shape and list(base.stride()) == strides:
                return base
            return base.as_strided(shape, strides, _number(offset, bound))
        case FromSymbols(value):
            return _number(value, bound)
        case FromNothing(value):
            return value


def _number(value: int | sympy.Expr, bound: dict[str, int]) -> int:
    if isinstance(value, int):
        return value
    return int(value.subs({s: bound[str(s)] for s in value.free_symbols}))
