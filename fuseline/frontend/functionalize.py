"""Emits ATen calls as a functional graph: writes become new values, and views follow their base.

The idea is that of torch's functionalisation pass, on the graph and not on tensors: a value knows
the base it is a view of and the view calls that lead to it. A write to a view is carried back to
the base call by call (`fuseline.frontend.unview`), and a view that was made before a write is made
again when it is next read.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx

from fuseline import _torch
from fuseline._torch import Overload
from fuseline.frontend.record import (
    Call,
    Literal,
    NotSimple,
    Recording,
    Ref,
    Result,
    Slot,
    map_tree,
)
from fuseline.frontend.symbols import SymbolNodes
from fuseline.frontend.unview import unview
from fuseline.ir.core import Loc

aten = torch.ops.aten

_IDENTITY = {aten.alias.default, aten.detach.default, aten.lift_fresh.default, aten.detach_.default}


@dataclass(frozen=True, eq=False)
class Step:
    """One view call on the way from a base to a view: an output of ``target(base, ...)``."""

    target: Overload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: int | None
    base: Tensor
    siblings: tuple[Tensor, ...]


@dataclass(eq=False)
class Handle:
    """A tensor of the program: the node with its present contents, and the base it is a view of."""

    node: fx.Node
    fake: Tensor
    base: Handle | None = None
    steps: tuple[Step, ...] = ()
    version: int = 0

    @property
    def root(self) -> Handle:
        """The tensor that owns the memory."""
        return self if self.base is None else self.base


@dataclass
class Emitter:
    """Builds the functional graph."""

    graph: fx.Graph
    symbols: SymbolNodes
    literals: dict[int, Handle] = field(default_factory=dict[int, "Handle"])
    loc: Loc = field(default_factory=Loc)

    def placeholder(self, name: str, value: Any) -> fx.Node:
        """A new input of the graph."""
        node = self.graph.placeholder(name)
        node.meta["val"] = value
        return node

    def node(self, target: Any, args: Any, kwargs: Mapping[str, Any], value: Any) -> fx.Node:
        """A new call in the graph, at the present place in the user's source."""
        made = self.graph.call_function(target, args, dict(kwargs))
        made.meta["val"] = value
        made.meta["loc"] = self.loc
        return made

    # -- replaying recordings ---------------------------------------------------------------

    def replay(self, recording: Recording, slots: Sequence[Handle]) -> Any:
        """Emit a recording on actual tensors; its value with `Handle` in place of `Ref`."""
        results: list[tuple[Handle | None, ...]] = []

        def resolve(ref: Any) -> Any:
            match ref:
                case Slot(index):
                    return slots[index]
                case Result(call, output):
                    return results[call][output]
                case Literal(value):
                    return self._literal(value)
                case _:
                    return ref

        for call in recording.calls:
            done = self._apply(call, resolve)
            results.append(done)
        return map_tree(recording.value, resolve)

    def _literal(self, value: Tensor) -> Handle:
        known = self.literals.get(id(value))
        if known is None:
            raise NotSimple("a literal tensor that was not announced")
        return known

    def _apply(self, call: Call, resolve: Any) -> tuple[Handle | None, ...]:
        schema = _torch.schema_of(call.target)
        args, kwargs = map_tree(call.args, resolve), map_tree(call.kwargs, resolve)
        if call.target in _IDENTITY:
            return (args[0],)
        if schema.written:
            return self._write(call, args, kwargs)
        node = self.node(call.target, self.read(args), self.read(kwargs), _value(call))
        source = next((v for v in schema.views if v is not None), None)
        if source is None:
            return self._fresh(call, node)
        if source != schema.names[0]:
            raise NotSimple(f"{call.target} gives a view of its argument {source}")
        return self._views(call, node, args, kwargs)

    def _fresh(self, call: Call, node: fx.Node) -> tuple[Handle | None, ...]:
        if not isinstance(node.meta["val"], tuple):
            return (Handle(node, call.outputs[0]),)
        return tuple(
            None if fake is None else Handle(self._item(node, i, fake), fake)
            for i, fake in enumerate(call.outputs)
        )

    def _item(self, node: fx.Node, index: int, fake: Tensor) -> fx.Node:
        return self.node(operator.getitem, (node, index), {}, fake)

    def _views(
        self, call: Call, node: fx.Node, args: Any, kwargs: Mapping[str, Any]
    ) -> tuple[Handle | None, ...]:
        base: Handle = args[0]
        several = isinstance(node.meta["val"], tuple)
        made: list[Handle] = []
        for index, fake in enumerate(call.outputs):
            step = Step(
                call.target,
                args[1:],
                kwargs,
                index if several else None,
                base.fake,
                cast("tuple[Tensor, ...]", call.outputs),
            )
            item = self._item(node, index, fake) if several else node
            made.append(Handle(item, fake, base.root, (*base.steps, step), base.root.version))
        return tuple(made)

    # -- reading and writing ----------------------------------------------------------------

    def read(self, value: Any) -> Any:
        """Arguments as the graph takes them: the present node of a tensor, nodes for SymInts."""
        return map_tree(value, self._read_leaf)

    def _read_leaf(self, value: Any) -> Any:
        if isinstance(value, Handle):
            return self.current(value)
        if isinstance(value, torch.SymInt):
            return self.symbols.node(_torch.expression(value))
        if isinstance(value, (torch.SymFloat, torch.SymBool)):
            raise NotSimple(f"the symbolic number {value}")
        return value

    def current(self, handle: Handle) -> fx.Node:
        """The node that holds a tensor's contents now; a view of a base written since is remade."""
        root = handle.root
        if handle.version != root.version and handle is not root:
            node = root.node
            for step in handle.steps:
                node = self._walk(step, node)
            handle.node, handle.version = node, root.version
        return handle.node

    def _walk(self, step: Step, base: fx.Node) -> fx.Node:
        args = (base, *self.read(step.args))
        if step.output is None:
            return self.node(step.target, args, self.read(step.kwargs), step.siblings[0])
        several = self.node(step.target, args, self.read(step.kwargs), step.siblings)
        return self._item(several, step.output, step.siblings[step.output])

    def _write(self, call: Call, args: Any, kwargs: Any) -> tuple[Handle | None, ...]:
        target: Handle = args[0]
        if call.target is aten.copy_.default:
            contents = self._fitted(self.current(args[1]), args[1].fake, target.fake)
        else:
            assert call.contents is not None, "a write is recorded with what it writes"
            node = self.node(call.functional, self.read(args), self.read(kwargs), call.contents)
            contents = self._fitted(node, call.contents, target.fake)
        self.assign(target, contents)
        return (target,)

    def _fitted(self, node: fx.Node, have: Tensor, want: Tensor) -> fx.Node:
        """Cast and broadcast new contents to the type that the written tensor keeps."""
        fitted = have
        if have.dtype != want.dtype:
            fitted = have.to(want.dtype) if not _torch.is_fake(have) else _retyped(have, want.dtype)
            node = self.node(aten._to_copy.default, (node,), {"dtype": want.dtype}, fitted)
        sizes = [_torch.expression(s) for s in want.shape]
        if [_torch.expression(s) for s in fitted.shape] != sizes:
            node = self.node(aten.expand.default, (node, self.read(list(want.shape))), {}, want)
        return node

    def assign(self, handle: Handle, contents: fx.Node) -> None:
        """Give a tensor new contents; its base and all other views see them."""
        root = handle.root
        if handle is root:
            root.node = contents
        else:
            bases = [root.node]
            for step in handle.steps[:-1]:
                bases.append(self._walk(step, bases[-1]))
            carried = contents
            for step, base in zip(reversed(handle.steps), reversed(bases), strict=True):
                carried = unview(self, step, base, carried)
            root.node = carried
            handle.node = contents
        root.version += 1
        handle.version = root.version


def _retyped(fake: Tensor, dtype: torch.dtype) -> Tensor:
    mode = cast("Any", fake).fake_mode
    with mode:
        return fake.to(dtype)


def _value(call: Call) -> Any:
    """The value of a call's node: one tensor, or a tuple where the op gives a list or several."""
    returns = call.target._schema.returns
    if len(returns) == 1 and not str(returns[0].type).startswith("List"):
        return call.outputs[0]
    return tuple(call.outputs)


def literals_of(recording: Recording) -> list[Tensor]:
    """The tensors that a recording brings along."""
    found: dict[int, Tensor] = {}

    def leaf(ref: Ref) -> Ref:
        if isinstance(ref, Literal):
            found[id(ref.value)] = ref.value
        return ref

    for call in recording.calls:
        map_tree((call.args, tuple(call.kwargs.values())), leaf)
    map_tree(recording.value, leaf)
    return list(found.values())
