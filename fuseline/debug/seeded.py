"""Seeded arguments for any func: they follow from their types, and from who reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fuseline.ir.core import Func, Op, Trait, Value
from fuseline.ir.evaluate import Argument
from fuseline.ir.ops.adapters import MultiLora
from fuseline.ir.ops.buffer import IndexWrite
from fuseline.ir.ops.experts import Experts
from fuseline.ir.ops.index import (
    Embedding,
    Gather,
    Index,
    IndexCopy,
    IndexPut,
    IndexSelect,
    Scatter,
)
from fuseline.ir.types import BufferType, IntType, Range, substitute

Overrides: TypeAlias = Mapping[str, Argument]

_POSITIVE = ("sqrt", "rsqrt", "log")
"""Ops that make NaN of numbers below zero."""

_SIZES = (3, 5, 7, 2, 11, 13)


def make_binding(func: Func, *, smallest: bool = False) -> dict[str, int]:
    """A value for each symbol of a func, within its range: small odd numbers, or the smallest."""
    return {
        name: _within(1 if smallest else _SIZES[i % len(_SIZES)], func.symbols[name])
        for i, name in enumerate(sorted(func.symbols))
    }


def _within(size: int, limits: Range) -> int:
    size = max(size, limits.lo)
    return size if limits.hi is None else min(size, limits.hi)


def make_arguments(
    func: Func, binding: Mapping[str, int], *, seed: int = 0, given: Overrides | None = None
) -> list[Argument]:
    """Seeded arguments of a func under a binding of its symbols.

    Floats are normal, bools even, integers within the extent that they index (each one once where
    there are enough of them, so that writes by index do not collide), else 0, 1 or 2. ``given``
    overrides arguments by name.
    """
    generator = torch.Generator().manual_seed(seed)
    given = given or {}
    arguments: list[Argument] = []
    for arg in func.args:
        made = _argument(func, arg, binding, generator)
        fixed = given.get(arg.hint)
        arguments.append(made if fixed is None else fixed)
    return arguments


def _argument(
    func: Func, arg: Value, binding: Mapping[str, int], generator: torch.Generator
) -> Argument:
    if isinstance(arg.type, IntType):
        return substitute(arg.type.value, binding)
    if arg.origin is not None and arg.origin.kind == "count":
        return torch.tensor(binding[arg.origin.name])
    shape = [substitute(d, binding) for d in arg.shape]
    dtype = arg.dtype.torch
    if dtype.is_floating_point:
        made = torch.randn(shape, generator=generator, dtype=torch.float64)
        if any(op.name in _POSITIVE for op in func.users(arg)):
            made = made.abs() + 0.1
        return made.to(dtype)
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    limits = [substitute(e, binding) for e in _indexed_extents(func, arg)]
    limit = min(limits, default=3)
    count = 1
    for extent in shape:
        count *= extent
    if count <= limit:
        return torch.randperm(limit, generator=generator)[:count].reshape(shape).to(dtype)
    return torch.randint(0, max(limit, 1), shape, generator=generator).to(dtype)


def _indexed_extents(func: Func, value: Value) -> Iterator[Any]:
    """The extents that an integer value indexes, itself or by way of other integer ops."""
    seen, stack = {value}, [value]
    while stack:
        current = stack.pop()
        for op in func.users(current):
            yield from _extents(op, current)
            for made in op.results:
                if made not in seen and not made.dtype.is_float:
                    seen.add(made)
                    stack.append(made)


def _extents(op: Op, value: Value) -> Iterator[Any]:
    match op:
        case Embedding() if value is op.indices:
            yield op.weight.shape[0]
        case Index() | IndexPut():
            for index, axis in zip(op.indices, op.axes, strict=True):
                if index is value:
                    yield op.x.shape[axis]
        case IndexSelect() | Gather() | Scatter() | IndexCopy() if value is op.index:
            yield op.x.shape[op.axis]
        case Experts() if value is op.indices:
            yield op.experts
        case MultiLora() if value is op.ids:
            yield op.a.shape[0]
        case IndexWrite() if value is op.index:
            yield op.buffer.shape[op.axis]
        case _ if op.has(Trait.WRITES) and getattr(op, "index", None) is value:
            for other in op.operands:
                if isinstance(other.type, BufferType):
                    yield other.shape[2 if other.tensor.rank == 4 else 0]
        case _:
            return


def model_arguments(
    func: Func,
    known: Sequence[Argument | None] = (),
    *,
    seed: int = 0,
    binding: Mapping[str, int] | None = None,
) -> list[Argument]:
    """Arguments on which a func's numbers are like those of a model.

    Args:
        func: before passes, or after some.
        known: arguments that are at hand, in order; None for one that is not.
        seed: of the others. Weights are as large as training begins with, norms near one: sums of
            products then keep their size from layer to layer.
        binding: the sizes; any that are allowed, where nothing is said.

    """
    made = make_arguments(func, make_binding(func) if binding is None else binding, seed=seed)
    for number, arg in enumerate(func.args):
        given = known[number] if number < len(known) else None
        value = made[number]
        if given is not None:
            made[number] = given
        elif arg.origin and arg.origin.kind in ("param", "const") and isinstance(value, Tensor):
            made[number] = _weight(value)
    return made


def _weight(seeded: Tensor) -> Tensor:
    if not seeded.is_floating_point():
        return seeded
    if seeded.dim() < 2:
        return 1 + seeded * 0.2
    return seeded * max(seeded.shape[-1], 1) ** -0.5


def added_argument(arg: Value, binding: Mapping[str, int]) -> Tensor:
    """What a program gives itself: state of zeros, or an integer of the call as data."""
    if arg.origin is not None and arg.origin.kind == "count":
        return torch.tensor(binding[arg.origin.name])
    return torch.zeros(*map(int, arg.shape), dtype=arg.dtype.torch)


def own_argument(given: Argument, arg: Value) -> Argument:
    """A copy of an argument; of a number that a pass has lifted, the tensor."""
    if isinstance(given, Tensor):
        return given.clone()
    return given if isinstance(arg.type, IntType) else torch.tensor(given)


def is_buffer(value: Value) -> bool:
    """Whether a value is memory that a func may write."""
    return isinstance(value.type, BufferType)


__all__ = [
    "Overrides",
    "added_argument",
    "is_buffer",
    "make_arguments",
    "make_binding",
    "model_arguments",
    "own_argument",
]
