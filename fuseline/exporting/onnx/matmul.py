"""Matrix products."""

from __future__ import annotations

from fuseline.exporting.onnx.pointwise import HALVES
from fuseline.exporting.onnx.registry import emits
from fuseline.exporting.onnx.view import reshaped, sliced
from fuseline.exporting.onnx.writer import Writer
from fuseline.ir.ops.matmul import GroupedMatmul, Linear, Matmul
from fuseline.ir.ops.view import Permute
from fuseline.ir.types import Dim, DType, product


@emits(Linear)
def _linear(w: Writer, op: Linear) -> str:
    """One Gemm of matrices; else a product, and the bias behind it.

    A narrow type rounds product and bias together, so its rows become a matrix for a Gemm.
    """
    x, weight = w[op.x], w[op.weight]
    bias = [] if op.bias is None else [w[op.bias]]
    rank = op.x.tensor.rank
    if rank == 2 or (bias and op.x.dtype in HALVES):
        matrix: tuple[Dim, ...] = (product(op.x.shape[:-1]), op.x.shape[-1])
        rows = x if rank == 2 else reshaped(w, x, op.x.shape, matrix)
        given = untransposed(w, op)
        y = w.node("Gemm", rows, given or weight, *bias, transB=0 if given else 1)
        return y if rank == 2 else reshaped(w, y, (matrix[0], op.y.shape[-1]), op.y.shape)
    y = w.node("MatMul", x, turned(w, op))
    return w.node("Add", y, *bias) if bias else y


def untransposed(w: Writer, op: Linear) -> str | None:
    """The weight ``[K, N]``, where it was turned to ``[N, K]`` for the product."""
    owner = op.weight.owner
    if isinstance(owner, Permute) and owner.dims == (1, 0):
        return w.names.get(owner.x)
    return None


def turned(w: Writer, op: Linear) -> str:
    """The weight ``[K, N]``."""
    return untransposed(w, op) or w.node("Transpose", w[op.weight], perm=[1, 0])


@emits(Matmul)
def _matmul(w: Writer, op: Matmul) -> str:
    return w.node("MatMul", w[op.lhs], w[op.rhs])


@emits(GroupedMatmul)
def _grouped(w: Writer, op: GroupedMatmul) -> str:
    """Group by group; rows behind the last group are 0."""
    groups = op.weight.shape[0]
    assert isinstance(groups, int), "a weight has known dims"
    ends, rows = w.of(op.ends, DType.I64), op.x.shape[0]
    start, parts = w.ints(0), list[str]()
    for group in range(groups):
        end = sliced(w, ends, 0, group, group + 1)
        own = w.node("Slice", w[op.x], start, end, w.ints(0))
        weight = w.node("Gather", w[op.weight], w.scalar(group, DType.I64), axis=0)
        parts.append(w.node("Gemm", own, weight))
        start = end
    left = w.node("Sub", w.size(rows), start)
    shape = w.node("Concat", left, w.size(op.y.shape[1]), axis=0)
    zero = w.scalar(0, op.y.dtype)
    return w.node("Concat", *parts, w.node("Expand", zero, shape), axis=0)


__all__ = ["turned"]
