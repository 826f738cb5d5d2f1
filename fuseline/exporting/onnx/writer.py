"""Writes the nodes of one graph, or of the body of one function.

Values become names. Sizes are computed from the shapes of what the graph or function takes, as
tensors of one i64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import onnx
import sympy
import torch
from onnx import helper
from torch import Tensor

from fuseline.exporting.onnx.registry import EMITTERS, CannotWrite, Emitter, Expansion
from fuseline.exporting.onnx.tensors import proto_of
from fuseline.frontend.builder import Builder
from fuseline.frontend.onnx.data import element_of
from fuseline.ir.core import Func, Loc, Op, Value
from fuseline.ir.types import Dim, DType, IntType, TensorType, format_dim

DOMAIN = "fuseline"
"""Of the functions that a model brings along."""

HIGHEST = (1 << 63) - 1
"""The end of a slice that goes to the end."""

_onnx_helper = cast("Any", helper)


@dataclass
class Functions:
    """The functions of a model, each body once, and what all writers of the model have in common.

    Attributes:
        opset: the version of the standard operators.
        dense: every expert computes every token, so that no size depends on data.
    """

    opset: int
    dense: bool = False
    found: dict[bytes, onnx.FunctionProto] = field(default_factory=dict[bytes, onnx.FunctionProto])
    counts: dict[str, int] = field(default_factory=dict[str, int])

    def name_of(self, proto: onnx.FunctionProto, kind: str) -> str:
        """The name of the function with this body, which is added where it is new."""
        key = kind.encode() + b"\0" + proto.SerializeToString(deterministic=True)
        if key not in self.found:
            number = self.counts[kind] = self.counts.get(kind, 0) + 1
            proto.name = kind if number == 1 else f"{kind}_{number}"
            self.found[key] = proto
        return self.found[key].name

    def imports(self) -> list[onnx.OperatorSetIdProto]:
        """The operator sets that a model and its functions use."""
        make: Any = _onnx_helper.make_opsetid
        return [make("", self.opset), *([make(DOMAIN, 1)] if self.found else [])]


class Writer:
    """One graph, or body of a function, in the making."""

    def __init__(self, functions: Functions, *, marks: bool = False) -> None:
        self.functions = functions
        self.nodes: list[onnx.NodeProto] = []
        self.names: dict[Value, str] = {}
        self.halves: set[Value] = set()
        """Values without an op whose last dim is one half twice (see `rope.repeats`)."""
        self.loc: Loc | None = None
        self.hint = "value"
        self._marks = marks
        self._taken: set[str] = set()
        self._made: dict[bytes, list[str]] = {}
        self._sources: dict[Dim, tuple[str, int | None]] = {}
        self._sizes: dict[Dim, str] = {}

    # -- names and nodes --------------------------------------------------------------------

    def fresh(self, hint: str) -> str:
        """A name that is not taken yet, and is from now on."""
        name, number = hint or "value", 0
        while name in self._taken:
            number += 1
            name = f"{hint}_{number}"
        self._taken.add(name)
        return name

    def argument(self, value: Value, name: str) -> None:
        """Say under which name an argument comes, and take its sizes from there."""
        self._taken.add(name)
        self.names[value] = name
        if isinstance(value.type, IntType):
            self._sources.setdefault(value.type.value, (name, None))
            return
        for axis, extent in enumerate(value.shape):
            if not isinstance(extent, int):
                self._sources.setdefault(extent, (name, axis))

    def nodes_of(
        self, kind: str, inputs: Iterable[str], count: int, *, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node with so many outputs; their names. One that is there already serves again."""
        given = {k: v for k, v in attributes.items() if v is not None}
        node = _onnx_helper.make_node(kind, list(inputs), [], domain=domain, **given)
        key = cast("bytes", node.SerializeToString(deterministic=True))
        if key in self._made:
            return self._made[key]
        outputs = self._made[key] = [self.fresh(self.hint) for _ in range(count)]
        node.output.extend(outputs)
        node.name = f"{outputs[0]}/{kind}"
        if self._marks and self.loc is not None:
            for key, text in (("module", self.loc.module), ("source", self.loc.source)):
                if text:
                    node.metadata_props.add(key=f"fuseline.{key}", value=text)
        self.nodes.append(node)
        return outputs

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output; its name."""
        return self.nodes_of(kind, inputs, 1, **attributes)[0]

    def __getitem__(self, value: Value) -> str:
        return self.names[value]

    def of(self, value: Value, dtype: DType) -> str:
        """A value as another element type."""
        return self.cast(self.names[value], value.dtype, dtype)

    def cast(self, name: str, have: DType, want: DType) -> str:
        """What has a name as another element type."""
        return name if have is want else self.node("Cast", name, to=element_of(want))

    # -- constants and sizes ----------------------------------------------------------------

    def tensor(self, tensor: Tensor) -> str:
        """A constant."""
        hint, self.hint = self.hint, "constant"
        found = self.node("Constant", value=proto_of(tensor, ""))
        self.hint = hint
        return found

    def scalar(self, value: float, dtype: DType) -> str:
        """A constant number, 0-d."""
        return self.tensor(torch.tensor(value, dtype=dtype.torch))

    def ints(self, *values: int) -> str:
        """A constant list of i64."""
        return self.tensor(torch.tensor(values, dtype=torch.int64))

    def sizes(self, dims: Sequence[Dim]) -> str:
        """A list of i64 that dims give."""
        if all(isinstance(d, int) for d in dims):
            return self.ints(*cast("Sequence[int]", dims))
        parts = [self.size(d) for d in dims]
        return parts[0] if len(parts) == 1 else self.node("Concat", *parts, axis=0)

    def number(self, value: Dim, dtype: DType) -> str:
        """A dim as a number, 0-d."""
        if isinstance(value, int):
            return self.scalar(value, dtype)
        name = self.node("Squeeze", self.size(value), self.ints(0))
        return self.cast(name, DType.I64, dtype)

    def size(self, value: Dim) -> str:
        """A dim, as a tensor of one i64.

        Raises:
            CannotWrite: a symbol of it is told by no argument.

        """
        if isinstance(value, int):
            return self.ints(value)
        if value not in self._sizes:
            hint, self.hint = self.hint, "size"
            self._sizes[value] = self._computed(value)
            self.hint = hint
        return self._sizes[value]

    def _computed(self, value: sympy.Expr) -> str:
        source = self._sources.get(value)
        if source is not None:
            name, axis = source
            if axis is None:
                return self.node("Reshape", name, self.ints(1))
            return self.node("Shape", name, start=axis, end=axis + 1)
        expr: Any = value
        if isinstance(expr, sympy.floor):
            numerator, denominator = expr.args[0].as_numer_denom()
            over, by = self.size(_dim(numerator)), self.size(_dim(denominator))
            if numerator.is_nonnegative and denominator.is_nonnegative:
                return self.node("Div", over, by)
            rest = self.node("Mod", over, by)  # of the sign of the divisor
            return self.node("Div", self.node("Sub", over, rest), by)
        numerator, denominator = expr.as_numer_denom()
        if denominator != 1:
            return self.node("Div", self.size(_dim(numerator)), self.size(_dim(denominator)))
        kinds = {sympy.Add: "Add", sympy.Mul: "Mul", sympy.Max: "Max", sympy.Min: "Min"}
        kind = kinds.get(expr.func) or ("Mod" if isinstance(expr, sympy.Mod) else None)
        if isinstance(expr, sympy.Pow) and expr.exp.is_Integer and expr.exp > 0:
            kind, args = "Mul", [expr.base] * int(expr.exp)
        else:
            args = list(expr.args)
        if kind is None:
            raise CannotWrite(f"the size {format_dim(value)}, which no input has")
        terms = [self.size(_dim(arg)) for arg in sorted(args, key=str)]
        if kind == "Mod":
            terms = [self.size(_dim(arg)) for arg in args]
        found = terms[0]
        for term in terms[1:]:
            found = self.node(kind, found, term)
        return found

    # -- ops and functions ------------------------------------------------------------------

    def write(self, ops: Iterable[Op]) -> None:
        """Add the nodes of ops."""
        for op in ops:
            emitter = EMITTERS.get(type(op))
            if emitter is None:
                raise CannotWrite(f"the op {op.name}")
            if self._marks:
                self.loc = op.loc
            before = self.hint
            named = self._marks and op.results  # a body is alike for all who call it
            self.hint = op.results[0].hint if named else op.name.rpartition(".")[2]
            found = emitter(self, op)
            self.hint = before
            names = [found] if isinstance(found, str) else list(found)
            self.names.update(zip(op.results, names, strict=True))

    def inline(self, func: Func, names: Sequence[str]) -> list[str]:
        """Add the nodes of a func on what has these names; the names of its results."""
        kept = self._sources, self._sizes
        self._sources, self._sizes = {}, {}
        for arg, name in zip(func.args, names, strict=True):
            self.argument(arg, name)
        self.write(func.ops)
        self._sources, self._sizes = kept
        return [self.names[value] for value in func.returns]

    def expand(self, op: Op, expansion: Expansion) -> list[str]:
        """Add the nodes of what an op is made of."""
        func = Func(op.name)
        made = expansion(Builder(func), op)
        self.write(func.ops)
        results = [made] if isinstance(made, Value) else list(made)
        return [self.names[value] for value in results]

    def call(self, op: Op, body: Emitter) -> list[str]:
        """Call the function that an op becomes, whose body is written where it is new."""
        inner, twin = self._inside(op)
        names = body(inner, twin)
        made = [names] if isinstance(names, str) else list(names)
        inputs = list(dict.fromkeys(inner[value] for value in twin.operands))
        outputs = [inner.fresh(value.hint) for value in twin.results]
        proto = onnx.FunctionProto(domain=DOMAIN)
        proto.input.extend(inputs)
        proto.output.extend(outputs)
        proto.node.extend(inner.closed(list(zip(made, outputs, strict=True))))
        used = {node.domain for node in proto.node}
        imports = [("", self.functions.opset), (DOMAIN, 1)]
        proto.opset_import.extend(
            _onnx_helper.make_opsetid(d, version) for d, version in imports if d in {"", *used}
        )
        name = self.functions.name_of(proto, type(op).__name__)
        given = [self.names[value] for value in dict.fromkeys(op.operands)]
        return self.nodes_of(name, given, len(outputs), domain=DOMAIN)

    def closed(self, outputs: Sequence[tuple[str, str]]) -> list[onnx.NodeProto]:
        """The nodes, with what has each first name given out under each second one.

        A node does so itself; an argument, and what is given out twice, takes an Identity.
        """
        made = {name for node in self.nodes for name in node.output}
        times = Counter(have for have, _ in outputs)
        swap = {have: name for have, name in outputs if have in made and times[have] == 1}
        nodes = _needed(self.nodes, [have for have, _ in outputs])
        for node in nodes:
            for names in (node.input, node.output):
                names[:] = [swap.get(name, name) for name in names]
        for have, name in outputs:
            if have not in swap:
                node = _onnx_helper.make_node("Identity", [have], [name], name=f"{name}/Identity")
                nodes.append(node)
        return nodes

    def _inside(self, op: Op) -> tuple[Writer, Op]:
        """A writer of a body, and the op on the body's arguments, named by the op's fields."""
        from fuseline.exporting.onnx.rope import repeats

        inner = Writer(self.functions)
        func, mapping = Func(op.name), dict[Value, Value]()
        for value, hint in _fields(op):
            if value in mapping:
                continue
            kind: TensorType = value.tensor
            mapping[value] = func.add_arg(kind, hint)
            inner.argument(mapping[value], inner.fresh(hint))
            if repeats(self, value):
                inner.halves.add(mapping[value])
        twin = op.clone(mapping)
        for result, hint in zip(twin.results, _result_hints(twin), strict=True):
            result.hint = hint
        inner.hint = type(op).name
        return inner, twin


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that outputs are computed from."""
    wanted, kept = set(outputs), list[onnx.NodeProto]()
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


def _fields(op: Op) -> list[tuple[Value, str]]:
    """The operands that are there, each with the name of its field."""
    found: list[tuple[Value, str]] = []
    for spec in op.fields:
        value: Any = getattr(op, spec.name)
        if spec.kind == "variadic":
            several = cast("Sequence[Value]", value)
            for number, each in enumerate(several):
                found.append((each, f"{spec.name}_{number}" if several[1:] else spec.name))
        elif spec.kind in ("operand", "optional") and value is not None:
            found.append((value, spec.name))
    return found


def _result_hints(op: Op) -> list[str]:
    found: list[str] = []
    for spec in op.fields:
        if spec.kind == "result":
            found.append(spec.name)
        elif spec.kind == "results":
            found += [f"{spec.name}_{i}" for i in range(len(getattr(op, spec.name)))]
    return found


def _dim(value: Any) -> Dim:
    return int(value) if value.is_Integer else value


__all__ = ["DOMAIN", "HIGHEST", "Functions", "Writer"]
