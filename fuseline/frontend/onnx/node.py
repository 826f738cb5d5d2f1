"""What an importer function sees of a node, and the ONNX values that it works on.

Shapes in ONNX are data: a graph computes them by operators. So beside the IR value there is what
is known of an ONNX value at import: its elements where it is a constant, or, for a small tensor of
integers, its elements as dims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import sympy
import torch
from torch import Tensor, nn

from fuseline.frontend.builder import Builder, axis_of
from fuseline.frontend.onnx.registry import NeedsValue, Unsupported
from fuseline.ir.core import Func, Origin, Ref, Value
from fuseline.ir.ops.call import AtenCall
from fuseline.ir.ops.view import Concat
from fuseline.ir.types import Dim, DType, Range, TensorType, dim, symbol

SMALL = 1024
"""Elements of a tensor that may be known one by one."""


@dataclass(eq=False)
class Given:
    """One ONNX value.

    Attributes:
        name: in the graph.
        type: as our own ops infer it.
        value: the IR value, where an op has made one.
        tensor: its elements, where they are constant.
        known: its elements as dims in an array of objects, where they follow from sizes.
        inputs: the graph's inputs whose data it depends on.
        param: whether it is an initializer, or made of one.
        turned: a matrix with its dims swapped, once a product has asked for that.
    """

    name: str
    type: TensorType
    value: Value | None = None
    tensor: Tensor | None = None
    known: Any = None
    inputs: frozenset[str] = frozenset()
    param: bool = False
    turned: Given | None = None

    @property
    def elements(self) -> Any:
        """The elements as an array of objects; None where they are not known."""
        if self.known is None and self.tensor is not None and self.tensor.numel() <= SMALL:
            self.known = objects(cast("Any", self.tensor).tolist(), tuple(self.tensor.shape))
        return self.known


def objects(values: Any, shape: tuple[int, ...]) -> Any:
    """An array of Python objects."""
    array = np.empty(shape, dtype=object)
    array[...] = values
    return array


@dataclass
class Graph:
    """A func that is being built, with the tensors of its constant arguments."""

    func: Func
    builder: Builder
    tensors: dict[Value, Tensor] = field(default_factory=dict[Value, Tensor])
    made: dict[Given, Value] = field(default_factory=dict[Given, Value])

    @classmethod
    def new(cls, name: str) -> Graph:
        """A graph without anything in it."""
        func = Func(name)
        return cls(func, Builder(func))

    def value(self, given: Given) -> Value:
        """The IR value of an ONNX value: made here where it is a constant, or known by dims."""
        if given.value is not None and given.tensor is None:
            return given.value
        if given not in self.made:
            made = self._known(given) if given.tensor is None else self._constant(given)
            self.made[given] = made
        return self.made[given]

    def _constant(self, given: Given) -> Value:
        tensor = given.tensor
        assert tensor is not None, f"{given.name} has neither value nor tensor"
        if tensor.numel() == 1 and bool((tensor == tensor).all()):  # a NaN equals nothing
            return self.builder.full(tensor.item(), given.type.dtype, given.type.shape)
        hint = "".join(c if c.isalnum() else "_" for c in given.name).strip("_") or "constant"
        kind: Literal["param", "const"] = "const"
        if given.param and given.type.dtype.is_float:
            kind = "param"
        value = self.func.add_arg(given.type, hint, Origin(kind, given.name))
        if kind == "param":  # a parameter of ours, whose memory packing may move
            tensor = nn.Parameter(tensor, requires_grad=False)
        self.tensors[value] = tensor
        return value

    def _known(self, given: Given) -> Value:
        dtype, array = given.type.dtype, given.known
        if array.ndim == 0:
            return self.builder.full(array.item(), dtype)
        parts = [self.builder.full(e, dtype, (1,)) for e in array.flat]
        if not parts:
            return self.builder.full(0, dtype, array.shape)
        flat = parts[0] if len(parts) == 1 else self.builder.add(Concat(tuple(parts), axis=0)).y
        return self.builder.reshape(flat, array.shape)


@dataclass
class Node:
    """One node of an ONNX graph, for its importer function.

    Attributes:
        name, op, domain, opset: of the node; the version is that of its domain's operator set.
        inputs: its inputs, None where one is absent.
        wanted: for each of its outputs, whether the graph names it.
        attributes: by name, as Python's values; tensors as torch's.
        graph: where its ops go.
    """

    name: str
    op: str
    domain: str
    opset: int
    inputs: list[Given | None]
    wanted: list[bool]
    attributes: dict[str, Any]
    graph: Graph

    @property
    def b(self) -> Builder:
        """What ops are built with."""
        return self.graph.builder

    def __str__(self) -> str:
        return f"node {self.name or '(no name)'}"

    # -- inputs and attributes --------------------------------------------------------------

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def has(self, index: int) -> bool:
        """Whether an input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def wants(self, index: int) -> bool:
        """Whether an output is named."""
        return index < len(self.wanted) and self.wanted[index]

    def given(self, index: int) -> Given:
        """An input that must be there."""
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            raise Unsupported(f"the absence of input {index}")
        return found

    def x(self, index: int = 0) -> Value:
        """The IR value of an input."""
        return self.graph.value(self.given(index))

    def opt(self, index: int) -> Value | None:
        """The IR value of an input, None where it is absent."""
        return self.x(index) if self.has(index) else None

    def xs(self) -> list[Value]:
        """The IR values of all inputs that are given."""
        return [self.graph.value(g) for g in self.inputs if g is not None]

    def elements(self, index: int) -> Any:
        """What is known of an input, as an array of objects.

        Raises:
            NeedsValue: nothing is.

        """
        given = self.given(index)
        if given.elements is None:
            raise NeedsValue(given.name, given.inputs)
        return given.elements

    def dims(self, index: int) -> list[Dim]:
        """The elements of an input that says sizes or places."""
        return [dim(e) for e in self.elements(index).flat]

    def ints(self, index: int) -> list[int]:
        """The elements of an input that must be plain integers, such as axes."""
        found = self.dims(index)
        if not all(isinstance(e, int) for e in found):
            raise Unsupported(f"{self.given(index).name} = {found}, which depends on sizes")
        return cast("list[int]", found)

    def number(self, index: int) -> Any:
        """The one element of an input."""
        array = self.elements(index)
        if array.size != 1:
            raise Unsupported(f"{array.size} elements in {self.given(index).name}, expected one")
        return array.flat[0]

    def constant(self, index: int) -> Tensor:
        """The elements of an input that must be constant."""
        given = self.given(index)
        if given.tensor is None:
            raise NeedsValue(given.name, given.inputs)
        return given.tensor

    def axis(self, default: int, rank: int | None = None) -> int:
        """The attribute ``axis``, counted from the front."""
        rank = self.x(0).tensor.rank if rank is None else rank
        axis = self.attr("axis", default)
        if not -max(rank, 1) <= axis < max(rank, 1):
            raise Unsupported(f"axis {axis} of {rank} dims")
        return axis_of(axis, rank)

    def axes(self, index: int, rank: int) -> list[int] | None:
        """Axes counted from the front, of an input or (in older versions) the attribute."""
        if self.has(index):
            found = self.ints(index)
        elif self.attr("axes") is not None:
            found = list(self.attr("axes"))
        else:
            return None
        return [axis_of(a, rank) for a in found]

    def turned(self, index: int) -> Value | None:
        """A weight ``[K, N]`` as ``[N, K]``: so they are merged and packed. None for an input that
        is no constant matrix of floats.
        """
        given = self.given(index)
        if given.tensor is None or given.tensor.dim() != 2 or not given.type.dtype.is_float:
            return None
        if given.turned is None:
            tensor = given.tensor.t().contiguous()
            kind = given.type.with_shape(tuple(tensor.shape))
            given.turned = Given(given.name, kind, tensor=tensor, param=True)
        return self.graph.value(given.turned)

    # -- building ---------------------------------------------------------------------------

    def full(self, number: Any, like: Value | DType) -> Value:
        """A number as a 0-d tensor of an element type."""
        return self.b.full(number, like if isinstance(like, DType) else like.dtype)

    def call(self, target: str, *args: Any, kind: TensorType, **kwargs: Any) -> Value:
        """An ATen overload with one result."""
        return self.calls(target, *args, kinds=(kind,), **kwargs)[0]

    def calls(
        self, target: str, *args: Any, kinds: Sequence[TensorType], **kwargs: Any
    ) -> tuple[Value, ...]:
        """An ATen overload; values among the arguments are its operands."""
        operands: list[Value] = []

        def leaf(value: Any) -> Any:
            if isinstance(value, Value):
                if value not in operands:
                    operands.append(value)
                return Ref(operands.index(value))
            if isinstance(value, (list, tuple)):
                return tuple(leaf(v) for v in cast("Sequence[Any]", value))
            return value

        spelled = tuple(leaf(a) for a in args)
        named = tuple((k, leaf(v)) for k, v in kwargs.items())
        op = AtenCall(
            tuple(operands), target=f"aten.{target}", args=spelled, kwargs=named, types=tuple(kinds)
        )
        return self.b.add(op).ys

    def fresh(self, hint: str) -> Dim:
        """A size that only the data tells."""
        func = self.b.func
        number = sum(name.startswith("u") for name in func.symbols)
        name = f"u{number}_{hint}"
        func.symbols[name] = Range()
        return symbol(name)

    def unsqueeze(self, x: Value, axes: Sequence[int]) -> Value:
        """New dims of extent 1 at these axes of the result."""
        rank = x.tensor.rank + len(axes)
        places = {axis_of(a, rank) for a in axes}
        rest = iter(x.shape)
        return self.b.reshape(x, [1 if a in places else next(rest) for a in range(rank)])


def is_symbolic(array: Any) -> bool:
    """Whether an array of objects has a size in it."""
    return any(isinstance(e, sympy.Basic) for e in array.flat)


def to_tensor(array: Any, dtype: DType) -> Tensor:
    """A tensor of the numbers in an array of objects."""
    flat = [e if isinstance(e, (int, float)) else float(e) for e in array.flat]
    return torch.tensor(flat, dtype=dtype.torch).reshape(array.shape)


__all__ = ["SMALL", "Given", "Graph", "Node", "is_symbolic", "objects", "to_tensor"]
