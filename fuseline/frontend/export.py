"""Whole-graph capture by ``torch.export``, for programs that are compiled ahead of time; and what
was captured so before.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fuseline import _torch
from fuseline.frontend.all_sizes import prove
from fuseline.frontend.captured import Captured, InputKind
from fuseline.frontend.convert import Source, convert
from fuseline.frontend.places import value_of
from fuseline.frontend.record import NotSimple
from fuseline.frontend.size_names import given_names, size_names
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
        names: the user's name of each symbol that has one.
    """

    captured: Captured
    in_spec: pytree.TreeSpec
    constants: Mapping[int, bool | int | float | str | None]
    out_spec: pytree.TreeSpec
    names: Mapping[str, str] = field(default_factory=dict[str, str])


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
        return _exported(program, name, given_names(model, args, kwargs or {}, dynamic_shapes))


def capture_program(program: torch.export.ExportedProgram, *, name: str = "main") -> Exported:
    """What ``torch.export`` has captured, with the dims that vary as it has them.

    The program stays as it is. Its graph may be functional (after ``run_decompositions``) or not.

    Args:
        program: what ``torch.export.export`` or ``torch.export.load`` gave.
        name: of the program.

    Raises:
        NotSimple: the graph has something that cannot be made functional here.
        TypeError: the program takes what no artifact holds, such as an object of a class.

    """
    with torch.no_grad():
        return _exported(program, name)


def _exported(program: Any, name: str, named: Sequence[Mapping[int, str]] = ()) -> Exported:
    graph = copy.deepcopy(program.graph)  # of nodes alone: tensors are not copied
    for node, theirs in zip(graph.nodes, program.graph.nodes, strict=True):
        node.name = theirs.name  # a copy calls what is named as a builtin otherwise
    _write_in_place(program, graph)
    inputs = _inputs(program, graph)
    constants = _constants(inputs, graph)
    left = {node for node in graph.nodes if node.op == "placeholder"}
    sources = [_source(program, node, spec) for node, spec in inputs if node in left]
    captured = convert(
        fx.GraphModule(program.graph_module, graph),
        sources,
        name=name,
        road="export",
        ranges=program.range_constraints,
    )
    spec = program.call_spec
    user = [i.value for i in captured.inputs if i.kind in (InputKind.USER, InputKind.SYMBOL)]
    varying = [names for leaf, names in enumerate(named) if leaf not in constants]
    names = size_names(captured.symbols, user, varying)
    return Exported(captured, spec.in_spec, constants, spec.out_spec, names)


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
    if not prove(program):
        raise refused
    return program


_KINDS = {
    "PARAMETER": InputKind.PARAMETER,
    "BUFFER": InputKind.BUFFER,
    "CONSTANT_TENSOR": InputKind.CONSTANT,
    "USER_INPUT": InputKind.USER,
}


def _inputs(program: Any, graph: fx.Graph) -> list[tuple[fx.Node, Any]]:
    """Placeholders with what torch's export says of them."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    return list(zip(placeholders, program.graph_signature.input_specs, strict=True))


def _constants(
    inputs: Sequence[tuple[fx.Node, Any]], graph: fx.Graph
) -> dict[int, bool | int | float | str | None]:
    """Take the inputs that are constants out of the graph, which has their values inside."""
    found: dict[int, bool | int | float | str | None] = {}
    leaf = 0
    for node, spec in inputs:
        if _KINDS.get(spec.kind.name) is not InputKind.USER:
            continue
        value: Any = value_of(node)
        if not isinstance(value, Tensor | torch.SymInt) and not node.users:
            found[leaf] = value
            graph.erase_node(node)
        leaf += 1
    return found


def _write_in_place(program: Any, graph: fx.Graph) -> None:
    """Have a functional graph write the inputs whose new contents are among its outputs.

    Raises:
        NotSimple: it has an output of another kind, such as the gradients of a training step.

    """
    specs = program.graph_signature.output_specs
    output = next(node for node in graph.nodes if node.op == "output")
    values = list(output.args[0])
    places = {spec.target: node for node, spec in _inputs(program, graph) if spec.target}
    places |= {node.name: node for node in graph.nodes if node.op == "placeholder"}
    kept: list[Any] = []
    for value, spec in zip(values, specs, strict=True):
        kind = spec.kind.name
        if kind == "USER_OUTPUT":
            kept.append(value)
        elif kind in ("BUFFER_MUTATION", "PARAMETER_MUTATION", "USER_INPUT_MUTATION"):
            place = places[spec.target]
            with graph.inserting_before(output):
                written = graph.call_function(torch.ops.aten.copy_.default, (place, value))
            written.meta = {**value.meta, "val": place.meta["val"]}
        else:
            raise NotSimple(f"an output that is a {kind}")
    output.args = (tuple(kept),)


def _source(program: Any, node: fx.Node, spec: Any) -> Source:
    kind = _KINDS.get(spec.kind.name)
    value = value_of(node)
    if kind is None:
        raise TypeError(f"the exported program takes {node.name}, a {spec.kind.name}")
    if isinstance(value, Tensor) and value.layout is not torch.strided:
        raise TypeError(
            f"the exported program takes {node.name}, whose layout is {value.layout}: only strided "
            "tensors can be taken"
        )
    if kind is InputKind.USER:
        kind = InputKind.USER if isinstance(value, Tensor) else InputKind.SYMBOL
        return Source(node.name, kind, value)
    held = {**program.state_dict, **program.constants}
    return Source(str(spec.target), kind, value, cast("Tensor", held[spec.target]))
