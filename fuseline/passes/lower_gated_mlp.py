"""Spell out the gated MLPs that could not be fused, so that the kernels of their parts run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from fuseline.ir.core import Func, Value
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.ops.pointwise import Gelu, Mul, Relu, Silu
from fuseline.ir.ops.raised import Activation, GatedMlp
from fuseline.ir.ops.view import Slice
from fuseline.ir.types import Dim
from fuseline.passes.rewrite import Replace, Rewrite


@dataclass(frozen=True)
class LowerGatedMlp(Rewrite[GatedMlp], root=GatedMlp):
    """Replace a gated MLP by three products, the activation and the multiplication.

    Before:
        func @f(%x: f32[B, 8], %g: f32[12, 8], %u: f32[12, 8], %d: f32[8, 12]) {
          %y = gated_mlp %x, %g, %u, %d {activation = "silu"}
          return %y
        }
    After:
        func @f(%x: f32[B, 8], %g: f32[12, 8], %u: f32[12, 8], %d: f32[8, 12]) {
          %a = linear %x, %g
          %s = silu %a
          %b = linear %x, %u
          %h = mul %s, %b
          %y = linear %h, %d
          return %y
        }

    Gate and up that are the halves of one weight stay one product.

    Before:
        func @f(%x: f32[B, 8], %w: f32[24, 8], %d: f32[8, 12]) {
          %u = slice %w {axis = 0, stop = 12}
          %g = slice %w {axis = 0, start = 12, stop = 24}
          %y = gated_mlp %x, %g, %u, %d {activation = "gelu"}
          return %y
        }
    After:
        func @f(%x: f32[B, 8], %w: f32[24, 8], %d: f32[8, 12]) {
          %p = linear %x, %w
          %a = slice %p {axis = 1, start = 12, stop = 24}
          %s = gelu %a
          %b = slice %p {axis = 1, stop = 12}
          %h = mul %s, %b
          %y = linear %h, %d
          return %y
        }
    """

    reorders = True  # a library may sum a product of half a weight in another order

    def rewrite(self, op: GatedMlp, func: Func) -> Replace:
        gate, up = _halves(op) or (
            Linear(op.x, op.gate, op.gate_bias).y,
            Linear(op.x, op.up, op.up_bias).y,
        )
        hidden = Mul(activated(gate, op.activation), up).y
        return Replace({op.y: Linear(hidden, op.down, op.down_bias).y})


def _halves(op: GatedMlp) -> tuple[Value, Value] | None:
    """Gate and up as columns of one product, where their weights tile one tensor."""
    weight = _tiled(op.gate, op.up)
    bias = None
    if op.gate_bias is not None and op.up_bias is not None:
        bias = _tiled(op.gate_bias, op.up_bias)
    if weight is None or (bias is None) != (op.gate_bias is None and op.up_bias is None):
        return None
    (whole, first, second), bias_root = weight, None if bias is None else bias[0]
    if bias is not None and bias[1:] != (first, second):
        return None
    product = Linear(op.x, whole, bias_root).y
    axis = product.tensor.rank - 1
    gate, up = (Slice(product, axis=axis, start=a, stop=b).y for a, b in (first, second))
    return gate, up


Rows: TypeAlias = "tuple[Dim, Dim]"


def _tiled(gate: Value, up: Value) -> tuple[Value, Rows, Rows] | None:
    """The tensor that two slices make up in either order, and the rows of each."""
    first, second = gate.owner, up.owner
    if not isinstance(first, Slice) or not isinstance(second, Slice) or first.x is not second.x:
        return None
    if (first.axis, second.axis, first.step, second.step) != (0, 0, 1, 1):
        return None
    rows = (first.start, first.stop), (second.start, second.stop)
    low, high = rows if first.start == 0 else rows[::-1]
    if low[0] != 0 or low[1] != high[0] or high[1] != first.x.shape[0]:
        return None
    return first.x, *rows


def activated(x: Value, activation: Activation) -> Value:
    """The activation of a value, by the ops that spell it."""
    match activation:
        case "silu":
            return Silu(x).y
        case "gelu":
            return Gelu(x).y
        case "gelu_tanh":
            return Gelu(x, approximate="tanh").y
        case "relu":
            return Relu(x).y
        case "relu2":
            positive = Relu(x).y
            return Mul(positive, positive).y
