"""What capture gives: a functional ATen graph and what its inputs and outputs are."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from fuseline import _torch
from fuseline.ir.types import Dim

Argument: TypeAlias = "Tensor | int"


class InputKind(enum.Enum):
    """What an input of a captured graph is."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    CONSTANT = "constant"
    """A tensor that tracing found as a literal; its value is at hand and never changes."""
    USER = "user"
    SYMBOL = "symbol"
    """A run-time integer."""


@dataclass(frozen=True)
class Input:
    """One flat input.

    Attributes:
        name: the module path of a parameter or buffer, else where the caller keeps it.
        kind: what it is.
        placeholder: its node in the graph.
        value: the fake tensor of a tensor input (dtype, symbolic sizes and strides), or the SymInt.
        actual: the tensor itself where it is known at capture: parameters, buffers and constants.
        written: whether the graph gives it new contents.
    """

    name: str
    kind: InputKind
    placeholder: fx.Node
    value: Tensor | torch.SymInt | int
    actual: Tensor | None = None
    written: bool = False


@dataclass(frozen=True)
class FromGraph:
    """A returned value that the graph computes: its place among the graph's results."""

    index: int


@dataclass(frozen=True)
class FromInput:
    """A returned value that is an input, or a view of one, after its new contents are in place.

    ``offset`` counts from the input's own first element: the next call's may lie elsewhere in its
    storage.
    """

    index: int
    size: tuple[Dim, ...]
    stride: tuple[Dim, ...]
    offset: Dim


@dataclass(frozen=True)
class FromSymbols:
    """A returned integer, computed from the symbols."""

    value: Dim


@dataclass(frozen=True)
class FromNothing:
    """A returned value that is a plain constant, such as None."""

    value: bool | int | float | str | None


@dataclass(frozen=True)
class Result:
    """What a caller may expect of the memory of a value that the graph computes.

    Attributes:
        group: results of one group may share memory, those of different groups may not.
        strides: as eager has them, in elements.
    """

    group: int
    strides: tuple[Dim, ...]


Return: TypeAlias = "FromGraph | FromInput | FromSymbols | FromNothing"


@dataclass(frozen=True)
class Symbol:
    """A run-time integer that shapes depend on: its name, its range, and where it can be read.

    ``source`` is the number of an input, and the dim of that input, or None where the input is
    the integer itself.
    """

    name: str
    low: int
    high: int | None
    source: tuple[int, int | None]


@dataclass(frozen=True)
class Owed:
    """What a call of a program gives its caller, beside what the graph computes.

    Attributes:
        returns: what the caller is owed, in order.
        symbols: the symbols of the shapes.
        constants: the values of the constant inputs, to be appended to a call's own arguments.
        pairs: which of a call's own arguments are complex; compiled code takes their real views.
    """

    returns: tuple[Return, ...]
    symbols: tuple[Symbol, ...]
    constants: tuple[Tensor, ...] = ()
    pairs: tuple[int, ...] = ()

    def bind(self, arguments: Sequence[Argument]) -> dict[str, int]:
        """The values of the symbols under the actual arguments of a call."""
        bound: dict[str, int] = {}
        for symbol in self.symbols:
            index, dim = symbol.source
            value: Any = arguments[index]
            bound[symbol.name] = int(value if dim is None else value.shape[dim])
        return bound


@dataclass(frozen=True)
class Captured:
    """A captured program.

    The graph is functional ATen. Each node's ``meta`` has ``val`` (a fake tensor, a SymInt, or a
    tuple of them) and ``loc`` (`fuseline.ir.core.Loc`, the place in the user's source). Its outputs
    are the new contents of the inputs numbered in ``writes``, then the values computed for the
    caller. Compiled code is called with the flat inputs, constants included, writes the inputs in
    place, and gives the computed values alone; `fuseline.frontend.execute.finish` makes of them
    what the caller is owed.

    Attributes:
        graph: the functional graph.
        inputs: the flat inputs in order; constants last.
        writes: for the first outputs of the graph, the numbers of the inputs that they replace.
        returns: what the caller is owed, in order.
        symbols: the symbols of the shapes.
        name: of the program, for dumps.
        results: of the values computed for the caller, in order.
        pairs: the numbers of the inputs that are complex to the caller: here they are their real
            views, ``[..., 2]``.
        road: how it was captured: ``export`` or ``dynamo``, and ``aot`` where the graph needed
            tracing again.
    """

    graph: fx.Graph
    inputs: tuple[Input, ...]
    writes: tuple[int, ...]
    returns: tuple[Return, ...]
    symbols: tuple[Symbol, ...]
    results: tuple[Result, ...] = ()
    pairs: tuple[int, ...] = ()
    name: str = "main"
    road: str = "dynamo"

    @cached_property
    def module(self) -> fx.GraphModule:
        """The graph as a module that can be called; made when first asked for."""
        return fx.GraphModule(torch.nn.Module(), self.graph)

    @property
    def example_sizes(self) -> dict[str, int]:
        """What symbols were for the tensors that the program was captured with, where known."""
        values = [node.meta["val"] for node in self.graph.nodes if node.op == "placeholder"]
        sizes = [size for value in values if isinstance(value, Tensor) for size in value.shape]
        known = {str(_torch.expression(size)): _torch.example(size) for size in sizes}
        names = [symbol.name for symbol in self.symbols]
        return {name: size for name in names if (size := known.get(name)) is not None}

    @property
    def owed(self) -> Owed:
        """What a call gives its caller."""
        known = [i.actual for i in self.inputs if i.kind is InputKind.CONSTANT]
        constants = tuple(t for t in known if t is not None)
        return Owed(self.returns, self.symbols, constants, self.pairs)
