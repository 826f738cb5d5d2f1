"""Whole-graph capture by ``torch.export``, for programs that are compiled ahead of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fuseline import _torch
from fuseline.frontend.all_sizes import prove
from fuseline.frontend.captured import Captured, InputKind
from fuseline.frontend.convert import Source, convert
from fuseline.frontend.places import value_of
from fuseline.frontend.traceable import Traceable


@dataclass(frozen=True)
class Exported:
    """A captured program, and how a call's own arguments and results map to its flat ones.

    Attributes:
        captured: the program; its parameters, buffers and constants have their values.
        in_spec: the tree of ``(args, kwargs)``; its leaves are the user inputs in order, and the
            constants among them.
        constants: the leaves of a call that are no tensors, and no integers that vary, by number:
            None, a flag, a string. They are part of the program.
        out_spec: the tree of the returned value, whose leaves are ``captured.returns``.
    """

    captured: Captured
    in_spec: pytree.TreeSpec
    constants: Mapping[int, bool | int | float | str | None]
    out_spec: pytree.TreeSpec


def capture_export(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    name: str = "main",
) -> Exported:
    """Capture a module whole, for the given arguments, under ``torch.no_grad()``.

    Args:
        model: the module.
        args: example positional arguments.
        kwargs: example keyword arguments.
        dynamic_shapes: which dims may vary, as ``torch.export.export`` takes it.
        name: of the program.

    Raises:
        NotSimple: the exported graph has something that cannot be made functional here.
        Exception: whatever ``torch.export`` raises for a program that it cannot capture.

    """
    with torch.no_grad(), Traceable(model):
        program = _traced(model, args, kwargs, dynamic_shapes)
        constants = _constants(program)
        sources = _sources(program)
        captured = convert(
            program.graph_module,
            sources,
            name=name,
            road="export",
            ranges=program.range_constraints,
        )
    spec = program.call_spec
    return Exported(captured, spec.in_spec, constants, spec.out_spec)


def _traced(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any
) -> Any:
    """The exported program; what torch cannot prove of its sizes is proven here, or refused."""
    try:
        return _torch.export_graph(model, args, kwargs, dynamic_shapes)
    except Exception as error:
        if not _torch.is_unproven_size(error):
            raise
        refused = error
    try:
        program = _torch.export_graph(model, args, kwargs, dynamic_shapes, asking=True)
    except Exception:
        raise refused from None  # not for this reason alone
    if not prove(program.graph_module.graph, program.range_constraints):
        raise refused
    return program


_KINDS = {
    "PARAMETER": InputKind.PARAMETER,
    "BUFFER": InputKind.BUFFER,
    "CONSTANT_TENSOR": InputKind.CONSTANT,
    "USER_INPUT": InputKind.USER,
}


def _constants(program: Any) -> dict[int, bool | int | float | str | None]:
    """Take the inputs that are constants out of the graph, which has their values inside."""
    found: dict[int, bool | int | float | str | None] = {}
    leaf = 0
    for node, spec in _inputs(program):
        if _KINDS.get(spec.kind.name) is not InputKind.USER:
            continue
        value: Any = value_of(node)
        if not isinstance(value, Tensor | torch.SymInt) and not node.users:
            found[leaf] = value
            program.graph_module.graph.erase_node(node)
        leaf += 1
    return found


def _inputs(program: Any) -> list[tuple[fx.Node, Any]]:
    """Placeholders with what torch's export says of them, those that are still in the graph."""
    placeholders = {n.name: n for n in program.graph_module.graph.nodes if n.op == "placeholder"}
    specs = program.graph_signature.input_specs
    return [(placeholders[s.arg.name], s) for s in specs if s.arg.name in placeholders]


def _sources(program: Any) -> list[Source]:
    return [_source(program, node, spec) for node, spec in _inputs(program)]


def _source(program: Any, node: fx.Node, spec: Any) -> Source:
    kind = _KINDS.get(spec.kind.name)
    value = value_of(node)
    if kind is None:
        raise TypeError(f"the exported program takes {node.name}, a {spec.kind.name}")
    if kind is InputKind.USER:
        kind = InputKind.USER if isinstance(value, Tensor) else InputKind.SYMBOL
        return Source(node.name, kind, value)
    held = {**program.state_dict, **program.constants}
    return Source(str(spec.target), kind, value, cast("Tensor", held[spec.target]))
