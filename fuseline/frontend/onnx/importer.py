"""From an ONNX model to an IR func.

A node goes to the importer function of its operator. One whose inputs are all constants is computed
at once, by the references of the ops that it becomes; one on small integers that say sizes, by
`symbolic`. Calls of the model's own functions are inlined, and so are standard operators that have
no importer but a function body in the standard.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import onnx
from onnx import AttributeProto
from torch import Tensor

from fuseline import errors
from fuseline.frontend.onnx import data, symbolic
from fuseline.frontend.onnx.node import SMALL, Given, Graph, Node, is_symbolic, to_tensor
from fuseline.frontend.onnx.program import OnnxProgram
from fuseline.frontend.onnx.registry import NeedsValue, Unsupported, importer_of
from fuseline.frontend.onnx.sizes import Spec, narrowed
from fuseline.ir.core import Func, IRError, Loc, Origin, Trait, Value
from fuseline.ir.evaluate import evaluate
from fuseline.ir.types import DType, TensorType

for _family in (
    "attention",
    "create",
    "elementwise",
    "index",
    "matmul",
    "microsoft",
    "norm",
    "pool",
    "quantize",
    "recurrent",
    "reduce",
    "resize",
    "view",
):
    importlib.import_module(f"fuseline.frontend.onnx.{_family}")

OLDEST = 7
"""The first version of the standard operators that is read; 13 and newer ones are tested."""

FOLDED = 1 << 16
"""Elements up to which results of constants are computed at import."""

DEEPEST = 32
"""Bodies within bodies that are followed: a function that calls itself has no end."""

_REFUSED = {
    "Loop": "control flow",
    "Scan": "control flow",
    "If": "control flow that only data decides",
}


def import_onnx(
    model: onnx.ModelProto | str | Path,
    values: Mapping[str, Tensor] | None = None,
    inputs: Iterable[Spec] = (),
) -> OnnxProgram:
    """Import an ONNX model.

    Args:
        model: the model, or its file; external data are read from the file's folder.
        values: inputs to be taken as constant, by name. That is needed where a shape is data, such
            as the ``k`` of a TopK that is an input. A run must then give the same.
        inputs: types of inputs that are narrower than the file has them: sizes fixed, or with a
            range and a name. `fuseline.exporting.inputs.parse` makes them of a text.

    Raises:
        LoadError: FL0820 for a file that is no model, or is older or newer than what is read;
            FL0821 for an operator, or a use of one, that has no meaning here; FL0822 where a shape
            is data.
        InputError: FL0823, for ``values`` or ``inputs`` that do not fit the model.

    """
    path = Path(model) if isinstance(model, (str, Path)) else None
    if path is not None:
        try:
            model = cast("Any", onnx).load(path, load_external_data=False)
        except OSError as error:
            raise errors.ONNX_FILE.error(
                str(path), found=error.strerror, hint="check the path"
            ) from error
        except Exception as error:  # protobuf's own, which differ from build to build
            raise errors.ONNX_FILE.error(str(path), found="bytes that do not parse") from error
    if not isinstance(model, onnx.ModelProto):
        found, expected = type(model).__name__, "a ModelProto, or the path of a file"
        raise errors.ONNX_FILE.error(found=found, expected=expected)
    if not model.HasField("graph"):
        where = None if path is None else str(path)
        raise errors.ONNX_FILE.error(where, found="a model without a graph")
    folder = None if path is None else path.parent
    return _Import(model, folder, _checked(values or {}, model)).run(inputs)


def _checked(values: object, model: onnx.ModelProto) -> Mapping[str, Tensor]:
    """Inputs to be taken as constant, if they are that."""
    if not isinstance(values, Mapping):
        raise errors.ONNX_INPUT.error(
            "values", found=type(values).__name__, expected="a dict of tensors by name"
        )
    known = [each.name for each in model.graph.input]
    for name, value in cast("Mapping[str, object]", values).items():
        if name not in known:
            expected = ", ".join(known) or "none"
            raise errors.ONNX_INPUT.error(name, found="no such input", expected=expected)
        if not isinstance(value, Tensor):
            found = type(value).__name__
            raise errors.ONNX_INPUT.error(name, found=found, expected="a tensor of torch")
    return cast("Mapping[str, Tensor]", values)


@dataclass
class _Scope:
    """The values that names mean in one graph or function body, and the operator sets it uses."""

    values: dict[str, Given | None]
    opsets: Mapping[str, int]
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the attributes of the function are in this call of it."""
    depth: int = 0
    """How many bodies it lies in."""


class _Import:
    """One import."""

    def __init__(
        self, model: onnx.ModelProto, folder: Path | None, values: Mapping[str, Tensor]
    ) -> None:
        self.model = model
        self.folder = folder
        self.fixed = values
        self.graph = Graph.new("onnx")
        self.functions = {
            (_domain(f.domain), f.name, f.overload): f for f in cast("Any", model).functions
        }

    def run(self, wanted: Iterable[Spec]) -> OnnxProgram:
        """Import inputs, nodes and outputs."""
        model, graph = self.model, self.model.graph
        opsets = _opsets(model.opset_import)
        _check_version(graph.name, opsets)
        scope = _Scope({}, opsets)
        weights = {each.name: each for each in graph.initializer}
        if graph.sparse_initializer:
            raise _unsupported("the model", found="a sparse initializer")
        inputs = [each for each in graph.input if each.name not in weights]
        self._inputs(scope, inputs, wanted)
        for name, proto in weights.items():
            scope.values[name] = self._initializer(name, proto)
        for node in graph.node:
            self._node(node, scope)
        outputs = [self._output(each.name, scope) for each in graph.output]
        self.graph.func.set_returns(outputs)
        _drop_unread(self.graph.func, len(inputs))
        return OnnxProgram(
            func=self.graph.func,
            inputs=tuple(each.name for each in inputs),
            outputs=tuple(each.name for each in graph.output),
            tensors=tuple(self.graph.tensors[a] for a in self.graph.func.args[len(inputs) :]),
            fixed={k: v for k, v in self.fixed.items() if k in {each.name for each in inputs}},
            initializers=frozenset(weights),
            origin=" ".join(filter(None, (model.producer_name, model.producer_version))),
        )

    def _inputs(
        self, scope: _Scope, inputs: Sequence[onnx.ValueInfoProto], wanted: Iterable[Spec]
    ) -> None:
        named = data.name_dims(self.model.graph)
        hints: list[str] = []
        types: dict[str, TensorType] = {}
        for number, each in enumerate(inputs):
            plain = re.sub(r"\W+", "_", each.name, flags=re.ASCII).strip("_") or f"x{number}"
            hints.append(plain)
            unnamed = f"size_{plain}" if plain[0].isdigit() else f"{plain}_size"
            fixed = self.fixed.get(each.name)
            try:
                kind = data.tensor_type_of(each.type, named, unnamed.lower())
                if fixed is not None:
                    kind = TensorType(DType.from_torch(fixed.dtype), tuple(fixed.shape))
            except (Unsupported, KeyError) as error:
                raise _unsupported(f"input {each.name}", found=str(error)) from error
            types[each.name] = kind
        types, ranges = narrowed(types, wanted)
        self.graph.func.symbols.update(ranges)
        for (name, kind), hint in zip(types.items(), hints, strict=True):
            value = self.graph.func.add_arg(kind, hint, Origin("input", name))
            fixed, depends = self.fixed.get(name), frozenset({name})
            scope.values[name] = Given(name, kind, value, fixed, inputs=depends)

    def _initializer(self, name: str, proto: onnx.TensorProto) -> Given | None:
        try:
            tensor = data.to_torch(proto, self.folder)
        except Unsupported as error:
            raise _unsupported(f"initializer {name}", found=str(error)) from error
        except data.NoDataError as error:
            raise _no_data(f"initializer {name}", error) from error
        except Exception as error:  # data that are too short, a file that is not there ...
            raise errors.ONNX_FILE.error(
                where=f"initializer {name}", found=_first_line(error)
            ) from error
        kind = TensorType(DType.from_torch(tensor.dtype), tuple(tensor.shape))
        return Given(name, kind, tensor=tensor, param=True)

    def _output(self, name: str, scope: _Scope) -> Value:
        given = scope.values.get(name)
        if given is None:
            raise errors.ONNX_FILE.error(where=f"output {name}", found="no node that gives it")
        return self.graph.value(given)

    # -- nodes ------------------------------------------------------------------------------

    def _node(self, proto: onnx.NodeProto, scope: _Scope) -> None:
        domain = _domain(proto.domain)
        version = scope.opsets.get(domain, 1)
        where = f"node {proto.name or '(no name)'}"
        subject = f"{domain or 'ai.onnx'}::{proto.op_type} of version {version}"
        try:
            n = self._seen(proto, scope, domain, version)
            key = (domain, proto.op_type, proto.overload)
            if key in self.functions:
                results = self._body(self.functions[key], n, scope)
            elif proto.op_type == "If" and not domain:
                results = self._chosen(proto, scope, n)
            else:
                results = self._results(n, proto, scope)
            for name, given in zip(proto.output, results, strict=False):
                if name:
                    if given is None:
                        raise Unsupported(f"its output {name}")
                    given.name = name
                    scope.values[name] = given
        except NeedsValue as error:
            inputs = ", ".join(sorted(error.inputs)) or "nothing"
            raise NeedsInput(
                errors.ONNX_DATA.diagnostic(
                    error.value, where=f"{where} ({subject})", found=f"data computed from {inputs}"
                ),
                error.inputs,
            ) from error
        except Unsupported as error:
            raise _unsupported(subject, where=where, found=str(error)) from error
        except (IRError, ValueError, TypeError, LookupError, RuntimeError) as error:
            raise _unsupported(subject, where=where, found=_first_line(error)) from error

    def _seen(self, proto: onnx.NodeProto, scope: _Scope, domain: str, version: int) -> Node:
        inputs: list[Given | None] = []
        for name in proto.input:
            if name and name not in scope.values:
                raise Unsupported(f"its input {name}, which nothing defines")
            inputs.append(scope.values[name] if name else None)
        attributes = {
            each.name: value
            for each in proto.attribute
            if (value := self._attribute(each, scope)) is not None
        }
        self.graph.builder.loc = Loc(
            proto.name or f"{proto.op_type}:{next(iter(proto.output), '')}"
        )
        wanted = [bool(name) for name in proto.output]
        return Node(
            proto.name, proto.op_type, domain, version, inputs, wanted, attributes, self.graph
        )

    def _attribute(self, proto: AttributeProto, scope: _Scope) -> Any:
        if proto.ref_attr_name:
            return scope.attributes.get(proto.ref_attr_name)
        if proto.type == AttributeProto.TENSOR:
            try:
                return data.to_torch(proto.t, self.folder)
            except data.NoDataError as error:
                raise _no_data(f"attribute {proto.name}", error) from error
        if proto.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            return proto
        value = cast("Any", onnx.helper).get_attribute_value(proto)
        if isinstance(value, bytes):
            return value.decode()
        if proto.type == AttributeProto.STRINGS:
            return [v.decode() for v in value]
        return list(value) if proto.type in (AttributeProto.INTS, AttributeProto.FLOATS) else value

    def _results(self, n: Node, proto: onnx.NodeProto, scope: _Scope) -> Sequence[Given | None]:
        if n.op in _REFUSED and not n.domain:
            raise Unsupported(_REFUSED[n.op])
        depends = frozenset[str]().union(*(g.inputs for g in n.inputs if g is not None))
        array = symbolic.evaluate(n)
        if array is not None:
            return [_computed(array, symbolic.result_dtype(n), depends)]
        importer = importer_of(n.domain, n.op, n.opset)
        if importer is None:
            body = _standard_body(proto, n)
            if body is None:
                raise Unsupported("no importer")
            _add_defaults(n)
            return self._body(body, n, scope)
        folds = bool(n.inputs) and all(g is None or g.tensor is not None for g in n.inputs)
        folds = folds and n.op not in _RANDOM
        target = Graph.new("constant") if folds else self.graph
        n.graph = target
        target.builder.loc = self.graph.builder.loc
        done = len(target.func)
        made = importer(n)
        values = cast("Sequence[Any]", made if isinstance(made, (tuple, list)) else (made,))
        givens = [_as_given(v, depends) for v in values]
        if folds and all(_is_small(g) for g in givens if g is not None):
            param = any(g is not None and g.param for g in n.inputs)
            folded = _fold(target, givens, depends, param=param)
            _note_turned(n, folded)
            return folded
        if folds:  # large: an op of the program after all
            n.graph = self.graph
            made = importer(n)
            values = cast("Sequence[Any]", made if isinstance(made, (tuple, list)) else (made,))
            givens = [_as_given(v, depends) for v in values]
        for given, name in zip(givens, proto.output, strict=False):
            if given is not None and given.value is not None and len(target.func) > done:
                hint = "".join(c if c.isalnum() else "_" for c in name).strip("_")
                if given.value.owner is not None and hint:
                    given.value.hint = hint
        return givens

    # -- bodies -----------------------------------------------------------------------------

    def _body(self, function: Any, n: Node, scope: _Scope) -> Sequence[Given | None]:
        """Inline a call of a function."""
        if scope.depth > DEEPEST:
            raise Unsupported(f"functions that call one another over {DEEPEST} times deep")
        attributes = dict(n.attributes)
        for each in function.attribute_proto:
            attributes.setdefault(each.name, self._attribute(each, _Scope({}, {})))
        inputs = list(n.inputs) + [None] * (len(function.input) - len(n.inputs))
        values = dict(zip(function.input, inputs, strict=False))
        opsets = {**scope.opsets, **_opsets(function.opset_import)}
        _check_version(f"function {function.name}", opsets)
        inner = _Scope(values, opsets, attributes, scope.depth + 1)
        for node in function.node:
            self._node(node, inner)
        return [inner.values.get(name) for name in function.output]

    def _chosen(self, proto: onnx.NodeProto, scope: _Scope, n: Node) -> Sequence[Given | None]:
        """The branch of an If whose condition is known at import."""
        condition = n.given(0).elements
        if condition is None or is_symbolic(condition):
            raise Unsupported(_REFUSED["If"])
        branch = n.attr("then_branch" if condition.flat[0] else "else_branch").g
        inner = _Scope(dict(scope.values), scope.opsets, scope.attributes, scope.depth + 1)
        for each in branch.initializer:
            inner.values[each.name] = self._initializer(each.name, each)
        for node in branch.node:
            self._node(node, inner)
        return [inner.values.get(each.name) for each in branch.output]


class NeedsInput(errors.LoadError):
    """FL0822: a shape is data. ``inputs`` are the graph's inputs that it is computed from."""

    def __init__(self, diagnostic: errors.Diagnostic, inputs: frozenset[str]) -> None:
        super().__init__(diagnostic)
        self.inputs = inputs


_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"}


def _drop_unread(func: Func, inputs: int) -> None:
    """Take away the ops whose results nothing reads, and then the weights that none reads."""
    for op in reversed(func.ops):
        if op.has(Trait.PURE) and not any(func.use_count(v) for v in op.results):
            func.edit(erase=[op])
    func.args[inputs:] = [a for a in func.args[inputs:] if func.use_count(a)]


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _opsets(imports: Any) -> dict[str, int]:
    return {_domain(each.domain): int(each.version) for each in imports}


def _no_data(where: str, error: data.NoDataError) -> errors.FuselineError:
    return errors.ONNX_FILE.error(where=where, found=error.found, hint=error.hint)


def _check_version(where: str, opsets: Mapping[str, int]) -> None:
    """Hold the version of the standard operators to those that are read."""
    version = opsets.get("")
    newest = int(cast("Any", onnx).defs.onnx_opset_version())
    if version is None or OLDEST <= version <= newest:
        return
    if version < OLDEST:
        found, expected, hint = f"operator set {version}", f"{OLDEST} or newer", None
    else:
        found = f"operator set {version}"
        expected = f"at most {newest}, the newest that onnx {onnx.__version__} has"
        hint = "install a newer onnx, or convert the model by onnx.version_converter"
    raise errors.ONNX_FILE.error(where, found=found, expected=expected, hint=hint)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _unsupported(
    subject: str, *, where: str | None = None, found: str | None = None
) -> errors.FuselineError:
    return errors.ONNX_UNSUPPORTED.error(subject, where=where, found=found)


def _is_small(given: Given) -> bool:
    numel = given.type.numel
    return given.value is None or not isinstance(numel, int) or numel <= FOLDED


def _as_given(made: Any, inputs: frozenset[str]) -> Given | None:
    if made is None or isinstance(made, Given):
        return made
    if isinstance(made, Tensor):
        kind = TensorType(DType.from_torch(made.dtype), tuple(made.shape))
        return Given("", kind, tensor=made, inputs=inputs)
    value = cast("Value", made)
    return Given("", value.tensor, value, inputs=inputs)


def _computed(array: Any, dtype: DType, inputs: frozenset[str]) -> Given:
    kind = TensorType(dtype, tuple(array.shape))
    if is_symbolic(array):
        return Given("", kind, known=array, inputs=inputs)
    return Given("", kind, tensor=to_tensor(array, dtype), inputs=inputs)


def _fold(
    graph: Graph, givens: Sequence[Given | None], inputs: frozenset[str], *, param: bool
) -> list[Any]:
    """Results of constants, computed by the references; of weights they are weights."""
    found = [g for g in givens if g is not None and g.value is not None and g.tensor is None]
    graph.func.set_returns([cast("Value", g.value) for g in found])
    tensors = evaluate(graph.func, [graph.tensors[a] for a in graph.func.args], binding={})
    done = {
        g: Given("", g.type, tensor=t.clone(memory_format=_CONTIGUOUS), inputs=inputs, param=param)
        for g, t in zip(found, tensors, strict=True)
    }
    return [done.get(g, g) if g is not None else None for g in givens]


def _note_turned(n: Node, folded: Sequence[Given | None]) -> None:
    """A weight that the file transposes before a product reads it: products want it as it was."""
    if n.op != "Transpose" or n.domain or folded[0] is None:
        return
    weight = n.given(0)
    if weight.param and weight.type.rank == 2 and n.attr("perm", [1, 0]) == [1, 0]:
        folded[0].turned = weight


def _standard_body(proto: onnx.NodeProto, n: Node) -> Any:
    """The function body that the standard gives an operator, None where it gives none."""
    try:
        schema = cast("Any", onnx.defs).get_schema(n.op, n.opset, n.domain)
    except Exception:  # the C++ side's own exception type
        return None
    if schema.has_function:
        return schema.function_body
    if not schema.has_context_dependent_function:
        return None
    types = [_type_proto(g).SerializeToString() for g in n.inputs]
    versions = [v for v in schema.context_dependent_function_opset_versions if v <= n.opset]
    version = max(versions, default=schema.since_version)
    text = schema.get_context_dependent_function_with_opset_version(
        version, _resolved(proto, n).SerializeToString(), types
    )
    return onnx.FunctionProto.FromString(text) if text else None


def _add_defaults(n: Node) -> None:
    """Attributes that the standard gives a value where a node gives none."""
    schema = cast("Any", onnx.defs).get_schema(n.op, n.opset, n.domain)
    for name, attribute in schema.attributes.items():
        default = attribute.default_value
        if name not in n.attributes and default.type != AttributeProto.UNDEFINED:
            value = cast("Any", onnx.helper).get_attribute_value(default)
            n.attributes[name] = value.decode() if isinstance(value, bytes) else value


def _resolved(proto: onnx.NodeProto, n: Node) -> onnx.NodeProto:
    """A node whose attributes are values, not references to those of a function."""
    twin = onnx.NodeProto()
    twin.CopyFrom(proto)
    del twin.attribute[:]
    for each in proto.attribute:
        value = n.attributes.get(each.name)
        if each.ref_attr_name and value is not None:
            twin.attribute.append(cast("Any", onnx.helper).make_attribute(each.name, value))
        elif not each.ref_attr_name:
            twin.attribute.append(each)
    return twin


def _type_proto(given: Given | None) -> onnx.TypeProto:
    if given is None:
        return onnx.TypeProto()
    shape = [d if isinstance(d, int) else str(d) for d in given.type.shape]
    helper = cast("Any", onnx.helper)
    return helper.make_tensor_type_proto(data.element_of(given.type.dtype), shape)


def _contiguous() -> Any:
    import torch

    return torch.contiguous_format


_CONTIGUOUS = _contiguous()

__all__ = ["SMALL", "NeedsInput", "import_onnx"]
