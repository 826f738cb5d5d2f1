"""Imports complex tensors as pairs of real ones: the IR has no complex element types.

Models use complex numbers for one thing, to rotate pairs of elements by angles. A traced value of a
complex type is a `Pair` here; what becomes of it beyond that is real arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fuseline.frontend.builder import IMPORTERS, Builder, UnsupportedError
from fuseline.frontend.dims import import_dim
from fuseline.ir.core import Value
from fuseline.ir.ops import pointwise as p
from fuseline.ir.ops.view import Concat
from fuseline.ir.types import DType, TensorType

_PARTS = {torch.complex64: DType.F32, torch.complex128: DType.F64}


@dataclass(frozen=True)
class Pair:
    """A complex tensor: its real and imaginary parts, of one type."""

    re: Value
    im: Value


PairImporter = Callable[..., "Pair | Value"]
_PAIRS: dict[str, PairImporter] = {}

_ALIKE = (
    *("view", "reshape", "_unsafe_view", "clone", "contiguous", "alias", "detach", "lift_fresh"),
    *("permute", "expand", "unsqueeze", "squeeze", "neg"),
)
_BY_PART = {
    *(f"aten.{name}.default" for name in _ALIKE),
    *("aten.squeeze.dim", "aten.squeeze.dims", "aten.transpose.int", "aten.t.default"),
    *("aten.slice.Tensor", "aten.select.int", "aten.flatten.using_ints", "aten.unflatten.int"),
}
"""What is done to a complex tensor by doing it to both parts."""


def part_type(fake: Tensor) -> TensorType:
    """The type of either part of a traced complex tensor."""
    return TensorType(_PARTS[fake.dtype], tuple(import_dim(s) for s in fake.shape))


def is_complex(value: object) -> bool:
    """Whether a traced value is a tensor of complex numbers."""
    return isinstance(value, Tensor) and value.dtype in _PARTS


def import_pair(b: Builder, name: str, fake: object, args: Sequence[Any], kwargs: Any) -> Any:
    """What a call gives that takes or gives complex tensors.

    Raises:
        UnsupportedError: the call is not known for complex tensors.

    """
    build = _PAIRS.get(name)
    if isinstance(fake, Tensor) and is_complex(fake):
        b.expected = (part_type(fake),)
    if build is not None:
        return build(b, *args, **kwargs)
    if name in _BY_PART and isinstance(args[0], Pair):
        parts = [IMPORTERS[name](b, x, *args[1:], **kwargs) for x in (args[0].re, args[0].im)]
        if not any(x is NotImplemented for x in parts):
            return Pair(*parts)
    raise UnsupportedError(f"{name} of complex numbers")


def _pairs(name: str) -> Callable[[PairImporter], PairImporter]:
    def register(function: PairImporter) -> PairImporter:
        _PAIRS[name] = function
        return function

    return register


@_pairs("aten.complex.default")
def _complex(b: Builder, re: Value, im: Value) -> Pair:
    shape = b.expected[0].shape
    return Pair(b.expand(re, shape), b.expand(im, shape))


@_pairs("aten.polar.default")
def _polar(b: Builder, size: Value, angle: Value) -> Pair:
    cosine, sine = b.add(p.Cos(angle)).y, b.add(p.Sin(angle)).y
    return Pair(b.add(p.Mul(size, cosine)).y, b.add(p.Mul(size, sine)).y)


@_pairs("aten.view_as_complex.default")
def _view_as_complex(b: Builder, x: Value) -> Pair:
    axis = x.tensor.rank - 1
    parts = [b.reshape(b.slice(x, axis, i, i + 1), x.shape[:-1]) for i in range(2)]
    return Pair(*parts)


@_pairs("aten.view_as_real.default")
def _view_as_real(b: Builder, x: Pair) -> Value:
    parts = tuple(b.reshape(part, (*part.shape, 1)) for part in (x.re, x.im))
    return b.add(Concat(parts, axis=len(x.re.shape))).y


@_pairs("aten.real.default")
def _real(b: Builder, x: Pair) -> Value:
    return x.re


@_pairs("aten.imag.default")
def _imag(b: Builder, x: Pair) -> Value:
    return x.im


@_pairs("aten._conj.default")
@_pairs("aten.conj.default")
@_pairs("aten._conj_physical.default")
def _conj(b: Builder, x: Pair) -> Pair:
    return Pair(x.re, b.add(p.Neg(x.im)).y)


@_pairs("aten._to_copy.default")
def _to_copy(b: Builder, x: Pair, dtype: torch.dtype | None = None, **_: Any) -> Pair:
    if b.moves or (dtype is not None and _PARTS.get(dtype) is not x.re.dtype):
        raise UnsupportedError(f"a cast to {dtype} of complex numbers")
    return x


@_pairs("aten.mul.Tensor")
def _mul(b: Builder, lhs: Any, rhs: Any) -> Pair:
    def times(x: Value, y: Any) -> Value:
        return b.add(p.Mul(x, b.operand(y, x))).y

    if not isinstance(lhs, Pair):
        lhs, rhs = rhs, lhs
    if not isinstance(lhs, Pair) or isinstance(rhs, complex):
        raise UnsupportedError("a product with a complex number of Python")
    if not isinstance(rhs, Pair):
        return Pair(times(lhs.re, rhs), times(lhs.im, rhs))
    re = p.Sub(times(lhs.re, rhs.re), times(lhs.im, rhs.im))
    im = p.Add(times(lhs.re, rhs.im), times(lhs.im, rhs.re))
    return Pair(b.add(re).y, b.add(im).y)
