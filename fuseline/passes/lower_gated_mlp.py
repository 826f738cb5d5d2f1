"""Spell out the gated MLPs that could not be fused, so that the kernels of their parts run."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func, Value
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.ops.pointwise import Gelu, Mul, Relu, Silu
from fuseline.ir.ops.raised import Activation, GatedMlp
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
    """

    def rewrite(self, op: GatedMlp, func: Func) -> Replace:
        gate = _activated(Linear(op.x, op.gate, op.gate_bias).y, op.activation)
        hidden = Mul(gate, Linear(op.x, op.up, op.up_bias).y).y
        return Replace({op.y: Linear(hidden, op.down, op.down_bias).y})


def _activated(x: Value, activation: Activation) -> Value:
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
