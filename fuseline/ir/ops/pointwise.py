"""Element-wise primitive ops with torch's broadcasting and type promotion."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fuseline.ir.core import Op, OpError, Trait, Value, attribute, operand, result
from fuseline.ir.types import Dim, DType, TensorType, broadcast, promote

PURE_POINTWISE = (Trait.PURE, Trait.POINTWISE)


def _broadcast(op: Op, *values: Value) -> tuple[Dim, ...]:
    try:
        return broadcast([v.shape for v in values])
    except ValueError as error:
        raise OpError(op, str(error)) from error


class Unary(Op):
    """One operand; the result has its type, floating where ``to_float`` and it was not."""

    to_float = False

    x: Value = operand()
    y: Value = result()

    def infer(self) -> TensorType:
        kind = self.x.tensor
        return kind.with_dtype(DType.F32) if self.to_float and not kind.dtype.is_float else kind


class FloatUnary(Unary):
    """A unary op whose result is floating."""

    to_float = True


class Binary(Op):
    """Two operands, broadcast and promoted."""

    lhs: Value = operand()
    rhs: Value = operand()
    y: Value = result()

    def infer(self) -> TensorType:
        shape = _broadcast(self, self.lhs, self.rhs)
        return TensorType(self.result_dtype(), shape)

    def result_dtype(self) -> DType:
        """The promoted element type."""
        return promote([self.lhs.tensor, self.rhs.tensor])


class Compare(Binary):
    """Two operands, broadcast; the result is bool."""

    def result_dtype(self) -> DType:
        return DType.BOOL


class Add(Binary, name="add", traits=PURE_POINTWISE):
    """``lhs + rhs``."""

    reference = staticmethod(torch.add)


class Sub(Binary, name="sub", traits=PURE_POINTWISE):
    """``lhs - rhs``."""

    reference = staticmethod(torch.sub)


class Mul(Binary, name="mul", traits=PURE_POINTWISE):
    """``lhs * rhs``."""

    reference = staticmethod(torch.mul)


class Div(Binary, name="div", traits=PURE_POINTWISE):
    """``lhs / rhs``, true division: the result is floating."""

    reference = staticmethod(torch.div)

    def result_dtype(self) -> DType:
        dtype = super().result_dtype()
        return dtype if dtype.is_float else DType.F32


class FloorDivide(Binary, name="floor_div", traits=PURE_POINTWISE):
    """``lhs // rhs``, rounded towards minus infinity."""

    reference = staticmethod(torch.floor_divide)


class Remainder(Binary, name="remainder", traits=PURE_POINTWISE):
    """``lhs % rhs`` with the sign of ``rhs``."""

    reference = staticmethod(torch.remainder)


class Pow(Binary, name="pow", traits=PURE_POINTWISE):
    """``lhs ** rhs``. A 0-d exponent acts as a number: torch computes small powers by products."""

    @staticmethod
    def reference(lhs: Tensor, rhs: Tensor) -> Tensor:
        if rhs.dim() or not lhs.dim():
            return torch.pow(lhs, rhs)
        return torch.pow(lhs.to(torch.result_type(lhs, rhs)), rhs.item())


class Maximum(Binary, name="maximum", traits=PURE_POINTWISE):
    """The larger of both; NaN where either is."""

    reference = staticmethod(torch.maximum)


class Minimum(Binary, name="minimum", traits=PURE_POINTWISE):
    """The smaller of both; NaN where either is."""

    reference = staticmethod(torch.minimum)


class BitwiseAnd(Binary, name="bitwise_and", traits=PURE_POINTWISE):
    """``lhs & rhs`` on integers and bools."""

    reference = staticmethod(torch.bitwise_and)


class BitwiseOr(Binary, name="bitwise_or", traits=PURE_POINTWISE):
    """``lhs | rhs`` on integers and bools."""

    reference = staticmethod(torch.bitwise_or)


class BitwiseXor(Binary, name="bitwise_xor", traits=PURE_POINTWISE):
    """``lhs ^ rhs`` on integers and bools."""

    reference = staticmethod(torch.bitwise_xor)


class Eq(Compare, name="eq", traits=PURE_POINTWISE):
    """``lhs == rhs``."""

    reference = staticmethod(torch.eq)


class Ne(Compare, name="ne", traits=PURE_POINTWISE):
    """``lhs != rhs``."""

    reference = staticmethod(torch.ne)


class Lt(Compare, name="lt", traits=PURE_POINTWISE):
    """``lhs < rhs``."""

    reference = staticmethod(torch.lt)


class Le(Compare, name="le", traits=PURE_POINTWISE):
    """``lhs <= rhs``."""

    reference = staticmethod(torch.le)


class Gt(Compare, name="gt", traits=PURE_POINTWISE):
    """``lhs > rhs``."""

    reference = staticmethod(torch.gt)


class Ge(Compare, name="ge", traits=PURE_POINTWISE):
    """``lhs >= rhs``."""

    reference = staticmethod(torch.ge)


class LogicalAnd(Compare, name="logical_and", traits=PURE_POINTWISE):
    """Both non-zero."""

    reference = staticmethod(torch.logical_and)


class LogicalOr(Compare, name="logical_or", traits=PURE_POINTWISE):
    """Either non-zero."""

    reference = staticmethod(torch.logical_or)


class Neg(Unary, name="neg", traits=PURE_POINTWISE):
    """``-x``."""

    reference = staticmethod(torch.neg)


class Abs(Unary, name="abs", traits=PURE_POINTWISE):
    """``|x|``."""

    reference = staticmethod(torch.abs)


class BitwiseNot(Unary, name="bitwise_not", traits=PURE_POINTWISE):
    """``~x`` on integers, logical negation on bools."""

    reference = staticmethod(torch.bitwise_not)


class LogicalNot(Unary, name="logical_not", traits=PURE_POINTWISE):
    """``x == 0`` as bool."""

    reference = staticmethod(torch.logical_not)

    def infer(self) -> TensorType:
        return self.x.tensor.with_dtype(DType.BOOL)


class Floor(Unary, name="floor", traits=PURE_POINTWISE):
    """The largest integer not above ``x``."""

    reference = staticmethod(torch.floor)


class Ceil(Unary, name="ceil", traits=PURE_POINTWISE):
    """The smallest integer not below ``x``."""

    reference = staticmethod(torch.ceil)


class Sign(Unary, name="sign", traits=PURE_POINTWISE):
    """-1, 0 or 1."""

    reference = staticmethod(torch.sign)


class Relu(Unary, name="relu", traits=PURE_POINTWISE):
    """``max(x, 0)``."""

    reference = staticmethod(torch.relu)


class Exp(FloatUnary, name="exp", traits=PURE_POINTWISE):
    """``e ** x``."""

    reference = staticmethod(torch.exp)


class Log(FloatUnary, name="log", traits=PURE_POINTWISE):
    """Natural logarithm."""

    reference = staticmethod(torch.log)


class Log1p(FloatUnary, name="log1p", traits=PURE_POINTWISE):
    """``log(1 + x)``."""

    reference = staticmethod(torch.log1p)


class Sqrt(FloatUnary, name="sqrt", traits=PURE_POINTWISE):
    """Square root."""

    reference = staticmethod(torch.sqrt)


class Rsqrt(FloatUnary, name="rsqrt", traits=PURE_POINTWISE):
    """``1 / sqrt(x)``."""

    reference = staticmethod(torch.rsqrt)


class Reciprocal(FloatUnary, name="reciprocal", traits=PURE_POINTWISE):
    """``1 / x``."""

    reference = staticmethod(torch.reciprocal)


class Sin(FloatUnary, name="sin", traits=PURE_POINTWISE):
    """Sine."""

    reference = staticmethod(torch.sin)


class Cos(FloatUnary, name="cos", traits=PURE_POINTWISE):
    """Cosine."""

    reference = staticmethod(torch.cos)


class Tanh(FloatUnary, name="tanh", traits=PURE_POINTWISE):
    """Hyperbolic tangent."""

    reference = staticmethod(torch.tanh)


class Erf(FloatUnary, name="erf", traits=PURE_POINTWISE):
    """Error function."""

    reference = staticmethod(torch.erf)


class Sigmoid(FloatUnary, name="sigmoid", traits=PURE_POINTWISE):
    """``1 / (1 + exp(-x))``."""

    reference = staticmethod(torch.sigmoid)


class Silu(FloatUnary, name="silu", traits=PURE_POINTWISE):
    """``x * sigmoid(x)``, rounded once."""

    reference = staticmethod(F.silu)


class Softplus(FloatUnary, name="softplus", traits=PURE_POINTWISE):
    """``log(1 + exp(x))``, linear above 20."""

    reference = staticmethod(F.softplus)


class Gelu(FloatUnary, name="gelu", traits=PURE_POINTWISE):
    """Gaussian error linear unit, exact (``none``) or by ``tanh``, rounded once."""

    approximate: Literal["none", "tanh"] = attribute(default="none")

    @staticmethod
    def reference(x: Tensor, *, approximate: str) -> Tensor:
        return F.gelu(x, approximate=approximate)


class Cast(Op, name="cast", traits={*PURE_POINTWISE, Trait.MOVES}):
    """Change of element type; to nearest even where precision is lost."""

    x: Value = operand()
    dtype: DType = attribute()
    y: Value = result()

    def infer(self) -> TensorType:
        return self.x.tensor.with_dtype(self.dtype)

    @staticmethod
    def reference(x: Tensor, *, dtype: DType) -> Tensor:
        return x.to(dtype.torch)


class Where(Op, name="where", traits=PURE_POINTWISE):
    """``lhs`` where ``condition`` holds, else ``rhs``."""

    condition: Value = operand()
    lhs: Value = operand()
    rhs: Value = operand()
    y: Value = result()

    def infer(self) -> TensorType:
        if self.condition.dtype is not DType.BOOL:
            raise OpError(self, f"condition is {self.condition.type}, expected bool")
        shape = _broadcast(self, self.condition, self.lhs, self.rhs)
        return TensorType(promote([self.lhs.tensor, self.rhs.tensor]), shape)

    reference = staticmethod(torch.where)
