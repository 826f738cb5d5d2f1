"""Turns a traced graph, of torch calls or of ATen calls with in-place writes, into a `Captured`.

This takes the place of a second trace through AOTAutograd: each node is replaced by the recording
of its call (`fuseline.frontend.record`), emitted functionally (`fuseline.frontend.functionalize`).
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any, cast

import sympy
import torch
from torch import Tensor, fx

from fuseline import _torch
from fuseline.frontend.captured import (
    Captured,
    FromGraph,
    FromInput,
    FromNothing,
    FromSymbols,
    Input,
    InputKind,
    Result,
    Return,
    Symbol,
)
from fuseline.frontend.data_sizes import range_in, sizes_in, unproven, with_sizes
from fuseline.frontend.dims import UnknownSize, import_dim
from fuseline.frontend.functionalize import Emitter, Handle, literals_of
from fuseline.frontend.places import place_of, value_of
from fuseline.frontend.record import NotSimple, Recorder, map_tree
from fuseline.frontend.symbols import SymbolNodes
from fuseline.ir.types import Range

_lib: Any = torch

_ATTENTION: set[object] = {
    _lib._C._nn.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default,
}

_IGNORED: set[object] = {
    _lib._C._log_api_usage_once,
    torch.ops.aten._assert_tensor_metadata.default,
}
"""Calls that compute nothing and check what tracing has already established."""


@dataclasses.dataclass(frozen=True)
class Source:
    """An input of the graph to convert: what `Input` says of it, less the new placeholder."""

    name: str
    kind: InputKind
    value: Any
    actual: Tensor | None = None


def convert(
    module: fx.GraphModule,
    sources: Sequence[Source],
    *,
    name: str = "main",
    road: str = "dynamo",
    known: Mapping[fx.Node, Any] | None = None,
    ranges: Mapping[Any, Any] | None = None,
) -> Captured:
    """The functional program of a traced graph, whose placeholders are ``sources`` in order.

    The inputs keep that order, but for constants, which go last.

    ``known`` gives nodes that are not traced but have a value: floats that are constants in truth.
    ``ranges`` are the symbols' where the tracer states them; else the shape environment's count.

    Raises:
        NotSimple: the graph has something that this road does not express.

    """
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in _ATTENTION:
            _hold_lengths_equal(node)
        if node.op == "call_function" and _torch.is_functorch(node.target):
            raise NotSimple("a transform of torch.func, such as vmap")  # its calls come in pairs
    try:
        return _Converter(module, sources, known or {}, ranges or {}).run(name, road)
    except UnknownSize as error:
        raise NotSimple(str(error)) from error


def _hold_lengths_equal(attention: fx.Node) -> None:
    """Have the tracer hold that there are as many keys as values, and guard it.

    In a cache that grows each has a symbol of its own for its length, and nothing but attention
    says that they are equal.
    """
    given = (*attention.args[1:3], *(attention.kwargs.get(name) for name in ("key", "value")))
    fakes = [value_of(node) for node in given if isinstance(node, fx.Node)]
    lengths = [fake.shape[-2] for fake in fakes if isinstance(fake, Tensor) and fake.ndim > 1]
    if len(lengths) == 2 and not lengths[0] == lengths[1]:
        raise NotSimple(f"attention over {lengths[0]} keys and {lengths[1]} values")


class _Converter:
    """One conversion."""

    def __init__(
        self,
        module: fx.GraphModule,
        sources: Sequence[Source],
        known: Mapping[fx.Node, Any],
        ranges: Mapping[Any, Any],
    ) -> None:
        self.ranges = ranges
        self.module = module
        self.sources = list(sources)
        self.graph = fx.Graph()
        self.symbols = SymbolNodes(self.graph)
        self.emitter = Emitter(self.graph, self.symbols)
        made = [value_of(node) for node in module.graph.nodes]  # a graph may be given no tensor
        self.fake_mode = _torch.fake_mode_of([*(s.value for s in sources), *made])
        self.recorder = Recorder(self.fake_mode)
        self.values: dict[fx.Node, Any] = dict(known)
        self.known = set(known)
        self.unknown: dict[Any, Range] = {}  # sizes that only the data tells
        self.checks: list[Any] = []
        self.arguments: list[Handle | None] = []
        self.placeholders: list[fx.Node] = []
        self.complex: list[fx.Node] = []  # inputs that come as their real views
        self.pairs: list[int] = []  # the numbers of those that a call brings

    def run(self, name: str, road: str) -> Captured:
        """Convert node by node."""
        nodes = list(self.module.graph.nodes)
        placeholders = [n for n in nodes if n.op == "placeholder"]
        pairs = list(zip(placeholders, self.sources, strict=True))
        pairs.sort(key=lambda pair: pair[1].kind is InputKind.CONSTANT)  # constants go last
        self.sources = [source for _, source in pairs]
        for node, source in pairs:
            self._input(node, source)
        for node in self.complex:
            self._view_as_complex(node)
        self._constants(nodes)
        self._symbol_sources()
        for node in nodes:
            if node in self.known:
                continue
            if node.op in ("call_function", "call_method"):
                self._call(node)
            elif node.op == "call_module":
                raise NotSimple(f"the call of the module {node.target}")
        return self._finish(next(n for n in nodes if n.op == "output"), name, road)

    # -- inputs -----------------------------------------------------------------------------

    def _input(self, node: fx.Node, source: Source) -> None:
        value = source.value
        if isinstance(value, Tensor) and value.is_neg():
            raise NotSimple(f"{source.name}, which is stored negated")
        if isinstance(value, Tensor) and value.is_complex():
            self.complex.append(node)
            value = self._as_pairs(source).value
        if isinstance(value, Tensor):
            placeholder = self.emitter.placeholder(node.name, value)
            self.values[node] = self._new_argument(placeholder, value)
            return
        # Dims are never negative. The comparison makes it a guard: Dynamo comes again for one.
        if isinstance(value, torch.SymInt) and not value >= 0:
            raise NotSimple(f"{source.name}, a negative integer")
        expr = _torch.scalar_expression(value)
        placeholder = self.emitter.placeholder(node.name, expr)
        self._add_placeholder(placeholder, None)
        self.values[node] = value
        if isinstance(expr, sympy.Symbol):
            self.symbols.define(expr, placeholder)

    def _as_pairs(self, source: Source) -> Source:
        """A complex input as its real view: compiled code has no complex element types."""
        if source.value.is_conj():
            raise NotSimple(f"{source.name}, whose imaginary parts are stored negated")
        index = len(self.placeholders)
        with self.fake_mode:
            fake = torch.view_as_real(source.value)
        actual = None if source.actual is None else torch.view_as_real(source.actual)
        self.sources[index] = dataclasses.replace(source, value=fake, actual=actual)
        if source.kind is not InputKind.CONSTANT:
            self.pairs.append(index)
        return self.sources[index]

    def _view_as_complex(self, node: fx.Node) -> None:
        """What the program sees of an input that comes as its real view."""
        base = self.values[node]
        recording = self.recorder.record(torch.view_as_complex, (base.fake,), {}, [base.fake])
        self.values[node] = self.emitter.replay(recording, [base])

    def _new_argument(self, placeholder: fx.Node, fake: Tensor) -> Handle:
        handle = Handle(placeholder, fake)
        self._add_placeholder(placeholder, handle)
        return handle

    def _add_placeholder(self, placeholder: fx.Node, handle: Handle | None) -> None:
        self.placeholders.append(placeholder)
        self.arguments.append(handle)

    def _constants(self, nodes: Sequence[fx.Node]) -> None:
        for node in nodes:
            if node.op == "get_attr":
                value = _attribute(self.module, str(node.target))
                if not isinstance(value, Tensor):
                    raise NotSimple(f"the attribute {node.target}, a {type(value).__name__}")
                self.values[node] = self._constant(value, value_of(node), str(node.target))

    def _constant(self, value: Tensor, fake: Any, name: str) -> Handle:
        if not isinstance(fake, Tensor):
            fake = value if self.fake_mode is None else self.fake_mode.from_tensor(value)
        place = self.placeholders[-1] if self.placeholders else None
        with self.graph.inserting_after(place):
            placeholder = self.emitter.placeholder(name.replace(".", "_"), fake)
        self.sources.append(Source(name, InputKind.CONSTANT, fake, value))
        return self._new_argument(placeholder, fake)

    def _symbol_sources(self) -> None:
        for handle in self.arguments:
            if handle is not None:
                for axis, size in enumerate(handle.fake.shape):
                    expr = _torch.expression(size)
                    if isinstance(expr, sympy.Symbol):
                        self.symbols.source(handle.node, axis, expr)

    # -- calls ------------------------------------------------------------------------------

    def _call(self, node: fx.Node) -> None:
        if node.target in _IGNORED or _is_idle(node):
            self.values[node] = None
            return
        if node.target is torch.ops.aten._assert_scalar.default:
            self._check(node)
            return
        value = value_of(node)
        if not _holds_tensor(value):
            self._number(node, value)
            return
        self.emitter.loc = place_of(node)
        if node.target is operator.getitem:
            source, index = cast("tuple[fx.Node, Any]", node.args)
            if not isinstance(value_of(source), Tensor):
                self.values[node] = self.values[source][index]
                return
        self._replay(node)

    def _number(self, node: fx.Node, value: Any) -> None:
        """A call that gives no tensor: arithmetic on sizes, whose result the tracer knows."""
        if value is None and not isinstance(node.target, str):
            schema = getattr(node.target, "_schema", None)
            if node.target is not operator.setitem and schema is None:
                raise NotSimple(f"the call of {node.target}")
        if value is None:
            self.emitter.loc = place_of(node)
            self._replay(node)
            return
        if isinstance(value, torch.SymFloat):
            self.values[node] = self._evaluate(node)
            return
        expr = _torch.scalar_expression(value)
        if _torch.is_unbacked(expr) and not self.symbols.knows(expr):
            raise NotSimple(f"{node.name}, whose value depends on data")
        self.values[node] = value

    def _check(self, node: fx.Node) -> None:
        """What tracing holds of sizes that only the data tells."""
        held = map_tree(node.args[0], lambda a: self.values[a] if _is_node(a) else a)
        self.checks.append(_torch.scalar_expression(held))
        self.values[node] = None

    def _check_checks(self) -> None:
        """Nothing may be held of sizes but what the ops say that make them.

        Programs with such sizes are not run (`fuseline.passes.known_sizes`): whoever takes them
        out shows which of them are equal.
        """
        held = unproven(self.checks, self.unknown)
        if held is not None:
            raise NotSimple(f"a check of {held}, which depends on data")

    def _evaluate(self, node: fx.Node) -> float:
        """Arithmetic on floats that are known."""
        args = map_tree(node.args, lambda a: self.values[a] if _is_node(a) else a)
        if isinstance(node.target, str) or not all(isinstance(a, (int, float)) for a in args):
            raise NotSimple(f"{node.name}, a float that depends on sizes or data")
        return cast("Any", node.target)(*args)

    def _replay(self, node: fx.Node) -> None:
        slots: dict[int, tuple[Handle, Tensor]] = {}

        def leaf(arg: Any) -> Any:
            return self._fakes(self.values[arg], value_of(arg), slots) if _is_node(arg) else arg

        args, kwargs = map_tree(node.args, leaf), map_tree(node.kwargs, leaf)
        pairs = list(slots.values())
        recording = self.recorder.record(
            node.target,  # type: ignore[arg-type]
            args,
            kwargs,
            [fake for _, fake in pairs],
        )
        for literal in literals_of(recording):
            if id(literal) not in self.emitter.literals:
                number = len(self.emitter.literals)
                handle = self._constant(literal, None, f"literal_{number}")
                self.emitter.literals[id(literal)] = handle
        sizes = sizes_in(recording, value_of(node))
        recording = with_sizes(recording, sizes)
        if new := [s for s in sizes.values() if s not in self.unknown]:
            found = range_in(recording, [fake for _, fake in pairs])
            self.unknown |= dict.fromkeys(new, found)
        made = self.emitter.replay(recording, [handle for handle, _ in pairs])
        self.values[node] = made
        self._sizes_of_data(made)

    def _sizes_of_data(self, made: Any) -> None:
        """Note where a size that only the data tells can be read."""

        def leaf(value: Any) -> Any:
            if isinstance(value, Handle):
                for axis, size in enumerate(value.fake.shape):
                    expr = _torch.expression(size)
                    if isinstance(expr, sympy.Symbol) and _torch.is_unbacked(expr):
                        self.symbols.source(value.node, axis, expr)
            return value

        map_tree(made, leaf)

    def _fakes(self, value: Any, fake: Any, slots: dict[int, tuple[Handle, Tensor]]) -> Any:
        """The fake tensors that stand for a node's value in a recording, noted in ``slots``."""
        if isinstance(value, Handle):
            known = slots.setdefault(id(value), (value, self._distinct(value, fake, slots)))
            return known[1]
        if isinstance(value, (tuple, list)):
            pairs = zip(cast("Sequence[Any]", value), fake, strict=True)
            parts = [self._fakes(v, f, slots) for v, f in pairs]
            return parts if isinstance(value, list) else tuple(parts)
        return value

    def _distinct(self, handle: Handle, fake: Any, slots: dict[int, tuple[Handle, Tensor]]) -> Any:
        fake = fake if isinstance(fake, Tensor) else handle.fake
        if all(other is not fake for _, other in slots.values()):
            return fake
        with self.fake_mode:
            return torch.empty_strided(
                fake.shape, fake.stride(), dtype=fake.dtype, device=fake.device
            )

    # -- outputs ----------------------------------------------------------------------------

    def _finish(self, output: fx.Node, name: str, road: str) -> Captured:
        written = [
            i
            for i, (handle, placeholder) in enumerate(
                zip(self.arguments, self.placeholders, strict=True)
            )
            if handle is not None and handle.node is not placeholder
        ]
        self._check_alone(written)
        self._check_checks()
        results: list[Handle] = []
        returns = tuple(self._return(v, results) for v in _flat(output.args[0], self.values))
        contents = [cast("Handle", self.arguments[i]).node for i in written]
        computed = [self.emitter.current(value) for value in results]
        self.graph.output((*contents, *computed))
        inputs = tuple(
            Input(s.name, s.kind, p, s.value, s.actual, i in written)
            for i, (s, p) in enumerate(zip(self.sources, self.placeholders, strict=True))
        )
        self._sweep()
        symbols = self._symbols()
        forms = _forms(results)
        pairs = tuple(self.pairs)
        return Captured(
            self.graph, inputs, tuple(written), returns, symbols, forms, pairs, name, road
        )

    def _check_alone(self, written: Sequence[int]) -> None:
        """A written input must share no memory with another; the functional form cannot say so."""
        owners: dict[int, list[int]] = {}
        for index, source in enumerate(self.sources):
            if written and source.actual is not None:
                owners.setdefault(_torch.storage_of(source.actual), []).append(index)
        for sharing in owners.values():
            if len(sharing) > 1 and any(index in written for index in sharing):
                names = " and ".join(self.sources[index].name for index in sharing)
                raise NotSimple(f"a written input shares memory with another: {names}")

    def _return(self, value: Any, results: list[Handle]) -> Return:
        if isinstance(value, Handle):
            root = value.root
            index = next((i for i, h in enumerate(self.arguments) if h is root), None)
            if index is None:
                results.append(value)
                return FromGraph(len(results) - 1)
            start, base = (cast("int", h.fake.storage_offset()) for h in (value, root))
            if index in self.pairs and value.fake.is_complex():
                base = base // 2  # the caller's own tensor counts in complex elements
            elif index in self.pairs or value.fake.dtype is not root.fake.dtype:
                raise NotSimple(f"a returned view of {self.sources[index].name} as other elements")
            return FromInput(
                index,
                tuple(import_dim(s) for s in value.fake.shape),
                tuple(import_dim(s) for s in value.fake.stride()),
                import_dim(start - base),
            )
        expr = _torch.scalar_expression(value)
        if isinstance(expr, sympy.Expr):
            if not isinstance(value, torch.SymInt):
                raise NotSimple(f"the returned number {value}")
            return FromSymbols(import_dim(expr))
        if value is not None and not isinstance(value, (bool, int, float, str)):
            raise NotSimple(f"the returned {type(value).__name__}")
        return FromNothing(value)

    def _sweep(self) -> None:
        """Remove nodes that nothing reads; random ones too, as every compiler of torch does."""
        for node in reversed(list(self.graph.nodes)):
            if node.op == "call_function" and not node.users:
                self.graph.erase_node(node)

    def _symbols(self) -> tuple[Symbol, ...]:
        env = _torch.shape_env_of(self.fake_mode)
        found: dict[str, Symbol] = {}
        for index, source in enumerate(self.sources):
            value = source.value
            exprs: list[tuple[int | None, Any]] = (
                [(a, _torch.expression(s)) for a, s in enumerate(value.shape)]
                if isinstance(value, Tensor)
                else [(None, _torch.scalar_expression(value))]
            )
            for axis, expr in exprs:
                if isinstance(expr, sympy.Symbol) and str(expr) not in found:
                    low, high = _torch.symbol_range(env, expr, self.ranges.get(expr))
                    if low is None or low < 0:
                        raise NotSimple(f"the size {expr}, which may be negative")
                    found[str(expr)] = Symbol(str(expr), low, high, (index, axis))
        return tuple(found.values())


def _forms(results: Sequence[Handle]) -> tuple[Result, ...]:
    """The memory that each computed result has in eager: its owner by number, and its strides."""
    owners: dict[Handle, int] = {}
    return tuple(
        Result(
            owners.setdefault(value.root, len(owners)),
            tuple(import_dim(s) for s in value.fake.stride()),
        )
        for value in results
    )


def _is_node(value: object) -> bool:
    return isinstance(value, fx.Node)


def _is_idle(node: fx.Node) -> bool:
    """Whether a node only sets a mode that is in force already, or leaves one."""
    target = node.target
    if target is _lib._C._set_grad_enabled:
        if node.args[0]:
            raise NotSimple("gradients switched on inside the program")
        return True
    name = getattr(target, "__name__", "")
    if name == "_enter_inference_mode":  # gradients are off: normal tensors serve as well
        if not node.args[0]:
            raise NotSimple("inference mode left inside the program")
        return True
    if name == "_enter_autocast":
        if len(node.args) > 2 and node.args[2]:
            raise NotSimple("autocast inside the program")
        return True
    return name in ("_exit_autocast", "_exit_inference_mode")


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_holds_tensor(v) for v in cast("Sequence[Any]", value))
    return isinstance(value, Tensor)


def _flat(value: Any, values: dict[fx.Node, Any]) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [leaf for v in cast("Sequence[Any]", value) for leaf in _flat(v, values)]
    if isinstance(value, fx.Node):
        return _flat(values[value], values)
    return [value]


def _attribute(module: torch.nn.Module, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found
