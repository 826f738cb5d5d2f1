"""Hand the norm before a product to the product, on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func, Value
from fuseline.ir.ops.fused import AddRmsNorm, GatedLinear, MergedLinear
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.ops.norm_linear import NormLinear
from fuseline.ir.ops.raised import RmsNorm
from fuseline.passes.dependence import depends
from fuseline.passes.rewrite import Replace, Rewrite

Product = Linear | MergedLinear | GatedLinear


@dataclass(frozen=True)
class FuseNormLinear(
    Rewrite[Product], root=(Linear, MergedLinear, GatedLinear), pattern="norm_linear"
):
    """Join an RMS norm, and the residual add that it has taken, with the product that reads it.

    For a few tokens each block of the product then normalises the rows for itself, and there is one
    launch instead of two; more tokens are normalised by a kernel of their own, as before. Of
    several products that read a norm the first one takes it.

    Before:
        func @f(%x: bf16[B, 64], %r: bf16[B, 64], %n: bf16[64], %w: bf16[8, 64]) {
          %s, %y = add_rms_norm %x, %r, %n {eps = 1e-06}
          %z = linear %y, %w
          return %s, %z
        }
    After:
        func @f(%x: bf16[B, 64], %r: bf16[B, 64], %n: bf16[64], %w: bf16[8, 64]) {
          %s, %y, %z = norm_linear %x, %r, %n, [%w], [] {eps = 1e-06}
          return %s, %z
        }
    """

    def rewrite(self, op: Product, func: Func) -> Replace | None:
        norm = op.x.owner
        if not isinstance(norm, (RmsNorm, AddRmsNorm)):
            return None
        weights, biases = _parameters(op)
        kinds = {v.dtype for v in (norm.x, norm.y, *weights, *biases)}
        if norm.weight is not None:
            kinds.add(norm.weight.dtype)
        if len(kinds) > 1 or 0 < len(biases) < len(weights):
            return None
        if depends(func, [*weights, *biases], [norm]):
            return None
        residual = norm.residual if isinstance(norm, AddRmsNorm) else None
        fused = NormLinear(
            norm.x,
            residual,
            norm.weight,
            weights,
            biases,
            eps=norm.eps,
            offset=norm.offset,
            cast=norm.cast,
            activation=op.activation if isinstance(op, GatedLinear) else None,
        )
        results = op.ys if isinstance(op, MergedLinear) else (op.y,)
        made = {norm.y: fused.y, **dict(zip(results, fused.products, strict=True))}
        if isinstance(norm, AddRmsNorm) and fused.sum is not None:
            made[norm.sum] = fused.sum
        return Replace(made, work=fused, held=("the product reads the norm of one row",))


def _parameters(op: Product) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """Weights and biases."""
    match op:
        case MergedLinear():
            return op.weights, op.biases
        case GatedLinear():
            biases = (op.gate_bias, op.up_bias)
            return (op.gate, op.up), tuple(b for b in biases if b is not None)
        case _:
            return (op.weight,), () if op.bias is None else (op.bias,)
