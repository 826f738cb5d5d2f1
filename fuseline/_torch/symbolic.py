"""Fake tensors and symbolic integers: what torch traces with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import sympy
import torch
from torch import Tensor


class ShapeEnv(Protocol):
    """The part of torch's shape environment that is read here."""

    def bound_sympy(self, expr: sympy.Expr) -> Any: ...


def fake_mode_of(values: Sequence[object]) -> Any:
    """The fake tensor mode that the values were made under; None where there is no fake tensor.

    Not `torch._guards.detect_fake_mode`, which prefers the tracing context's: Dynamo gives its
    backends a fresh mode there, and one may not mix them.
    """
    return next((cast("Any", v).fake_mode for v in values if is_fake(v)), None)


def is_fake(value: object) -> bool:
    """Whether a value is a fake tensor."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(value, FakeTensor)


def shape_env_of(fake_mode: Any) -> ShapeEnv | None:
    """The shape environment of a fake mode; None where every shape is static."""
    return None if fake_mode is None else cast("ShapeEnv | None", fake_mode.shape_env)


def expression(value: int | torch.SymInt) -> int | sympy.Expr:
    """The value of an integer as an int, or as an expression over the symbols of its shape env."""
    if isinstance(value, torch.SymInt):
        expr = cast("sympy.Expr", cast("Any", value).node.expr)
        return int(expr) if expr.is_Integer else expr
    return int(value)


def scalar_expression(value: Any) -> Any:
    """The expression behind a SymInt, SymFloat or SymBool; other values as they are."""
    if isinstance(value, torch.SymInt):
        return expression(value)
    if isinstance(value, (torch.SymFloat, torch.SymBool)):
        return cast("Any", value).node.expr
    return value


def plain_limits(expr: Any) -> Any:
    """An expression with sympy's minimum and maximum in the place of torch's."""
    from torch.utils._sympy import functions

    ours: Any = functions
    return expr.replace(ours.Min, sympy.Min).replace(ours.Max, sympy.Max)


def symbol_range(
    env: ShapeEnv | None, symbol: sympy.Symbol, stated: Any = None
) -> tuple[int | None, int | None]:
    """The least and the greatest value that a symbol may take; None where there is none.

    ``stated`` is a range of torch's that counts in place of the environment's.
    """
    if env is None:
        return 0, None
    bounds = stated if stated is not None else env.bound_sympy(symbol)
    return _finite(bounds.lower), _finite(bounds.upper)


def _finite(bound: Any) -> int | None:
    """A bound as an int; torch writes infinity in several ways, 2**62 and above among them."""
    if not bound.is_Integer or abs(int(bound)) >= 2**62:
        return None
    return int(bound)


def example(size: int | torch.SymInt) -> int | None:
    """What a size was for the inputs that a program was captured with; None where nobody knows."""
    return size if isinstance(size, int) else cast("Any", size).node.hint


def is_unbacked(expr: object) -> bool:
    """Whether an expression reads a symbol whose value only the data tells (``u0``)."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    return bool(cast("Any", free_unbacked_symbols)(expr))


def resized(fake: Tensor, sizes: Mapping[sympy.Symbol, sympy.Symbol]) -> Tensor:
    """A fake tensor like another, with other symbols in its sizes and strides."""
    env = cast("Any", fake).fake_mode.shape_env

    def renamed(size: int | torch.SymInt) -> Any:
        expr = expression(size)
        if isinstance(expr, int) or not expr.free_symbols & sizes.keys():
            return size
        return env.create_symintnode(cast("Any", expr).xreplace(dict(sizes)), hint=None)

    with cast("Any", fake).fake_mode:
        shape, strides = map(renamed, fake.shape), map(renamed, fake.stride())
        return torch.empty_strided([*shape], [*strides], dtype=fake.dtype, device=fake.device)
