"""Sizes that only the data tells, such as how many elements of a mask are true.

torch gives each a symbol of its own (``u0``). A graph has such sizes where Dynamo was asked to go
on at them; what recording a call again makes are other symbols, to be called as Dynamo calls them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import sympy
import torch
from torch import Tensor, fx

from fuseline import _torch
from fuseline.frontend.places import value_of
from fuseline.frontend.record import Recording, Result
from fuseline.ir.types import Range

_PICKING: set[object] = {torch.ops.aten.nonzero.default, torch.ops.aten.index.Tensor}
"""Calls that give one element, or row, for each true element of a mask."""


def depends_on_data(module: fx.GraphModule) -> bool:
    """Whether a graph has values or sizes that only the data tells."""
    return any(_is_unknown(value_of(node)) for node in module.graph.nodes)


def _is_unknown(value: Any) -> bool:
    if isinstance(value, Tensor):
        return any(_torch.is_unbacked(e) for e in map(_torch.expression, value.shape))
    if isinstance(value, (tuple, list)):
        return any(map(_is_unknown, cast("Sequence[Any]", value)))
    expr = _torch.scalar_expression(value)
    return isinstance(expr, sympy.Basic) and _torch.is_unbacked(expr)


def unproven(conditions: Sequence[Any], ranges: Mapping[sympy.Symbol, Range]) -> Any:
    """The first condition that says more of sizes than what makes them, or that two are equal.

    ``ranges`` are those that the ops leave to the sizes that they make.
    """
    equal = [c.args for c in conditions if _is_equality(c)]
    for condition in conditions:
        if not (_is_equality(condition) or _holds(condition, ranges, equal)):
            return condition
    return None


def _is_equality(condition: Any) -> bool:
    match condition:
        case sympy.Equality(args=(sympy.Symbol(), sympy.Symbol())):
            return True
        case _:
            return False


def _holds(
    condition: Any, ranges: Mapping[sympy.Symbol, Range], equal: Sequence[tuple[Any, Any]]
) -> bool:
    """Whether a condition follows from the ranges of a size and of those that equal it."""
    match condition:
        case sympy.GreaterThan(args=(sympy.Symbol() as size, sympy.Integer() as bound)):
            return any(int(bound) <= r.lo for r in _ranges_of(size, ranges, equal))
        case sympy.LessThan(args=(sympy.Symbol() as size, sympy.Integer() as bound)):
            tops = [r.hi for r in _ranges_of(size, ranges, equal)]
            return any(top is not None and int(bound) >= top for top in tops)
        case _:
            return condition is True or condition is sympy.true


def _ranges_of(
    size: sympy.Symbol, ranges: Mapping[sympy.Symbol, Range], equal: Sequence[tuple[Any, Any]]
) -> list[Range]:
    """The ranges of a size and of all that are equal to it."""
    found, before = {size}, 0
    while len(found) > before:
        before = len(found)
        found.update(s for pair in equal if not found.isdisjoint(pair) for s in pair)
    return [ranges[s] for s in found if s in ranges]


def sizes_in(recording: Recording, value: Any) -> dict[sympy.Symbol, sympy.Symbol]:
    """The symbols for unknown sizes in a recording, with those of ``value``, which tracing gave."""
    sizes: dict[sympy.Symbol, sympy.Symbol] = {}
    for ref, traced in _pairs(recording.value, value):
        if isinstance(ref, Result):
            sizes |= _renamings(recording.calls[ref.call].outputs[ref.output], traced)
    return sizes


def with_sizes(recording: Recording, sizes: dict[sympy.Symbol, sympy.Symbol]) -> Recording:
    """A recording with other symbols for unknown sizes."""
    if all(own is traced for own, traced in sizes.items()):
        return recording
    calls = [
        dataclasses.replace(call, outputs=tuple(_resized(o, sizes) for o in call.outputs))
        for call in recording.calls
    ]
    return Recording(calls, recording.value)


def range_in(recording: Recording, tensors: Sequence[Tensor]) -> Range:
    """The range of the unknown sizes in a recording of a call of these tensors."""
    if not any(call.target in _PICKING for call in recording.calls):
        return Range()
    masks = [t for t in tensors if t.dtype is torch.bool] or tensors
    extents = [_torch.expression(t.numel()) for t in masks]
    known = [e for e in extents if isinstance(e, int)]
    return Range(0, max(known) if known and len(known) == len(extents) else None)


def _pairs(refs: Any, values: Any) -> Iterator[tuple[Any, Tensor]]:
    """What a recording gives and the tensors that tracing gave, side by side."""
    if isinstance(refs, (tuple, list)) and isinstance(values, (tuple, list)):
        for ref, value in zip(cast("Sequence[Any]", refs), cast("Any", values), strict=True):
            yield from _pairs(ref, value)
    elif isinstance(values, Tensor):
        yield refs, values


def _renamings(fake: Tensor, traced: Tensor) -> Iterator[tuple[sympy.Symbol, sympy.Symbol]]:
    for have, want in zip(fake.shape, traced.shape, strict=True):
        one, other = _torch.expression(have), _torch.expression(want)
        if not isinstance(one, sympy.Symbol) or not isinstance(other, sympy.Symbol):
            continue
        if _torch.is_unbacked(one):
            yield one, other


def _resized(output: Any, sizes: dict[sympy.Symbol, sympy.Symbol]) -> Any:
    if not isinstance(output, Tensor) or not _is_unknown(output):
        return output
    return _torch.resized(output, sizes)
