"""One element of an element-wise op for any target: torch's promotion, and what is done in which
type. How that is written down is the target's: a `Spelling`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fuseline.ir.core import Op
from fuseline.ir.ops import pointwise as ops
from fuseline.ir.types import DType, TensorType, promote

HALVES = (DType.BF16, DType.F16)
"""What is computed in float32, and rounded by every op."""

COMPARISONS: dict[type[Op], str] = {
    ops.Eq: "==",
    ops.Ne: "!=",
    ops.Lt: "<",
    ops.Le: "<=",
    ops.Gt: ">",
    ops.Ge: ">=",
}
SIGNS: dict[type[Op], str] = {ops.Add: "+", ops.Sub: "-", ops.Mul: "*"}
BITS: dict[type[Op], str] = {ops.BitwiseAnd: "&", ops.BitwiseOr: "|", ops.BitwiseXor: "^"}
_ON_BOOLS: dict[type[Op], str] = {
    ops.Add: "|", ops.Mul: "&", ops.Maximum: "|", ops.Minimum: "&", **BITS,
}  # fmt: skip
_OPMATH = (ops.Mul, ops.Div, ops.FloorDivide)
"""With a 0-d right operand, torch does not round it to a 16-bit type before these."""
_NARROW = (DType.U8, DType.I8, DType.I16)


class ScalarError(ValueError):
    """An op, or a type of operand, that a target has no form of; the message says why."""


@dataclass(frozen=True)
class Term:
    """An expression, the type of the tensor that it is an element of, its constant if known."""

    text: str
    type: TensorType
    constant: bool | int | float | None = None

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self.type.dtype


@dataclass(frozen=True)
class Spelling:
    """How a target writes what one element of an op is; operands come in the types to compute in.

    Attributes:
        literal: a constant of a dtype.
        computed: the type that a value of a dtype has inside a kernel.
        cast: a value taken to one dtype after the other, and not rounded to 16 bits.
        round_to: a value as its dtype can hold it.
        choose: by a condition the one value or the other.
        compare: two values of a dtype, by a sign.
        unary: an op of one value, as it is computed in the dtype.
        floats: an op of two numbers of a dtype; the last argument is the right one's constant.
        integers: an op of two integers of a dtype; divisors are known not to be 0.
    """

    literal: Callable[[bool | int | float, DType], str]
    computed: Callable[[DType], str]
    cast: Callable[[str, Sequence[DType]], str]
    round_to: Callable[[str, DType], str]
    choose: Callable[[str, str, str], str]
    compare: Callable[[str, str, str, DType], str]
    unary: Callable[[Op, str, DType], str]
    floats: Callable[[Op, str, str, DType, bool | int | float | None], str]
    integers: Callable[[Op, str, str, DType], str]

    def convert(self, text: str, source: DType, target: DType) -> str:
        """An element cast from one dtype to another, rounded to it."""
        if source is target:
            return text
        if target is DType.BOOL:
            return f"({text} != 0)"
        if target.is_float:
            wide = DType.F64 if target is DType.F64 else DType.F32
            same = self.computed(source) == self.computed(wide)
            return self.round_to(text if same else self.cast(text, [wide]), target)
        beyond = source.is_float and target in _NARROW  # its range, torch keeps the low bits
        return self.cast(text, [DType.I64, target] if beyond else [target])

    def expression(self, op: Op, terms: Sequence[Term], result: DType) -> str:
        """The value of one element of the op's result, before it is rounded to ``result``.

        Raises:
            ScalarError: the target has no form of the op for these types.

        """
        match op:
            case ops.Cast():
                target = DType.F32 if result in HALVES else result  # the caller rounds
                return self._as(terms[0], target)
            case ops.Where():
                return self.choose(terms[0].text, *(self._as(t, result) for t in terms[1:]))
            case ops.LogicalAnd() | ops.LogicalOr():
                a, b = (self._as(t, DType.BOOL) for t in terms)
                return f"({a} {'&' if isinstance(op, ops.LogicalAnd) else '|'} {b})"
            case ops.Compare():
                common = promote([t.type for t in terms])
                a, b = (self._as(t, common) for t in terms)
                return self.compare(COMPARISONS[type(op)], a, b, common)
            case ops.Binary():
                return self._binary(op, terms, result)
            case _:
                return self._unary(op, terms, result)

    def _as(self, term: Term, dtype: DType) -> str:
        return self.convert(term.text, term.dtype, dtype)

    def _unary(self, op: Op, terms: Sequence[Term], result: DType) -> str:
        if len(terms) != 1:
            raise ScalarError(f"{op.name} has no element-wise form")
        x = self._as(terms[0], result) if result.is_float else terms[0].text
        match op:
            case ops.LogicalNot():
                return f"({x} == 0)"
            case ops.Floor() | ops.Ceil() if not result.is_float:
                return x
            case _:
                return self.unary(op, x, result)

    def _binary(self, op: Op, terms: Sequence[Term], result: DType) -> str:
        left, right = terms
        if result is DType.BOOL:
            if type(op) not in _ON_BOOLS:
                raise ScalarError(f"{op.name} of bools")
            return f"({left.text} {_ON_BOOLS[type(op)]} {right.text})"
        a, b = self._as(left, result), self._as(right, result)
        if result in HALVES and isinstance(op, _OPMATH) and not right.type.rank:
            b = self._as(right, DType.F32)
        if result.is_float:
            return self.floats(op, a, b, result, right.constant)
        if isinstance(op, ops.FloorDivide | ops.Remainder) and not right.constant:
            raise ScalarError(f"{op.name} by an integer that may be 0, where torch raises")
        return self.integers(op, a, b, result)


__all__ = ["BITS", "COMPARISONS", "HALVES", "SIGNS", "ScalarError", "Spelling", "Term"]
