"""From a captured ATen graph to an IR func.

Each call goes to the importer function of its overload (`builder.IMPORTERS`, which the ``import_*``
modules fill). What it gives is held against the types that tracing found; a call without importer,
or whose importer declines, is kept whole as `aten.call`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import operator
from collections.abc import Sequence
from typing import Any, cast

import sympy
import torch
from torch import Tensor, fx

from fuseline import _torch
from fuseline.frontend.builder import IMPORTERS, Builder, Importer, UnsupportedError, tensor_type_of
from fuseline.frontend.captured import Captured, Input, InputKind
from fuseline.frontend.dims import UnknownSize, import_dim
from fuseline.frontend.import_complex import Pair, import_pair, is_complex
from fuseline.frontend.record import map_tree
from fuseline.ir.core import Func, Loc, Opaque, OpError, Origin, Ref, Value
from fuseline.ir.layout import Layout
from fuseline.ir.ops.buffer import Read, Write
from fuseline.ir.ops.call import AtenCall, reads_memory
from fuseline.ir.types import BufferType, DType, IntType, Range, TensorType, free_symbols
from fuseline.report import Site

for _family in ("create", "index", "matmul", "pointwise", "reduce", "view"):
    importlib.import_module(f"fuseline.frontend.import_{_family}")

__all__ = ["CannotImport", "DependsOnData", "import_captured", "import_dim"]

log = logging.getLogger(__name__)

_ORIGINS = {
    InputKind.PARAMETER: "param",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT: "const",
    InputKind.USER: "input",
    InputKind.SYMBOL: "input",
}


class CannotImport(Exception):
    """A program with something that the IR has no type for; the message says what and where."""


def import_captured(captured: Captured) -> Func:
    """The func of a captured program: its arguments are the flat inputs in order.

    Written inputs are buffers: read where the program starts, and written whole where it ends (a
    pass makes that an in-place write of what changed). The func returns what the graph computes
    for the caller.

    Raises:
        CannotImport: a value has an element type, or a size, that the IR does not have.

    """
    return _Import(captured).run()


class DependsOnData(CannotImport):
    """A program with sizes that only the data tells, for which nothing is compiled.

    Attributes:
        missed: the places that would have to be fused to be rid of them, with the reasons.
    """

    def __init__(self, reason: str, missed: Sequence[Site] = ()) -> None:
        super().__init__(reason)
        self.missed = tuple(missed)


class _Import:
    """One import."""

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.func = Func(captured.name)
        self.builder = Builder(self.func)
        self.values: dict[fx.Node, Any] = {}

    def run(self) -> Func:
        """Import inputs, calls and outputs."""
        for symbol in self.captured.symbols:
            self.func.symbols[symbol.name] = Range(symbol.low, symbol.high)
        try:
            for item in self.captured.inputs:
                self.values[item.placeholder] = self._input(item)
            for node in self.captured.graph.nodes:
                if node.op == "call_function":
                    self._node(node)
                elif node.op == "output":
                    self._output(cast("Sequence[fx.Node]", node.args[0]))
        except (UnsupportedError, UnknownSize) as error:
            raise CannotImport(f"{error} in {self.builder.loc}") from error
        return self.func

    def _input(self, item: Input) -> Value | None:
        origin = Origin(cast("Any", _ORIGINS[item.kind]), item.name)
        hint = _hint(item.name) or item.placeholder.name
        if item.kind is InputKind.SYMBOL:
            self.func.add_arg(IntType(import_dim(cast("int", item.value))), hint, origin)
            return None
        self.builder.loc = Loc(item.name)
        kind = tensor_type_of(cast("Tensor", item.value))
        if not item.written:
            argument = self.func.add_arg(kind, hint, origin)
            number = _literal(item)
            return argument if number is None else self.builder.full(number, kind.dtype, kind.shape)
        return self.builder.add(Read(self.func.add_arg(BufferType(kind), hint, origin))).y

    def _output(self, outputs: Sequence[fx.Node]) -> None:
        for index, node in zip(self.captured.writes, outputs, strict=False):
            self.builder.loc = node.meta.get("loc") or Loc()
            buffer = self.func.args[index]
            value = self.builder.cast(self.values[node], buffer.dtype)
            self.builder.add(Write(buffer, value))
        returned = [self.values[n] for n in outputs[len(self.captured.writes) :]]
        if any(isinstance(v, Pair) for v in returned):
            raise UnsupportedError("a complex tensor that is returned")
        self.func.set_returns(returned)

    # -- calls ------------------------------------------------------------------------------

    def _node(self, node: fx.Node) -> None:
        value = node.meta["val"]
        if value is None or isinstance(value, (int, sympy.Expr)):
            return  # arithmetic on sizes: dims say it
        self.builder.loc, self.builder.moves = node.meta["loc"], _moves(node)
        if node.target is operator.getitem:
            source, index = cast("tuple[fx.Node, int]", node.args)
            self.values[node] = self.values[source][index]
            return
        if is_complex(value) or any(is_complex(n.meta["val"]) for n in node.all_input_nodes):
            args, kwargs = self._resolve(node.args), self._resolve(node.kwargs)
            self.values[node] = import_pair(self.builder, str(node.target), value, args, kwargs)
            return
        fakes = cast("tuple[Any, ...]", value if isinstance(value, tuple) else (value,))
        types = tuple(tensor_type_of(f) for f in fakes if isinstance(f, Tensor))
        self._new_symbols(types)
        before = len(self.func)
        result = self._call(node, types)
        if len(self.func) > before and isinstance(result, Value):
            result.hint = node.name  # not where an earlier value serves
        self.values[node] = result if isinstance(value, tuple) else _only(result)

    def _new_symbols(self, types: Sequence[TensorType]) -> None:
        """Symbols that no input gives: only the data tells them."""
        for extent in (d for t in types for d in t.shape if not isinstance(d, int)):
            for name in free_symbols(extent):
                self.func.symbols.setdefault(name, Range())

    def _call(self, node: fx.Node, types: tuple[TensorType, ...]) -> Any:
        self.builder.expected = types
        name = str(node.target)
        importer = IMPORTERS.get(name)
        if importer is not None:
            args, kwargs = self._resolve(node.args), self._resolve(node.kwargs)
            done = len(self.func)
            result = NotImplemented
            if _takes(importer, args, kwargs):
                try:
                    result = importer(self.builder, *args, **kwargs)
                except OpError as error:
                    log.debug("%s kept whole: %s", name, error)
            if result is not NotImplemented and _fits(result, types):
                return result
            self._undo(done)
        return self._keep(node, name, types)

    def _undo(self, length: int) -> None:
        """Take back the ops that an importer added before it declined."""
        for op in reversed(self.func.ops[length:]):
            self.func.edit(erase=[op])

    def _resolve(self, arguments: Any) -> Any:
        """Arguments with values for tensors and dims for symbolic integers."""

        def leaf(value: Any) -> Any:
            if isinstance(value, fx.Node):
                found = self.values.get(value)
                return found if found is not None else import_dim(value.meta["val"])
            return value

        return map_tree(arguments, leaf)

    def _keep(self, node: fx.Node, name: str, types: tuple[TensorType, ...]) -> tuple[Value, ...]:
        operands: list[Value] = []

        def leaf(value: Any) -> Any:
            if isinstance(value, Value):
                if value not in operands:
                    operands.append(value)
                return Ref(operands.index(value))
            return _carried(value)

        if not _torch.is_overload(node.target):
            raise UnsupportedError(f"the call of {name}")
        args = map_tree(self._resolve(node.args), leaf)
        kwargs = {k: map_tree(self._resolve(v), leaf) for k, v in node.kwargs.items()}
        pairs = tuple(kwargs.items())
        contiguous = self._contiguous(node, operands) if reads_memory(name) else ()
        op = AtenCall(
            tuple(operands), target=name, args=args, kwargs=pairs, types=types,
            contiguous=contiguous,
        )  # fmt: skip
        return self.builder.add(op).ys

    def _contiguous(self, node: fx.Node, operands: Sequence[Value]) -> tuple[int, ...]:
        """Which operands the traced program has in row-major order: a value may lie otherwise, as
        no op stands for ``contiguous()``. What is written has to be the program's own tensor.
        """
        if cast("Any", node.target)._schema.is_mutable:
            return ()
        dense = {self.values.get(n) for n in node.all_input_nodes if _is_dense(n.meta["val"])}
        return tuple(i for i, value in enumerate(operands) if value in dense)


def _is_dense(value: object) -> bool:
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return False
    try:
        shape, strides = (tuple(map(import_dim, sizes)) for sizes in (value.shape, value.stride()))
    except UnknownSize:
        return False
    return Layout(0, strides).is_dense(shape)


def _moves(node: fx.Node) -> bool:
    """Whether a call's result lies on another device than one of its operands."""
    made, given = node.meta["val"], [n.meta["val"] for n in node.all_input_nodes]
    return isinstance(made, Tensor) and any(
        isinstance(value, Tensor) and value.device != made.device for value in given
    )


def _carried(value: Any) -> Any:
    """A torch constant as an attribute."""
    if isinstance(value, torch.dtype):
        try:
            return DType.from_torch(value)
        except KeyError:
            return Opaque("dtype", str(value).removeprefix("torch."))
    if isinstance(value, torch.device):
        return Opaque("device", str(value))
    if isinstance(value, (torch.layout, torch.memory_format)):
        kind = "layout" if isinstance(value, torch.layout) else "memory_format"
        return Opaque(kind, str(value).removeprefix("torch."))
    return value


def _takes(importer: Importer, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether an importer has a parameter for every argument of a call."""
    try:
        _signature(importer).bind(None, *args, **kwargs)
    except TypeError as error:
        log.debug("%s kept whole: %s", importer.__name__, error)
        return False
    return True


_signature = functools.cache(inspect.signature)


def _only(result: Any) -> Value:
    return cast("tuple[Value, ...]", result)[0] if isinstance(result, tuple) else result


def _fits(result: Any, types: tuple[TensorType, ...]) -> bool:
    """Whether an importer gave what tracing found: element types, ranks, and the extents known."""
    values = cast("tuple[Value, ...]", result if isinstance(result, tuple) else (result,))
    return len(values) == len(types) and all(
        v.dtype is t.dtype and len(v.shape) == t.rank and all(map(_agree, v.shape, t.shape))
        for v, t in zip(values, types, strict=True)
    )


def _agree(have: Any, want: Any) -> bool:
    return have == want or not (isinstance(have, int) and isinstance(want, int))


def _literal(item: Input) -> bool | int | float | None:
    """The one element of a tensor that the program spells as a literal, such as an index of -1."""
    actual = item.actual
    if item.kind is not InputKind.CONSTANT or actual is None or actual.numel() != 1:
        return None
    return actual.item()


def _hint(name: str) -> str:
    """A name as the text form takes it."""
    return "".join(c if c.isalnum() else "_" for c in name).strip("_")
