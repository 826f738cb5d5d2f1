"""A weight for every expert of every token that is 0 for all but the chosen ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fuseline.ir.core import Op, Trait, Value
from fuseline.ir.evaluate import call_reference
from fuseline.ir.ops.create import Full
from fuseline.ir.ops.index import Gather, Scatter
from fuseline.ir.ops.pointwise import Cast, Eq, Mul, Where
from fuseline.ir.ops.reduce import Sort, Sum, TopK
from fuseline.ir.ops.view import Expand, Reshape, Slice
from fuseline.ir.types import same
from fuseline.passes.constants import number, uniform
from fuseline.passes.expert_rows import is_running, uncast, uncast_once
from fuseline.passes.match import reshaped


@dataclass(frozen=True)
class Gate:
    """A value ``[..., E]``: ``values`` ``[..., K]`` at the chosen experts, ``fill`` elsewhere."""

    indices: Value
    values: Value
    fill: Tensor

    @classmethod
    def zero_elsewhere(cls, indices: Value, values: Value) -> Gate:
        """Weights of the chosen experts, and 0 for all others."""
        return cls(indices, values, torch.zeros(1, 1, dtype=values.dtype.torch))

    @property
    def is_zero_elsewhere(self) -> bool:
        """Whether experts that were not chosen have a weight of exactly 0."""
        return bool((self.fill == 0).all())


def gate_of(value: Value) -> Gate | None:
    """A value ``[..., E]`` that has one number wherever an expert was not chosen."""
    op, last = value.owner, len(value.shape) - 1
    if last < 1 or op is None:
        return None
    match op:
        case Scatter(x, index, src, axis=axis) if axis == last and (fill := number(x)) is not None:
            values = src if src.shape == index.shape else Expand(src, shape=index.shape).y
            return Gate(index, values, torch.full((1, 1), fill, dtype=x.dtype.torch))
        case Sum(x, axes=(axis,), keepdim=False) if axis == last:
            return _one_hot_sum(x)
        case _ if op.has(Trait.POINTWISE):
            return _pointwise(op)
        case _:
            return None


def _pointwise(op: Op) -> Gate | None:
    """An op on such values, on constants, and (a product, a choice) on weights of all experts."""
    gates = {v: g for v in op.operands if v.shape and (g := gate_of(v)) is not None}
    if not gates:
        return None
    first = next(iter(gates.values()))
    if any(g.indices is not first.indices for g in gates.values()):
        return None
    mapping, fills = dict[Value, Value](), dict[Value, Tensor]()
    for value in op.operands:
        if (gate := gates.get(value)) is not None:
            mapping[value], fills[value] = gate.values, gate.fill
        elif isinstance(value.owner, Full) and uniform(value) is not None:
            mapping[value] = _scalar(value)
            (fills[value],) = call_reference(_scalar(value).owner or value.owner, {}, {})
        elif value.shape == op.results[0].shape and _may_be_chosen(op, value):
            mapping[value] = Gather(value, first.indices, axis=len(value.shape) - 1).y
            fills[value] = torch.full((1, 1), float("nan")).to(value.dtype.torch)
        else:
            return None
    if isinstance(op, Mul) and any(g.is_zero_elsewhere for g in gates.values()):
        fill = torch.zeros(1, 1, dtype=op.y.dtype.torch)  # the other factor is finite
    else:
        (fill,) = call_reference(op, fills, {})
    return Gate(first.indices, op.clone(mapping).results[0], fill)


def _may_be_chosen(op: Op, value: Value) -> bool:
    """Whether an operand is a factor, or one of two choices: a condition says nothing of zeros."""
    return isinstance(op, Mul) or (isinstance(op, Where) and value is not op.operands[0])


def _scalar(value: Value) -> Value:
    """A constant as one number."""
    owner = value.owner
    assert isinstance(owner, Full), "asked for constants only"
    return value if not value.shape else Full(value=owner.value, dtype=owner.dtype).y


def _one_hot_sum(x: Value) -> Gate | None:
    """``(one_hot(indices) * weights).sum(-2)``, or a choice in place of the product."""
    op = x.owner
    shape, experts = x.shape[:-1], x.shape[-1]
    match op:
        case Mul(lhs, rhs):
            pairs = [(lhs, rhs), (rhs, lhs)]
        case Where(condition, chosen, other) if number(other) == 0:
            pairs = [(condition, chosen)]
        case _:
            return None
    for hot, weights in pairs:
        compared = uncast_once(hot).owner
        if not isinstance(compared, Eq) or weights.tensor.numel != x.tensor.numel / experts:
            continue
        for ids, numbers in ((compared.lhs, compared.rhs), (compared.rhs, compared.lhs)):
            is_range = is_running(uncast(numbers)) and same(numbers.tensor.numel, experts)
            if is_range and ids.shape == weights.shape == (*shape, 1):
                indices, values = (reshaped(v, shape) for v in (ids, weights))
                return Gate.zero_elsewhere(indices, values)
    return None


def are_distinct(indices: Value) -> bool:
    """Whether no expert is chosen twice for one token."""
    match indices.owner:
        case TopK(axis=axis) | Sort(axis=axis):
            return axis == len(indices.shape) - 1
        case Slice(x) | Cast(x):
            return are_distinct(x)
        case Reshape(x) if x.shape[-1:] == indices.shape[-1:]:
            return are_distinct(x)
        case _:
            return same(indices.shape[-1], 1)
