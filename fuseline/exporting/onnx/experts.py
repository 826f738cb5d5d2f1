"""Routed experts, and the branch beside them.

Two forms. By rows: each expert takes the rows that chose it, and what all give is put back in
order: no product is computed twice or for nothing, but the number of rows is told by the data.
Dense: each expert takes all rows, and each row keeps what it chose: every size is known, and a
router that chooses K of E experts pays for E.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fuseline.exporting.onnx.index import added
from fuseline.exporting.onnx.pointwise import wide
from fuseline.exporting.onnx.registry import function
from fuseline.exporting.onnx.view import sliced
from fuseline.exporting.onnx.writer import Writer
from fuseline.frontend.builder import Builder
from fuseline.ir.core import Value
from fuseline.ir.ops import pointwise as p
from fuseline.ir.ops.experts import Experts, Moe
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.types import DType, TensorType, promote


@dataclass(frozen=True)
class _Kinds:
    """Element types: of the rows, of the weights, and of their products."""

    x: DType
    weights: DType

    @property
    def both(self) -> DType:
        """What a row times its weight is."""
        one = (1,)
        return promote([TensorType(self.x, one), TensorType(self.weights, one)])


@function(Experts)
def _experts(w: Writer, op: Experts) -> str:
    return _routed(w, op)


@function(Moe)
def _moe(w: Writer, op: Moe) -> str:
    routed = _routed(w, op)
    if op.shared_down is None or op.shared_body is None:
        return routed
    shared, kind = _shared(w, op)
    if op.routed_factor != 1.0:
        routed = _times(w, routed, op.routed_factor, op.dtype)
    total = promote([op.y.tensor, op.y.tensor.with_dtype(kind)])
    found = w.node("Add", w.cast(routed, op.dtype, total), w.cast(shared, kind, total))
    if op.factor != 1.0:
        found = _times(w, found, op.factor, total)
    return w.cast(found, total, op.y.dtype)


def _times(w: Writer, name: str, factor: float, dtype: DType) -> str:
    """A product with a number, which is not rounded to the type first."""
    found = w.node("Mul", w.cast(name, dtype, wide(dtype)), w.scalar(factor, wide(dtype)))
    return w.cast(found, wide(dtype), dtype)


def _shared(w: Writer, op: Moe) -> tuple[str, DType]:
    """The shared branch, and its type."""

    def gates(b: Builder, op: Moe) -> list[Value]:
        return [b.add(Linear(op.x, up, None)).y for up in op.shared_up]

    assert op.shared_body is not None, "there is a shared branch"
    (hidden,) = w.inline(op.shared_body, w.expand(op, gates))
    assert op.shared_down is not None, "there is a shared branch"
    kind = op.shared_body.returns[0].dtype
    y = w.node("Gemm", hidden, w[op.shared_down], transB=1)
    if op.shared_gate is not None:

        def sigmoid(b: Builder, op: Moe) -> Value:
            assert op.shared_gate is not None, "there is a gate"
            return b.cast(b.add(p.Sigmoid(op.shared_gate)).y, kind)

        y = w.node("Mul", w.expand(op, sigmoid)[0], y)
    return y, kind


def _routed(w: Writer, op: Experts) -> str:
    return _dense(w, op) if w.functions.dense else _by_rows(w, op)


# -- by rows --------------------------------------------------------------------------------


def _by_rows(w: Writer, op: Experts) -> str:
    """Expert by expert, as `fuseline.ir.ops.experts.experts_reference`."""
    kinds = _Kinds(op.x.dtype, op.weights.dtype)
    chosen: Any = op.indices.shape[1]
    slots = w.node("Reshape", w[op.indices], w.ints(-1))
    weights = w.node("Reshape", w[op.weights], w.ints(-1, 1))
    places: list[str] = []
    rows: list[str] = []
    in_turn = op.combine == "in_turn"
    shape = w.node(
        "Concat", w.node("Shape", w[op.x], start=0, end=1), w.size(op.y.shape[1]), axis=0
    )
    total = w.node("Expand", w.scalar(0, op.dtype), shape) if in_turn else ""
    for number in range(op.experts + op.identities):
        own = w.node("Equal", slots, w.scalar(number, DType.I64))
        place = w.node("Squeeze", w.node("NonZero", own), w.ints(0))
        token = w.node("Div", place, w.scalar(chosen, DType.I64))
        given = w.node("Gather", w[op.x], token, axis=0)
        weight = w.node("Gather", weights, place, axis=0)
        if op.weigh == "input":
            given = w.cast(_weighed(w, given, weight, kinds), kinds.both, kinds.x)
        out = _through(w, op, number, given) if number < op.experts else given
        kind = kinds.x
        if op.weigh == "output":
            out, kind = _weighed(w, out, weight, kinds), kinds.both
        if in_turn:
            at = w.node("Unsqueeze", token, w.ints(1))
            total = added(w, total, at, w.cast(out, kind, op.dtype), op.dtype)
        places.append(place)
        rows.append(w.cast(out, kind, kinds.both))
    if in_turn:
        return total
    every = w.node("Concat", *rows, axis=0)
    order = w.node("Unsqueeze", w.node("Concat", *places, axis=0), w.ints(1))
    return _summed(w, op, w.node("ScatterND", every, order, every), kinds.both)


def _weighed(w: Writer, rows: str, weight: str, kinds: _Kinds) -> str:
    both = kinds.both
    return w.node("Mul", w.cast(rows, kinds.x, both), w.cast(weight, kinds.weights, both))


def _summed(w: Writer, op: Experts, rows: str, kind: DType) -> str:
    """Rows of all slots ``[T * K, D]``, added up in float32 and rounded once."""
    chosen: Any = op.indices.shape[1]
    width: Any = op.y.shape[1]
    apart = w.node("Reshape", rows, w.ints(-1, chosen, width))
    total = wide(promote([op.y.tensor.with_dtype(kind), op.y.tensor]))
    found = w.node("ReduceSum", w.cast(apart, kind, total), w.ints(1), keepdims=0)
    return w.cast(found, total, op.dtype)


def _through(w: Writer, op: Experts, number: int, given: str) -> str:
    """Rows through one expert."""
    ups = _matrices(w, op.up, number, op.experts)
    bias = None if op.up_bias is None else _one(w, op.up_bias, number)
    wide_: Any = None
    if bias is not None and len(ups) > 1:
        wide_ = op.up[0].shape[-1 if op.transposed else -2]
    products: list[str] = []
    for place, matrix in enumerate(ups):
        part = bias
        if bias is not None and wide_ is not None:
            part = sliced(w, bias, 0, place * wide_, (place + 1) * wide_)
        products.append(
            _product(w, given, matrix, part, transposed=op.transposed, apart=op.round_bias)
        )
    (inner,) = w.inline(op.body, _sides(w, op, products, 1))
    (down,) = _matrices(w, op.down, number, op.experts)
    bias = None if op.down_bias is None else _one(w, op.down_bias, number)
    return _product(w, inner, down, bias, transposed=op.is_down_transposed, apart=op.round_bias)


def _one(w: Writer, packed: Value, number: int) -> str:
    return w.node("Gather", w[packed], w.scalar(number, DType.I64), axis=0)


def _matrices(w: Writer, given: Sequence[Value], number: int, experts: int) -> list[str]:
    """The matrices of an expert: slices of packed tensors, or those given one by one."""
    if given[0].tensor.rank == 3:
        return [_one(w, value, number) for value in given]
    count = len(given) // experts
    return [w[value] for value in given[number * count : (number + 1) * count]]


def _product(
    w: Writer, x: str, matrix: str, bias: str | None, *, transposed: bool, apart: bool
) -> str:
    """One product; the bias is rounded with it, or apart."""
    joined = [] if bias is None or apart else [bias]
    y = w.node("Gemm", x, matrix, *joined, transB=0 if transposed else 1)
    return w.node("Add", y, bias) if bias is not None and apart else y


def _sides(w: Writer, op: Experts, products: Sequence[str], axis: int) -> list[str]:
    """Gate and up, or the one product."""
    if op.gated and not op.interleaved and len(products) == 2:
        return list(products)
    hidden = products[0] if len(products) == 1 else w.node("Concat", *products, axis=axis)
    if not op.gated:
        return [hidden]
    if op.interleaved:
        return [sliced(w, hidden, axis, start, None, 2) for start in (0, 1)]
    width: Any = op.up[0].shape[-1 if op.transposed else -2]
    half = width * len(products) // 2
    return [sliced(w, hidden, axis, 0, half), sliced(w, hidden, axis, half, None)]


# -- dense ----------------------------------------------------------------------------------


def _dense(w: Writer, op: Experts) -> str:
    """All rows through all experts at once: ``[E, T, D]``, of which each row takes its own."""
    kinds = _Kinds(op.x.dtype, op.weights.dtype)
    x = w.node("Unsqueeze", w[op.x], w.ints(0))
    passed = x
    if op.weigh == "input":
        weight = w.node("Unsqueeze", _spread(w, op), w.ints(2))
        every = w.cast(_weighed(w, x, weight, kinds), kinds.both, kinds.x)
        x = sliced(w, every, 0, 0, op.experts)
        passed = sliced(w, every, 0, op.experts, None)
    ups = [_stacked(w, op, op.up, place, op.transposed) for place in range(_count(op.up, op))]
    products = [w.node("MatMul", x, matrix) for matrix in ups]
    if op.up_bias is not None:
        bias = w.node("Unsqueeze", w[op.up_bias], w.ints(1))
        width: Any = op.up[0].shape[-1 if op.transposed else -2]
        parts = [sliced(w, bias, 2, i * width, (i + 1) * width) for i in range(len(ups))]
        parts = parts if len(ups) > 1 else [bias]
        products = [w.node("Add", y, part) for y, part in zip(products, parts, strict=True)]
    (inner,) = w.inline(op.body, _sides(w, op, products, 2))
    y = w.node("MatMul", inner, _stacked(w, op, op.down, 0, op.is_down_transposed))
    if op.down_bias is not None:
        y = w.node("Add", y, w.node("Unsqueeze", w[op.down_bias], w.ints(1)))
    if op.identities:
        y = w.node("Concat", y, passed, axis=0)
    return _summed(w, op, _picked(w, op, y, kinds), kinds.both)


def _count(given: Sequence[Value], op: Experts) -> int:
    return len(given) if given[0].tensor.rank == 3 else len(given) // op.experts


def _stacked(w: Writer, op: Experts, given: Sequence[Value], place: int, transposed: bool) -> str:
    """The matrices of all experts ``[E, K, N]``."""
    if given[0].tensor.rank == 3:
        packed = w[given[place]]
    else:
        count = len(given) // op.experts
        each = [w.node("Unsqueeze", w[v], w.ints(0)) for v in given[place::count]]
        packed = w.node("Concat", *each, axis=0)
    return packed if transposed else w.node("Transpose", packed, perm=[0, 2, 1])


def _spread(w: Writer, op: Experts) -> str:
    """The weights as ``[E, T]``, 0 where a row has not chosen an expert."""
    rows = w.node("Shape", w[op.x], start=0, end=1)
    count = w.ints(op.experts + op.identities)
    zeros = w.node("Expand", w.scalar(0, op.weights.dtype), w.node("Concat", rows, count, axis=0))
    return w.node(
        "Transpose", w.node("ScatterElements", zeros, w[op.indices], w[op.weights], axis=1),
        perm=[1, 0],
    )  # fmt: skip


def _picked(w: Writer, op: Experts, y: str, kinds: _Kinds) -> str:
    """What each row takes, slot by slot, weighed: ``[T * K, D]``."""
    chosen: Any = op.indices.shape[1]
    slots = w.node("Reshape", w[op.indices], w.ints(-1))
    if op.identities and op.weigh == "output":  # all of them pass on the same
        slots = w.node("Min", slots, w.scalar(op.experts, DType.I64))
    count = w.node("Squeeze", w.node("Shape", slots), w.ints(0))
    every = w.node("Range", w.scalar(0, DType.I64), count, w.scalar(1, DType.I64))
    token = w.node("Div", every, w.scalar(chosen, DType.I64))
    both = [w.node("Unsqueeze", each, w.ints(1)) for each in (slots, token)]
    rows = w.node("GatherND", y, w.node("Concat", *both, axis=1))
    if op.weigh == "input":
        return w.cast(rows, kinds.x, kinds.both)
    return _weighed(w, rows, w.node("Reshape", w[op.weights], w.ints(-1, 1)), kinds)
