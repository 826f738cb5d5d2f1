"""Reference execution: a func run op by op through each op's ``reference``."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

import sympy
from torch import Tensor

from fuseline.ir.core import Func, IRError, Op, Value
from fuseline.ir.ops.call import AtenCall
from fuseline.ir.types import Dim, IntType, substitute

Argument: TypeAlias = Tensor | int


def bind(func: Func, arguments: Sequence[Argument]) -> dict[str, int]:
    """The symbols' values under actual arguments.

    Raises:
        IRError: the number of arguments, a rank, an extent or a range does not fit.

    """
    if len(arguments) != len(func.args):
        raise IRError(f"@{func.name} takes {len(func.args)} arguments, got {len(arguments)}")
    pairs: list[tuple[Dim, int, str]] = []
    for arg, actual in zip(func.args, arguments, strict=True):
        if isinstance(arg.type, IntType):
            pairs.append((arg.type.value, int(cast("int", actual)), arg.hint))
            continue
        shape = cast("Tensor", actual).shape
        if len(shape) != len(arg.shape):
            raise IRError(f"%{arg.hint} is {arg.type}, got shape {list(shape)}")
        pairs += [(d, s, arg.hint) for d, s in zip(arg.shape, shape, strict=True)]
    binding = {str(d): s for d, s, _ in pairs if isinstance(d, sympy.Symbol)}
    for extent, size, hint in pairs:
        if substitute(extent, binding) != size:
            raise IRError(f"%{hint}: extent {extent} is {size}")
    for name, limits in func.symbols.items():
        if name in binding and not _within(binding[name], limits.lo, limits.hi):
            raise IRError(f"{name} is {binding[name]}, outside {limits}")
    return binding


def _within(value: int, lo: int, hi: int | None) -> bool:
    return value >= lo and (hi is None or value <= hi)


def bind_attribute(value: Any, binding: Mapping[str, int]) -> Any:
    """An attribute with dims replaced by integers, in tuples too; a region becomes a callable."""
    if isinstance(value, sympy.Expr):
        return substitute(value, binding)
    if isinstance(value, Func):
        return functools.partial(evaluate, value, binding=binding)
    if isinstance(value, tuple):
        return tuple(bind_attribute(v, binding) for v in cast("tuple[Any, ...]", value))
    return value


def as_results(out: Any) -> tuple[Tensor, ...]:
    """What a reference gives, as a tuple: it may return nothing, a tensor, or several."""
    if out is None:
        return ()
    return cast("tuple[Tensor, ...]", out if isinstance(out, tuple) else (out,))


class Reference:
    """The reference of an op as a callable of the symbols' values and its tensor operands."""

    def __init__(self, op: Op) -> None:
        self.op = op
        self._specs = [s for s in op.fields if s.kind in ("operand", "optional", "variadic")]

    def __call__(self, binding: Mapping[str, int], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The results; what operands are absent is not among the tensors."""
        given = iter(tensors)
        operands: list[object] = []
        for spec in self._specs:
            value = getattr(self.op, spec.name)
            if spec.kind == "variadic":
                operands.append(tuple(next(given) for _ in value))
            else:
                operands.append(None if value is None else next(given))
        attributes = {k: bind_attribute(v, binding) for k, v in self.op.attributes.items()}
        return as_results(type(self.op).reference(*operands, **attributes))


def call_reference(
    op: Op, tensors: Mapping[Value, Tensor], binding: Mapping[str, int]
) -> tuple[Tensor, ...]:
    """Run one op's reference on the tensors of its operands; the results in order."""
    operands: list[Any] = []
    for spec in op.fields:
        value = getattr(op, spec.name)
        if spec.kind in ("operand", "optional"):
            operands.append(None if value is None else tensors[value])
        elif spec.kind == "variadic":
            operands.append(tuple(tensors[v] for v in value))
    attributes = {k: bind_attribute(v, binding) for k, v in op.attributes.items()}
    out = type(op).reference(*operands, **attributes)
    return as_results(out)


def with_sizes_of(
    op: AtenCall, results: Sequence[Tensor], binding: Mapping[str, int]
) -> Mapping[str, int]:
    """The symbols with those that only the data tells, read where they first occur."""
    found = {
        str(extent): size
        for value, tensor in zip(op.ys, results, strict=True)
        for extent, size in zip(value.shape, tensor.shape, strict=True)
        if isinstance(extent, sympy.Symbol) and str(extent) not in binding
    }
    return {**binding, **found} if found else binding


def evaluate(
    func: Func, arguments: Sequence[Argument], *, binding: Mapping[str, int] | None = None
) -> list[Tensor]:
    """Run a func on actual arguments; buffers are written in place.

    The symbols are bound from the arguments unless a ``binding`` is given.

    Raises:
        IRError: the arguments do not fit.

    """
    if binding is None:
        binding = bind(func, arguments)
    tensors = {a: t for a, t in zip(func.args, arguments, strict=True) if isinstance(t, Tensor)}
    for op in func.ops:
        results = call_reference(op, tensors, binding)
        if isinstance(op, AtenCall):
            binding = with_sizes_of(op, results, binding)
        tensors.update(zip(op.results, results, strict=True))
    return [tensors[v] for v in func.returns]
