"""Calls of torch's own operators that the IR keeps whole: those that ONNX has a form for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from fuseline.exporting.onnx.registry import CannotWrite, emits
from fuseline.exporting.onnx.writer import Writer
from fuseline.ir.core import Ref
from fuseline.ir.ops.call import AtenCall
from fuseline.ir.types import DType

_Call = Callable[[Writer, AtenCall], str]
_CALLS: dict[str, _Call] = {}


def _of(*targets: str) -> Callable[[_Call], _Call]:
    def register(call: _Call) -> _Call:
        _CALLS.update(dict.fromkeys(targets, call))
        return call

    return register


@emits(AtenCall)
def _call(w: Writer, op: AtenCall) -> Sequence[str]:
    call = _CALLS.get(op.target)
    if call is None:
        raise CannotWrite(f"the operator {op.target}")
    return [call(w, op)]


def _operand(w: Writer, op: AtenCall, number: int) -> str | None:
    """The tensor that is an argument of a call, if there is one."""
    value = op.args[number] if number < len(op.args) else None
    return w[op.xs[value.index]] if isinstance(value, Ref) else None


@_of("aten.convolution.default")
def _convolution(w: Writer, op: AtenCall) -> str:
    """Of ``[N, C, ...]`` by ``[O, C / groups, ...]``, with as much padding at both ends."""
    x, weight, bias = (_operand(w, op, n) for n in range(3))
    assert x is not None, "a convolution has an input"
    assert weight is not None, "a convolution has a weight"
    stride, padding, dilation, transposed, extra, groups = op.args[3:9]
    rank = op.types[0].rank - 2
    if transposed or any(cast("tuple[int, ...]", extra)):
        raise CannotWrite("a transposed convolution")
    if any(v.tensor.rank != rank + 2 for v in op.xs[:2]):
        raise CannotWrite(f"{op.target} of a tensor without a batch")
    ends = _all(padding, rank)
    return w.node(
        "Conv", x, weight, *([] if bias is None else [bias]), strides=_all(stride, rank),
        pads=[*ends, *ends], dilations=_all(dilation, rank), group=groups,
    )  # fmt: skip


def _all(value: Any, rank: int) -> list[int]:
    """One number for each dim, of which one may stand for all."""
    if not isinstance(value, tuple) or not all(isinstance(v, int) for v in cast("Any", value)):
        raise CannotWrite(f"a convolution with {value!r}")
    given = list(cast("tuple[int, ...]", value))
    return given * rank if len(given) == 1 else given


@_of("aten.nonzero.default")
def _nonzero(w: Writer, op: AtenCall) -> str:
    x = w.of(op.xs[0], DType.BOOL)
    return w.node("Transpose", w.node("NonZero", x), perm=[1, 0])
