"""Carries a write to a view back to the tensor that it is a view of, one view call at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import fx

from fuseline.frontend.record import NotSimple

if TYPE_CHECKING:
    from fuseline.frontend.functionalize import Emitter, Step

aten = torch.ops.aten

Inverse: TypeAlias = "Callable[[Emitter, Step, fx.Node, fx.Node], fx.Node]"

INVERSES: dict[object, Inverse] = {}
"""For each view overload, how the base looks after its view was given new contents."""


def unview(emitter: Emitter, step: Step, base: fx.Node, contents: fx.Node) -> fx.Node:
    """The node of the base after the view that ``step`` makes of it holds ``contents``.

    Raises:
        NotSimple: the view has overlapping elements, or no inverse is known.

    """
    inverse = INVERSES.get(step.target)
    if inverse is None:
        raise NotSimple(f"a write to the result of {step.target}")
    return inverse(emitter, step, base, contents)


def _inverse(*targets: object) -> Callable[[Inverse], Inverse]:
    def register(function: Inverse) -> Inverse:
        for target in targets:
            INVERSES[target] = function
        return function

    return register


def _argument(step: Step, index: int, name: str, default: Any) -> Any:
    if name in step.kwargs:
        return step.kwargs[name]
    return step.args[index] if index < len(step.args) else default


@_inverse(aten.slice.Tensor)
def _slice(emitter: Emitter, step: Step, base: fx.Node, contents: fx.Node) -> fx.Node:
    args = (base, contents, *emitter.read(step.args))
    return emitter.node(aten.slice_scatter.default, args, emitter.read(step.kwargs), step.base)


@_inverse(aten.select.int)
def _select(emitter: Emitter, step: Step, base: fx.Node, contents: fx.Node) -> fx.Node:
    args = (base, contents, *emitter.read(step.args))
    return emitter.node(aten.select_scatter.default, args, emitter.read(step.kwargs), step.base)


@_inverse(aten.diagonal.default)
def _diagonal(emitter: Emitter, step: Step, base: fx.Node, contents: fx.Node) -> fx.Node:
    args = (base, contents, *emitter.read(step.args))
    return emitter.node(aten.diagonal_scatter.default, args, emitter.read(step.kwargs), step.base)


@_inverse(aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default)
@_inverse(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
def _reshape(emitter: Emitter, step: Step, base: fx.Node, contents: fx.Node) -> fx.Node:
    sizes = emitter.read(list(step.base.shape))
    return emitter.node(aten.reshape.default, (contents, sizes), {}, step.base)


@_inverse(aten.transpose.int, aten.t.default, aten.view_as_real.default)
@_inverse(aten.view_as_complex.default)
def _involution(emitter: Emitter, step: Step, base: fx.Node, contents: fx.Node) -> fx.Node:
    back = {
        aten.view_as_real.default: aten.view_as_complex.default,
        aten.view_as_complex.default: aten.view_as_real.default,
    }.get(step.target, step.target)
    return emitter.node(back, (contents, *emitter.read(step.args)), {}, step.base)


@_inverse(aten.permute.default)
def _permute(emitter: Emitter, step: Step, base: fx.Node, contents: fx.Node) -> fx.Node:
    rank = step.base.dim()
    dims = [d % rank for d in _argument(step, 0, "dims", None)]
    back = [dims.index(axis) for axis in range(rank)]
    return emitter.node(aten.permute.default, (contents, back), {}, step.base)


@_inverse(aten.unbind.int)
def _unbind(emitter: Emitter, step: Step, base: fx.Node, contents: fx.Node) -> fx.Node:
    dim = _argument(step, 0, "dim", 0)
    args = (base, contents, dim, step.output)
    return emitter.node(aten.select_scatter.default, args, {}, step.base)


@_inverse(aten.split.Tensor, aten.split_with_sizes.default)
def _split(emitter: Emitter, step: Step, base: fx.Node, contents: fx.Node) -> fx.Node:
    assert step.output is not None, "a split gives several views"
    dim = _argument(step, 1, "dim", 0)
    extents: list[Any] = [view.shape[dim] for view in step.siblings]
    start: Any = sum(extents[: step.output])
    stop: Any = start + extents[step.output]
    args = (base, contents, dim, *emitter.read((start, stop)))
    return emitter.node(aten.slice_scatter.default, args, {}, step.base)
