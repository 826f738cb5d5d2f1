"""Capture from the graphs that Dynamo hands to a backend."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fuseline import _torch
from fuseline.frontend.captured import Captured, InputKind
from fuseline.frontend.convert import Source, convert
from fuseline.frontend.data_sizes import depends_on_data
from fuseline.frontend.places import tidy, value_of
from fuseline.frontend.record import NotSimple

log = logging.getLogger(__name__)


def capture_dynamo(
    module: fx.GraphModule,
    inputs: Sequence[object],
    *,
    name: str,
    known: Mapping[fx.Node, Any] | None = None,
) -> Captured:
    """The program of a graph from Dynamo; ``inputs`` are the values that it came with.

    ``known`` gives the values of nodes that are constants in truth (`fuseline.frontend.floats`).

    Raises:
        NotSimple: neither road can express the graph; it can still be run as it is.

    """
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    sources = [_source(n, v) for n, v in zip(placeholders, inputs, strict=True)]
    try:
        return convert(module, sources, name=name, known=known)
    except NotSimple as reason:
        if known or depends_on_data(module):
            raise
        log.debug("%s: tracing the graph again, because of %s", name, reason)
        return _through_aot(module, sources, inputs, name, reason)


def _source(placeholder: fx.Node, value: object) -> Source:
    where = _torch.source_name(placeholder)
    name = str(placeholder.meta.get("name") or tidy(where))
    fake = value_of(placeholder)
    if not isinstance(value, Tensor):
        return Source(name, InputKind.SYMBOL, fake)
    if isinstance(value, torch.nn.Parameter):
        kind = InputKind.PARAMETER
    elif "._buffers['" in where:
        kind = InputKind.BUFFER
    else:
        kind = InputKind.USER
    return Source(name, kind, fake, None if _torch.is_fake(value) else value)


def _through_aot(
    module: fx.GraphModule,
    sources: Sequence[Source],
    inputs: Sequence[object],
    name: str,
    reason: NotSimple,
) -> Captured:
    try:
        graph, written = _torch.functional_graph(module, inputs)
    except Exception as error:
        raise NotSimple(f"{reason}; and AOTAutograd: {type(error).__name__}: {error}") from error
    return convert_functional(graph, written, sources, name)


def convert_functional(
    graph: fx.GraphModule, written: Sequence[str], sources: Sequence[Source], name: str
) -> Captured:
    """The program of a graph that is functional already, whose first outputs are new contents."""
    _write_back(graph, written)
    placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    fakes = [value_of(n) for n in placeholders]
    fresh = [Source(s.name, s.kind, f, s.actual) for s, f in zip(sources, fakes, strict=True)]
    return convert(graph, fresh, name=name, road="aot")


def _write_back(graph: fx.GraphModule, written: Sequence[str]) -> None:
    """Turn the outputs that are new contents of inputs into copies into them."""
    output = next(n for n in graph.graph.nodes if n.op == "output")
    values: Any = output.args[0]
    named = {n.name: n for n in graph.graph.nodes if n.op == "placeholder"}
    with graph.graph.inserting_before(output):
        for name, contents in zip(written, values, strict=False):
            target = named[name]
            copy = graph.graph.call_function(torch.ops.aten.copy_.default, (target, contents))
            copy.meta.update(target.meta)
    output.args = (tuple(values[len(written) :]),)
