"""Operands for timing an op: seeded, and valid: an index lies where there is something to read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fuseline.ir.core import Op, Value
from fuseline.ir.ops.adapters import MultiLora
from fuseline.ir.ops.buffer import IndexWrite
from fuseline.ir.ops.experts import Experts
from fuseline.ir.ops.fused import QkNormRopeWrite
from fuseline.ir.ops.index import (
    Embedding,
    Gather,
    Index,
    IndexCopy,
    IndexPut,
    IndexSelect,
    Scatter,
)
from fuseline.ir.ops.latent import LatentAttention
from fuseline.ir.ops.matmul import GroupedMatmul
from fuseline.ir.ops.mla_projection import MlaProjectionWrite
from fuseline.ir.ops.raised import Attention
from fuseline.ir.types import Dim, product


def ties(op: Op) -> tuple[tuple[Dim, Dim], ...]:
    """Sizes of an op that are equal in every call, but may be other symbols: tracing does not
    compare the number of indices with what is written at them.
    """
    match op:
        case IndexWrite() | IndexCopy():
            return ((op.src.shape[op.axis], product(op.index.shape)),)
        case QkNormRopeWrite():
            return ((op.q.shape[1], product(op.index.shape)),)
        case MlaProjectionWrite() if op.index is not None and op.latent is not None:
            return ((op.latent.shape[-2], product(op.index.shape)),)
        case _:
            return ()


def fill(
    op: Op,
    tensor_of: Callable[[Value], Tensor],
    number_of: Callable[[Dim], int],
    seed: int = 0,
) -> None:
    """Fill those operands of an op that are no floating numbers; each may be a part of a larger
    tensor, which holds zeros.

    Truth values and indices are random; places that are written to are distinct, positions the last
    ones, and ends of groups equal shares. What else is an integer stays 0: a valid index of
    anything.
    """
    if not op.operands:
        return
    numbers = torch.Generator(tensor_of(op.operands[0]).device).manual_seed(seed)
    for value in op.operands:
        if tensor_of(value).dtype == torch.bool:
            _ = _apart(tensor_of(value)).random_(0, 2, generator=numbers)
    size = _Sizes(tensor_of)
    match op:
        case Embedding():
            size.random(op.indices, size.of(op.weight, 0), numbers)
        case Index() | IndexPut():
            for axis, index in zip(op.axes, op.indices, strict=True):
                size.random(index, size.of(op.x, axis), numbers)
        case IndexSelect() | Gather() | Scatter():
            size.random(op.index, size.of(op.x, op.axis), numbers)
        case IndexCopy():
            size.distinct(op.index, size.of(op.x, op.axis))
        case IndexWrite():
            size.distinct(op.index, size.of(op.buffer, op.axis))
        case QkNormRopeWrite():
            size.distinct(op.index, size.of(op.k_cache, 2))
        case MlaProjectionWrite() if op.index is not None and op.latent_cache is not None:
            size.distinct(op.index, size.of(op.latent_cache, -2))
        case Attention() if op.positions is not None:
            size.last(op.positions, size.of(op.k, -2))
        case LatentAttention() if op.positions is not None:
            size.last(op.positions, size.of(op.latent, -2))
        case MultiLora():
            count = size.of(op.a, 0)
            active = count if op.active is None else min(count, number_of(op.active))
            size.random(op.ids, active, numbers)
        case Experts():
            _choose(tensor_of(op.indices), op.experts + op.identities, numbers)
        case GroupedMatmul():
            _share(tensor_of(op.ends), size.of(op.x, 0))
        case _:
            pass


class _Sizes:
    """Fills integers by the extents that they index."""

    def __init__(self, tensor_of: Callable[[Value], Tensor]) -> None:
        self.tensor_of = tensor_of

    def of(self, value: Value, axis: int) -> int:
        return self.tensor_of(value).shape[axis]

    def random(self, value: Value, limit: int, numbers: torch.Generator) -> None:
        """Any places below the limit."""
        tensor = _apart(self.tensor_of(value))
        if limit > 0 and tensor.dtype != torch.bool:
            tensor.random_(0, limit, generator=numbers)

    def distinct(self, value: Value, limit: int) -> None:
        """Places that differ as far as there are enough of them."""
        tensor = _apart(self.tensor_of(value))
        count = torch.arange(tensor.numel(), device=tensor.device) % max(limit, 1)
        tensor.copy_(count.reshape(tensor.shape))

    def last(self, value: Value, limit: int) -> None:
        """The last positions, one behind the other along the last dim."""
        tensor = _apart(self.tensor_of(value))
        rows = tensor.shape[-1] if tensor.dim() else 1
        steps = torch.arange(rows, device=tensor.device) + max(0, limit - rows)
        tensor.copy_(steps.clamp(max=max(limit - 1, 0)).reshape(tensor.shape[-1:]))


def _apart(tensor: Tensor) -> Tensor:
    """A tensor without the dims along which all elements are the same one."""
    for axis, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[axis] > 1:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def _choose(indices: Tensor, experts: int, numbers: torch.Generator) -> None:
    """Different experts for each token, all of them about as often."""
    rows, top = indices.shape
    scores = torch.rand(rows, experts, device=indices.device, generator=numbers)
    indices.copy_(scores.topk(min(top, experts), -1).indices)


def _share(ends: Tensor, rows: int) -> None:
    """Groups of equal size."""
    parts = torch.arange(1, ends.numel() + 1, device=ends.device)
    ends.copy_((parts * rows // ends.numel()).reshape(ends.shape))


__all__ = ["fill", "ties"]
