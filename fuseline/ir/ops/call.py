"""The op for everything the IR does not know: a call of the original ATen overload."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from fuseline.ir.core import (
    Op,
    Opaque,
    Ref,
    Value,
    attribute,
    variadic_operand,
    variadic_result,
)
from fuseline.ir.types import DType, TensorType


class AtenCall(Op, name="aten.call"):
    """Run ``target`` (``aten.sort.stable``) on the original arguments.

    ``args`` and ``kwargs`` (pairs of name and value) mirror the call: `Ref` stands for an operand,
    `DType` and `Opaque` for torch constants, dims for run-time integers. ``types`` are those of
    the results. Operands whose numbers are ``contiguous`` are given in row-major order, copied
    where they do not lie so. Not pure in general: kept in order, and never merged or removed while
    read.
    """

    xs: tuple[Value, ...] = variadic_operand()
    target: str = attribute()
    args: tuple[object, ...] = attribute(default=())
    kwargs: tuple[object, ...] = attribute(default=())
    types: tuple[TensorType, ...] = attribute()
    contiguous: tuple[int, ...] = attribute(default=())
    ys: tuple[Value, ...] = variadic_result()

    def infer(self) -> tuple[TensorType, ...]:
        return self.types

    @staticmethod
    def reference(
        xs: tuple[Tensor, ...],
        *,
        target: str,
        args: tuple[object, ...],
        kwargs: tuple[object, ...],
        types: tuple[TensorType, ...],
        contiguous: tuple[int, ...],
    ) -> tuple[Tensor, ...]:
        overload = resolve(target)
        xs = tuple(x.contiguous() if i in contiguous else x for i, x in enumerate(xs))
        named = {str(k): restore(v, xs) for k, v in cast("Any", kwargs)}
        out = overload(*(restore(a, xs) for a in args), **named)
        found: list[Any] = [out] if isinstance(out, Tensor) else list(out)
        tensors = tuple(t for t in found if isinstance(t, Tensor))
        if len(tensors) < len(types) == len(found):
            # Tracing gives a tensor where running may give none: the workspace of an LSTM.
            pairs = zip(types, found, strict=True)
            return tuple(t if isinstance(t, Tensor) else _nothing(of, xs) for of, t in pairs)
        return tensors[: len(types)]


def _nothing(of: TensorType, xs: tuple[Tensor, ...]) -> Tensor:
    """A tensor without elements, for one that an operator leaves undefined.

    Raises:
        RuntimeError: tracing has found elements.

    """
    if 0 not in of.shape:
        raise RuntimeError(f"an operator gave nothing where tracing found {of}")
    shape = [extent if isinstance(extent, int) else 0 for extent in of.shape]
    return torch.empty(shape, dtype=of.dtype.torch, device=xs[0].device if xs else None)


def called(op: Op) -> str:
    """What an op is called: the operator's name for a call of one, else the op's own."""
    return op.target if isinstance(op, AtenCall) else op.name


def resolve(target: str) -> Any:
    """The operator overload of a dotted name, such as ``aten.sort.stable``.

    Raises:
        AttributeError: no library that is loaded defines it, or it is no such name.

    """
    if target.count(".") < 2:
        raise AttributeError(f"{target!r} is not namespace.name.overload")
    namespace, name, overload = target.split(".", 2)
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


def reads_memory(target: str) -> bool:
    """Whether an operator may take an operand's memory as it lies, whatever its strides are.

    What other libraries define, and kernels within ATen, are called with what the program has
    brought into order for them; some of ATen's own views are about memory, too. All else that is
    public in ATen takes any strides.
    """
    namespace, name, overload = target.split(".", 2)
    if namespace != "aten" or name.startswith(("_", "mkldnn", "cudnn", "miopen", "as_strided")):
        return True
    return name.startswith("view") and overload == "dtype"


def waits(target: str) -> bool:
    """Whether an operator looks at data on the host: its results, or their sizes, depend on it."""
    tags = getattr(resolve(target), "tags", ())
    return torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags


def restore(value: Any, operands: tuple[Tensor, ...]) -> Any:
    """The torch value of an attribute of `AtenCall`."""
    match value:
        case Ref(index):
            return operands[index]
        case DType():
            return value.torch
        case Opaque("device", text):
            return torch.device(text)
        case Opaque(_, text):
            return getattr(torch, text)
        case tuple():
            return [restore(v, operands) for v in cast("tuple[Any, ...]", value)]
        case _:
            return value
