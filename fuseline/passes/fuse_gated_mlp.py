"""Run gate and up of a gated MLP as one product with the activation in its epilogue."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func, Value
from fuseline.ir.ops.fused import GatedLinear
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.ops.raised import GatedMlp
from fuseline.ir.ops.view import Slice
from fuseline.passes.merge_linears import unpackable
from fuseline.passes.rewrite import NoMatch, Replace, Rewrite
from fuseline.passes.wording import maker


@dataclass(frozen=True)
class FuseGatedMlp(Rewrite[GatedMlp], root=GatedMlp, pattern="gated_mlp"):
    """Split a gated MLP into ``gated_linear`` over side-by-side gate and up, and the down product.

    Gate and up must be parameters that nothing else reads, of one element type, with both biases
    or neither; or two adjacent halves of one tensor, as checkpoints with a merged projection have
    them.

    Before:
        func @f(%x: f32[B, 8], %g: f32[12, 8] = param "g", %u: f32[12, 8] = param "u",
                %d: f32[8, 12] = param "d") {
          %y = gated_mlp %x, %g, %u, %d {activation = "silu"}
          return %y
        }
    After:
        func @f(%x: f32[B, 8], %g: f32[12, 8] = param "g", %u: f32[12, 8] = param "u",
                %d: f32[8, 12] = param "d") {
          %h = gated_linear %x, %g, %u {activation = "silu"}
          %y = linear %h, %d
          return %y
        }
    """

    def rewrite(self, op: GatedMlp, func: Func) -> Replace | NoMatch:
        if reason := side_by_side(func, op.gate, op.up, "weights"):
            return NoMatch(reason)
        if (op.gate_bias is None) != (op.up_bias is None):
            sides = ("gate", op.gate_bias), ("up", op.up_bias)
            words = [f"{name} has {f'a bias {b.type}' if b else 'none'}" for name, b in sides]
            return NoMatch(f"only one of gate and up has a bias: {', '.join(words)}")
        if op.gate_bias is None or op.up_bias is None:
            reason = ""
        else:
            reason = side_by_side(func, op.gate_bias, op.up_bias, "biases")
        if reason:
            return NoMatch(reason)
        hidden = GatedLinear(
            op.x, op.gate, op.up, op.gate_bias, op.up_bias, activation=op.activation
        )
        y = Linear(hidden.y, op.down, op.down_bias).y
        return Replace({op.y: y}, held=("gate and up lie, or can be packed, side by side",))


def side_by_side(func: Func, gate: Value, up: Value, what: str) -> str:
    """Why two tensors neither lie side by side nor can be brought there; empty where they can."""
    if gate.type != up.type:
        return f"gate and up {what} are {gate.type} and {up.type}"
    if isinstance(gate.owner, Slice) or isinstance(up.owner, Slice):
        return "" if _adjacent(gate, up) else _not_adjacent(gate, up, what)
    for label, value in (("gate", gate), ("up", up)):
        if reason := unpackable(func, value, label):
            return reason
    return ""


def _adjacent(gate: Value, up: Value) -> bool:
    """Whether up begins where gate ends, both rows of one dense tensor."""
    match gate.owner, up.owner:
        case Slice(x=one) as first, Slice(x=other) as second:
            ends = (first.axis, second.axis, first.step, second.step, first.stop)
            return one is other and one.owner is None and ends == (0, 0, 1, 1, second.start)
        case _:
            return False


def _not_adjacent(gate: Value, up: Value, what: str) -> str:
    return (
        f"gate and up {what} come from {maker(gate)} and {maker(up)}, "
        "not from adjacent rows of one tensor"
    )
