"""Element types, symbolic dims, and the types of IR values."""

from __future__ import annotations

import ast
import enum
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias, cast

import sympy
import torch
from sympy.printing.str import StrPrinter

from fuseline.expressions import is_integer_expression
from fuseline.syntax import parse_expression

_sympy = cast("Any", sympy)  # most of its functions have no types

Dim: TypeAlias = int | sympy.Expr
"""An extent: an integer, or an expression over the symbols of a func."""

MOST_EXTENT = 2**63 - 1
"""The greatest extent: torch counts in 64 bits."""


class DType(enum.Enum):
    """Element types; the value is the name in the text form."""

    F64 = "f64"
    F32 = "f32"
    BF16 = "bf16"
    F16 = "f16"
    I64 = "i64"
    I32 = "i32"
    I16 = "i16"
    I8 = "i8"
    U8 = "u8"
    BOOL = "bool"

    @property
    def torch(self) -> torch.dtype:
        """The torch dtype of the same meaning."""
        return _TO_TORCH[self]

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return self.torch.itemsize

    @property
    def is_float(self) -> bool:
        """Whether this is a floating-point type."""
        return self.torch.is_floating_point

    @classmethod
    def from_torch(cls, dtype: torch.dtype) -> DType:
        """The element type of a torch dtype; KeyError where the IR has none."""
        return _FROM_TORCH[dtype]

    def __str__(self) -> str:
        return self.value


_TO_TORCH = {
    DType.F64: torch.float64,
    DType.F32: torch.float32,
    DType.BF16: torch.bfloat16,
    DType.F16: torch.float16,
    DType.I64: torch.int64,
    DType.I32: torch.int32,
    DType.I16: torch.int16,
    DType.I8: torch.int8,
    DType.U8: torch.uint8,
    DType.BOOL: torch.bool,
}
_FROM_TORCH = {t: d for d, t in _TO_TORCH.items()}


@lru_cache(maxsize=4096)
def symbol(name: str) -> sympy.Symbol:
    """The dim symbol of this name: a non-negative integer."""
    return sympy.Symbol(name, integer=True, nonnegative=True)


def dim(value: Any) -> Dim:
    """Bring an extent to its one form: an int where it is known, else an expanded expression."""
    if isinstance(value, int):
        return int(value)
    return _canonical(cast("sympy.Expr", sympy.sympify(value)))


@lru_cache(maxsize=65536)
def _canonical(expr: sympy.Expr) -> Dim:
    expanded = cast("sympy.Expr", _sympy.expand(expr))
    return int(expanded) if expanded.is_Integer else expanded


def same(lhs: Dim, rhs: Dim) -> bool:
    """Whether two dims are the same expression; False where it cannot be told."""
    return bool(cast("Any", lhs) == rhs)


def floor_div(lhs: Dim, rhs: Dim) -> Dim:
    """``lhs // rhs`` as a dim."""
    if isinstance(lhs, int) and isinstance(rhs, int):
        return lhs // rhs
    return dim(sympy.floor(sympy.sympify(lhs) / sympy.sympify(rhs)))


def product(dims: Iterable[Dim]) -> Dim:
    """The product of dims; 1 for none."""
    return _product(tuple(dims))


@lru_cache(maxsize=65536)
def _product(dims: tuple[Dim, ...]) -> Dim:
    total: Dim = 1
    for extent in dims:
        total = total * extent  # type: ignore[operator, unused-ignore]
    return dim(total)


def free_symbols(value: Dim) -> set[str]:
    """The names of the symbols that a dim reads."""
    if isinstance(value, int):
        return set()
    return {str(s) for s in value.free_symbols}


def substitute(value: Dim, binding: Mapping[str, int]) -> int:
    """The value of a dim under a binding of its symbols; KeyError names an unbound symbol."""
    if isinstance(value, int):
        return value
    bound = value.subs({s: binding[str(s)] for s in value.free_symbols})
    return int(bound)


class _DimPrinter(StrPrinter):
    """Prints dims in the text form: ``//`` for floor division, ``%`` for the remainder.

    A division stands in parentheses: sympy takes it for a call, which binds more tightly.
    """

    def _print_floor(self, expr: Any) -> str:
        numerator, denominator = expr.args[0].as_numer_denom()
        return f"(({self.text(numerator)})//({self.text(denominator)}))"

    def _print_Mod(self, expr: Any) -> str:  # noqa: N802 (sympy calls it by this name)
        return f"({self.text(expr.args[0])})%({self.text(expr.args[1])})"

    def text(self, expr: Any) -> str:
        """The text of an expression."""
        return cast("Any", self)._print(expr)


_PRINTER = _DimPrinter()


@lru_cache(maxsize=65536)
def _print_expr(expr: sympy.Expr) -> str:
    text = _PRINTER.text(expr)
    return text[1:-1] if isinstance(expr, sympy.floor) else text


def format_dim(value: Dim) -> str:
    """The text of a dim: Python over its symbols (``max`` and ``min`` as ``Max``, ``Min``)."""
    return str(value) if isinstance(value, int) else _print_expr(value)


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: floor_div,
    ast.Mod: lambda a, b: sympy.Mod(a, b),
    ast.Pow: lambda a, b: a**b,
}
_CALLS: dict[str, Callable[..., Any]] = {"Max": sympy.Max, "Min": sympy.Min}


def parse_dim(text: str) -> Dim:
    """Read a dim from its text form.

    Raises:
        ValueError: the text is not an integer expression over symbols.

    """
    if not is_integer_expression(text):
        raise ValueError(f"{text!r} is not a dim expression")
    try:
        return dim(_read_dim(parse_expression(text), text))
    except ZeroDivisionError:
        raise ValueError(f"{text!r} divides by zero") from None


def _read_dim(node: ast.expr, text: str) -> Any:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_read_dim(operand, text)
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _BINARY:
            return _BINARY[type(operator)](_read_dim(left, text), _read_dim(right, text))
        case ast.Call(func=ast.Name(id=name), args=args) if name in _CALLS:
            return _CALLS[name](*(_read_dim(arg, text) for arg in args))
        case _:
            raise ValueError(f"{text!r} is not a dim expression")


@dataclass(frozen=True)
class Range:
    """The values that a symbol may take, both ends included; no upper end where ``hi`` is None."""

    lo: int = 0
    hi: int | None = None

    def __str__(self) -> str:
        return f"{self.lo}..{'' if self.hi is None else self.hi}"


def bounds(value: Dim, ranges: Mapping[str, Range]) -> tuple[int, int | None]:
    """The least and the greatest value of a dim that does not fall as its symbols grow.

    That is so for products and sums of extents; for anything else the answer is ``(0, None)``.
    """
    if isinstance(value, int):
        return value, value
    expr = cast("Any", value)
    polynomial = expr.as_poly() if expr.is_polynomial() else None
    if polynomial is None or any(c < 0 for c in polynomial.coeffs()):
        return 0, None
    limits = {name: ranges.get(name, Range()) for name in free_symbols(value)}
    low = substitute(value, {name: r.lo for name, r in limits.items()})
    if any(r.hi is None for r in limits.values()):
        return low, None
    return low, substitute(value, {name: r.hi or 0 for name, r in limits.items()})


@dataclass(frozen=True)
class TensorType:
    """A tensor: element type and dims, no strides."""

    dtype: DType
    shape: tuple[Dim, ...]

    @property
    def rank(self) -> int:
        """Number of dims."""
        return len(self.shape)

    @property
    def numel(self) -> Dim:
        """Number of elements."""
        return product(self.shape)

    @property
    def nbytes(self) -> Dim:
        """Size in bytes, dense."""
        return _product((*self.shape, self.dtype.itemsize))

    def with_shape(self, shape: Sequence[Dim]) -> TensorType:
        """The same element type with other dims."""
        return TensorType(self.dtype, tuple(dim(d) for d in shape))

    def with_dtype(self, dtype: DType) -> TensorType:
        """The same dims with another element type."""
        return TensorType(dtype, self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(format_dim(d) for d in self.shape)}]"


@dataclass(frozen=True)
class BufferType:
    """State that outlives a call and can be written in place, such as a KV cache."""

    tensor: TensorType

    def __str__(self) -> str:
        return f"buffer<{self.tensor}>"


@dataclass(frozen=True)
class IntType:
    """A run-time integer argument; its value is a dim, usually one symbol."""

    value: Dim

    def __str__(self) -> str:
        return f"int<{format_dim(self.value)}>"


ValueType: TypeAlias = TensorType | BufferType | IntType


def format_types(types: Iterable[ValueType]) -> str:
    """The text of several types, for messages."""
    return ", ".join(map(str, types)) or "none"


def is_extent(value: Dim) -> bool:
    """Whether a tensor can have this extent, as far as that is known before its symbols are."""
    return not isinstance(value, int) or 0 <= value <= MOST_EXTENT


def has_extents(value_type: ValueType) -> bool:
    """Whether a value can be of this type: each extent of it is one."""
    if isinstance(value_type, IntType):
        return True
    tensor = value_type.tensor if isinstance(value_type, BufferType) else value_type
    return all(map(is_extent, tensor.shape))


def tensor_type(dtype: DType, *shape: Any) -> TensorType:
    """Shorthand: ``tensor_type(DType.F32, 2, symbol("S"))``."""
    return TensorType(dtype, tuple(dim(d) for d in shape))


def broadcast(shapes: Sequence[Sequence[Dim]]) -> tuple[Dim, ...]:
    """The broadcast shape under torch's rules; ValueError where two extents cannot be equal."""
    rank = max((len(s) for s in shapes), default=0)
    result: list[Dim] = []
    for axis in range(-rank, 0):
        extents = [s[axis] for s in shapes if len(s) >= -axis]
        wide = [e for e in extents if e != 1]
        known = {e for e in wide if isinstance(e, int)}
        if len(known) > 1:
            shown = [f"[{', '.join(map(format_dim, s))}]" for s in shapes]
            raise ValueError(f"shapes {' and '.join(shown)} do not broadcast")
        result.append(next(iter(known)) if known else (wide[0] if wide else 1))
    return tuple(result)


def promote(types: Sequence[TensorType]) -> DType:
    """torch's type promotion: 0-d operands do not promote within a category."""
    return _promote(
        frozenset(t.dtype for t in types if t.rank), frozenset(t.dtype for t in types if not t.rank)
    )


@lru_cache(maxsize=1024)
def _promote(with_dims: frozenset[DType], without: frozenset[DType]) -> DType:
    wide, scalar = (
        functools.reduce(torch.promote_types, (d.torch for d in group)) if group else None
        for group in (with_dims, without)
    )
    if wide is None or scalar is None:
        return DType.from_torch(cast("torch.dtype", wide or scalar))
    return DType.from_torch(
        torch.result_type(torch.empty(0, dtype=wide), torch.empty((), dtype=scalar))
    )
