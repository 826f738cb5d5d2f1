"""From a captured program to an ONNX model."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from onnx import helper
from torch import Tensor

from fuseline import _version, errors
from fuseline.exporting.capture import Part, captured
from fuseline.exporting.describe import tree_of
from fuseline.exporting.onnx import naming, passes
from fuseline.exporting.onnx.file import Model, Written, write
from fuseline.exporting.onnx.registry import CannotWrite
from fuseline.exporting.onnx.state import written
from fuseline.exporting.onnx.versions import OLDEST
from fuseline.exporting.onnx.writer import Functions, Writer
from fuseline.frontend import export as frontend
from fuseline.frontend.captured import (
    FromGraph,
    FromInput,
    FromNothing,
    FromSymbols,
    Return,
)
from fuseline.frontend.imported import Ready
from fuseline.frontend.importer import CannotImport, import_captured
from fuseline.frontend.onnx.data import element_of
from fuseline.ir.core import Func, Value
from fuseline.ir.layout import dense
from fuseline.ir.types import Dim, DType, IntType

for _family in (
    "attention", "calls", "experts", "index", "matmul", "mixtures", "norm", "pointwise", "reduce",
    "rope", "rows", "state", "view",
):  # fmt: skip
    importlib.import_module(f"fuseline.exporting.onnx.{_family}")

_helper = cast("Any", helper)


@dataclass
class _Signature:
    """What a graph takes and gives, in the making."""

    inputs: list[onnx.ValueInfoProto] = field(default_factory=list[onnx.ValueInfoProto])
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list[onnx.ValueInfoProto])
    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True)
class How:
    """How a program is written.

    Attributes:
        opset: the version of the standard operators.
        dense_experts: every expert computes every token.
        disable: names of passes that are left out.
    """

    opset: int = OLDEST
    dense_experts: bool = False
    disable: tuple[str, ...] = ()


def export(
    part: Part, path: Path, how: How, *, embed: bool = True, about: Mapping[str, str]
) -> Written:
    """Capture a module and write it: see `fuseline.export_onnx`."""
    if not path.parent.is_dir():
        found = f"no directory {path.parent}"
        raise errors.ARTIFACT_UNWRITABLE.error(str(path), found=found)
    exported = captured("main", part)
    if isinstance(exported, Ready):
        found = "an ONNX model, which is in this format already"
        raise errors.CANNOT_EXPORT.error("main", found=found, hint="copy its file")
    kind = type(part.model)
    named = {"model": f"{kind.__module__}.{kind.__qualname__}", "torch": str(torch.__version__)}
    model = model_of(exported, how, {**named, **about})
    return write(model, path, embed=embed, opset=how.opset)


def model_of(exported: frontend.Exported, how: How, about: Mapping[str, str]) -> Model:
    """The ONNX model of a captured program.

    Raises:
        ArtifactError: FL1109, it has something that has no form in ONNX.

    """
    return _Export(exported, how, about).run()


class _Export:
    def __init__(self, exported: frontend.Exported, how: How, about: Mapping[str, str]) -> None:
        self.exported = exported
        self.captured = exported.captured
        self.how = how
        self.about = about
        self.functions = Functions(how.opset, how.dense_experts)
        self.writer = Writer(self.functions, marks=True)
        self.signature = _Signature()
        self.dims = exported.names
        self.given: list[tuple[str, str]] = []
        """The outputs: of which value, and under which name."""

    def run(self) -> Model:
        """Import, simplify, and write inputs, ops and outputs."""
        captured, writer = self.captured, self.writer
        if captured.pairs:
            raise errors.NOT_IN_ONNX.error("a complex input")
        try:
            func = passes.simplified(lambda: import_captured(captured), self.how.disable)
        except CannotImport as error:
            raise errors.CANNOT_EXPORT.error(captured.name, found=str(error)) from error
        self._arguments(func)
        state = [(value, writer.fresh(f"{writer[value]}_out")) for value in written(func)]
        names = [
            writer.fresh(name) for name in naming.output_names(tree_of(self.exported.out_spec))
        ]
        try:
            writer.write(func.ops)
            self._outputs(func, names, state)
        except CannotWrite as error:
            where = "" if writer.loc is None else str(writer.loc)
            raise errors.NOT_IN_ONNX.error(str(error), where=where) from error
        return Model(self._proto(func), self.signature.tensors)

    def _arguments(self, func: Func) -> None:
        """Inputs of the model, and tensors that it has inside: one that is tied once."""
        writer, signature = self.writer, self.signature
        states = set(written(func))
        known: dict[Any, str] = {}
        for arg, item in zip(func.args, self.captured.inputs, strict=True):
            actual = item.actual
            if actual is not None and arg not in states:
                key = (actual.data_ptr(), actual.shape, actual.stride(), actual.dtype)
                shared = known.get(key) if actual.numel() else None
                name = shared or known.setdefault(key, writer.fresh(item.name))
                writer.argument(arg, name)
                if shared is None:
                    signature.tensors[name] = actual
                continue
            name = writer.fresh(item.name)
            writer.argument(arg, name)
            signature.inputs.append(self._info(name, arg))
            if actual is not None:  # what state is where no input says so
                signature.tensors[name] = actual

    def _info(self, name: str, value: Value) -> onnx.ValueInfoProto:
        if isinstance(value.type, IntType):
            return _helper.make_tensor_value_info(name, element_of(DType.I64), [])
        return self._described(name, value.dtype, value.shape)

    def _described(self, name: str, dtype: DType, shape: Sequence[Dim]) -> onnx.ValueInfoProto:
        extents = [d if isinstance(d, int) else naming.dim_text(d, self.dims) for d in shape]
        return _helper.make_tensor_value_info(name, element_of(dtype), extents)

    def _outputs(
        self, func: Func, names: Sequence[str], state: Sequence[tuple[Value, str]]
    ) -> None:
        """What the caller is owed, then the new state."""
        for name, owed in zip(names, self.captured.returns, strict=True):
            if not isinstance(owed, FromNothing):
                self._output(name, *self._owed(func, owed))
        for value, name in state:
            self._output(name, self.writer[value], value.dtype, value.shape)

    def _owed(self, func: Func, owed: Return) -> tuple[str, DType, tuple[Dim, ...]]:
        writer = self.writer
        match owed:
            case FromGraph(index):
                value = func.returns[index]
                return writer[value], value.dtype, value.shape
            case FromInput(index, size, stride, offset):
                value = func.args[index]
                if size != value.shape or stride != dense(size).strides or offset != 0:
                    raise CannotWrite(f"a result that is a part of the input {value.hint}")
                return writer[value], value.dtype, value.shape
            case FromSymbols(extent):
                return writer.number(extent, DType.I64), DType.I64, ()
            case FromNothing():
                raise AssertionError("nothing is no output")

    def _output(self, name: str, have: str, dtype: DType, shape: Sequence[Dim]) -> None:
        self.given.append((have, name))
        self.signature.outputs.append(self._described(name, dtype, shape))

    def _proto(self, func: Func) -> onnx.ModelProto:
        signature, functions = self.signature, self.functions
        nodes = self.writer.closed(self.given)
        graph = _helper.make_graph(nodes, func.name, signature.inputs, signature.outputs)
        imports = functions.imports()
        proto: onnx.ModelProto = _helper.make_model(
            graph, opset_imports=imports, functions=list(functions.found.values()),
            ir_version=_helper.find_min_ir_version_for([imports[0]]),
            producer_name="fuseline", producer_version=_version.__version__,
        )  # fmt: skip
        for key, text in sorted(self.about.items()):
            if text:
                proto.metadata_props.add(key=key, value=text)
        used = {name for node in nodes for name in node.input}
        kept = {name: t for name, t in signature.tensors.items() if name in used}
        signature.tensors = kept | {
            i.name: signature.tensors[i.name]
            for i in signature.inputs
            if i.name in signature.tensors
        }
        return proto


__all__ = ["How", "Model", "export", "model_of"]
