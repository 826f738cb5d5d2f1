"""Funcs written as ONNX, and what runtimes make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import checker, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor

from fuseline.exporting.onnx.versions import OLDEST
from fuseline.exporting.onnx.writer import Functions, Writer
from fuseline.frontend.onnx import import_onnx
from fuseline.frontend.onnx.data import element_of, from_numpy
from fuseline.ir.core import Func, Op, Value
from fuseline.ir.evaluate import evaluate
from fuseline.ir.types import DType, IntType, TensorType, format_dim, symbol

_helper = cast("Any", helper)


VARYING = (5, 7)
"""Sizes that are symbols in the funcs of tests, ``s5`` and ``s7``; all others are known."""


def func_of(make: Callable[..., Op], tensors: Sequence[Tensor]) -> Func:
    """An op on arguments of the types of tensors."""
    return built(lambda args: make(*args), tensors)


def built(make: Callable[[Sequence[Value]], Op], tensors: Sequence[Tensor]) -> Func:
    """What makes an op of arguments of the types of tensors."""
    func = Func("case")
    args: list[Value] = []
    for number, tensor in enumerate(tensors):
        shape = [symbol(f"s{n}") if n in VARYING else n for n in tensor.shape]
        args.append(
            func.add_arg(TensorType(DType.from_torch(tensor.dtype), tuple(shape)), f"x{number}")
        )
    func.set_returns(func.append(make(args)).results)
    return func


def onnx_of(func: Func, *, opset: int = OLDEST, dense: bool = False) -> onnx.ModelProto:
    """A func as a checked model: its arguments are inputs, its results outputs."""
    functions = Functions(opset, dense)
    writer = Writer(functions)
    for arg in func.args:
        writer.argument(arg, arg.hint)
    names = [writer.fresh(f"y{i}") for i in range(len(func.returns))]
    writer.write(func.ops)
    nodes = writer.closed([(writer[v], n) for v, n in zip(func.returns, names, strict=True)])
    inputs = [_info(arg, arg.hint) for arg in func.args]
    outputs = [_info(v, n) for v, n in zip(func.returns, names, strict=True)]
    graph = _helper.make_graph(nodes, func.name, inputs, outputs)
    imports = functions.imports()
    model: onnx.ModelProto = _helper.make_model(
        graph, opset_imports=imports, functions=list(functions.found.values()), ir_version=11
    )
    cast("Any", checker).check_model(model, full_check=True)
    return model


def _info(value: Value, name: str) -> Any:
    if isinstance(value.type, IntType):
        return _helper.make_tensor_value_info(name, element_of(DType.I64), [])
    shape = [d if isinstance(d, int) else format_dim(d) for d in value.shape]
    return _helper.make_tensor_value_info(name, element_of(value.dtype), shape)


def by_onnxruntime(model: onnx.ModelProto, tensors: Sequence[Tensor]) -> list[Tensor] | None:
    """The results as onnxruntime has them; None where it lacks an operator for a type."""
    import onnxruntime

    ort = cast("Any", onnxruntime)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(model.SerializeToString(), options)
    except ort.capi.onnxruntime_pybind11_state.NotImplemented:
        return None
    names = [each.name for each in session.get_inputs()]
    given = {n: t.numpy() for n, t in zip(names, tensors, strict=True)}
    return [from_numpy(y) for y in session.run(None, given)]


class Erf(cast("Any", OpRun)):
    """That of the evaluator rounds to float32, whatever the type."""

    op_domain = ""

    def _run(self, x: Any) -> tuple[Any]:
        return (torch.erf(from_numpy(x)).numpy(),)


def by_reference(model: onnx.ModelProto, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The results as the reference evaluator of the package onnx has them."""
    names = [each.name for each in model.graph.input]
    given = {n: t.numpy() for n, t in zip(names, tensors, strict=True)}
    with np.errstate(all="ignore"):
        found = cast("Any", ReferenceEvaluator)(model, new_ops=[Erf]).run(None, given)
    return [from_numpy(y) for y in found]


def assert_as_torch(
    func: Func, tensors: Sequence[Tensor], *, atol: float = 0.0, rtol: float = 0.0,
    opset: int = OLDEST, dense: bool = False, back: bool = True,
) -> onnx.ModelProto:  # fmt: skip
    """A func gives the same by its references, by a runtime of ONNX, and read back in."""
    model = onnx_of(func, opset=opset, dense=dense)
    wanted = evaluate(func, [t.clone() for t in tensors])
    found = by_onnxruntime(model, tensors)
    each = [by_reference(model, tensors) if found is None else found]
    if back:
        given = {f"x{i}": t for i, t in enumerate(tensors)}
        each.append(list(import_onnx(model).run(given).values()))
    for results in each:
        for got, want in zip(results, wanted, strict=True):
            torch.testing.assert_close(got, want, atol=atol, rtol=rtol, equal_nan=True)
    return model


def seeded(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Numbers of both signs that are the same in every run."""
    g = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=g).bool()
    if dtype.is_floating_point:
        return torch.randn(shape, generator=g, dtype=torch.float32).to(dtype)
    low = 0 if dtype is torch.uint8 else -9
    return torch.randint(low, 10, shape, generator=g).to(dtype)
