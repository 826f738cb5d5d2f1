"""Recognise gated MLPs."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func, Value
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.ops.pointwise import Gelu, Mul, Relu, Sigmoid, Silu, Tanh
from fuseline.ir.ops.raised import Activation, GatedMlp
from fuseline.ir.ops.view import Slice
from fuseline.passes.match import last_dim_part, only_user
from fuseline.passes.rewrite import NoMatch, Replace, Rewrite, failed
from fuseline.passes.wording import called


@dataclass(frozen=True)
class RaiseGatedMlp(Rewrite[Mul], root=Mul, pattern="gated_mlp"):
    """``(act(x @ gate.T) * (x @ up.T)) @ down.T``, gate and up apart or as halves of one weight.

    Before:
        func @f(%x: f32[B, 8], %g: f32[12, 8], %u: f32[12, 8], %d: f32[8, 12]) {
          %a = linear %x, %g
          %b = silu %a
          %c = linear %x, %u
          %h = mul %b, %c
          %y = linear %h, %d
          return %y
        }
    After:
        func @f(%x: f32[B, 8], %g: f32[12, 8], %u: f32[12, 8], %d: f32[8, 12]) {
          %y = gated_mlp %x, %g, %u, %d
          return %y
        }

    Before:
        func @f(%x: f32[B, 8], %w: f32[24, 8], %d: f32[8, 12]) {
          %p = linear %x, %w
          %a = slice %p {axis = 1, stop = 12}
          %c = slice %p {axis = 1, start = 12, stop = 24}
          %b = gelu %a
          %h = mul %c, %b
          %y = linear %h, %d
          return %y
        }
    After:
        func @f(%x: f32[B, 8], %w: f32[24, 8], %d: f32[8, 12]) {
          %g = slice %w {axis = 0, stop = 12}
          %u = slice %w {axis = 0, start = 12, stop = 24}
          %y = gated_mlp %x, %g, %u, %d {activation = "gelu"}
          return %y
        }
    """

    reorders = True  # a library may sum a product of half a weight in another order

    def rewrite(self, op: Mul, func: Func) -> Replace | NoMatch | None:
        for gated, plain in ((op.lhs, op.rhs), (op.rhs, op.lhs)):
            inner = _activated(gated)
            gate = None if inner is None else _side(inner)
            up = _side(plain)
            if inner is None or gate is None or up is None:
                continue
            missed = _refusal(op, gated, gate, up, func)
            if missed is not None:
                return missed
            down = only_user(func, op.y)
            assert isinstance(down, Linear), "or it was refused"
            mlp = _mlp(gate, up, down, activation_of(gated))
            held = ("gate and up read the same x, and nothing else reads them",)
            return Replace({down.y: mlp.y}, before=down, held=held)
        return None


@dataclass(frozen=True)
class Side:
    """One of gate and up: a product, or ``length`` of its columns from ``start`` on."""

    y: Value
    op: Linear
    start: int
    length: int
    step: int

    @property
    def whole(self) -> bool:
        """Whether this is the product itself."""
        return self.y is self.op.y

    def rows(self, parameter: Value | None) -> Value | None:
        """The rows of the product's weight or bias that make these columns."""
        if self.whole or parameter is None:
            return parameter
        return Slice(parameter, axis=0, start=self.start, stop=self.start + self.length).y


def _side(value: Value) -> Side | None:
    """A value as a product or some of its columns."""
    part = last_dim_part(value)
    source = value if part is None else part.root
    if not isinstance(source.owner, Linear):
        return None
    if part is None:  # of an unknown width: not a slice
        return Side(value, source.owner, 0, 0, 1)
    return Side(value, source.owner, part.start, part.length, part.step)


def _activated(value: Value) -> Value | None:
    """What an activation is applied to, whether or not it is one that gated MLPs may have."""
    match value.owner:
        case Silu(x) | Gelu(x) | Relu(x) | Sigmoid(x) | Tanh(x):
            return x
        case Mul(lhs, rhs) if lhs is rhs and isinstance(lhs.owner, Relu):
            return lhs.owner.x
        case _:
            return None


def activation_of(value: Value) -> Activation | None:
    """The name of the activation that makes a value; None where `GatedMlp` does not have it."""
    match value.owner:
        case Silu():
            return "silu"
        case Gelu(approximate="tanh"):
            return "gelu_tanh"
        case Gelu():
            return "gelu"
        case Relu():
            return "relu"
        case Mul():
            return "relu2"
        case _:
            return None


def _refusal(op: Mul, gated: Value, gate: Side, up: Side, func: Func) -> NoMatch | None:
    """Why the product of gate and up may not become part of one op; None where it may."""
    return failed(
        ("an activated product times another one",),
        ("both read the same x", lambda: _other_x(gate, up)),
        ("the activation is one that the op has", lambda: _other_activation(gated)),
        ("both are of one type", lambda: _other_type(gate, up)),
        ("nothing else reads them", lambda: _read_elsewhere(op, gated, gate, up, func)),
        ("they are halves", lambda: "" if _whole(gate, up) else _other_halves(gate, up, func)),
        ("one linear reads what they give", lambda: _other_end(op, func)),
    )


def _whole(gate: Side, up: Side) -> bool:
    return gate.whole and up.whole


def _other_x(gate: Side, up: Side) -> str:
    if gate.op.x is up.op.x:
        return ""
    return f"gate reads {called(gate.op.x)}, the other side {called(up.op.x)}"


def _other_activation(gated: Value) -> str:
    if activation_of(gated) is not None:
        return ""
    name = gated.owner.name if gated.owner else ""
    return f"the gate's activation is {name}, none of silu, gelu, relu and relu2"


def _other_type(gate: Side, up: Side) -> str:
    same = gate.y.shape == up.y.shape
    return "" if same else f"gate is {gate.y.type}, the other side {up.y.type}"


def _read_elsewhere(op: Mul, gated: Value, gate: Side, up: Side, func: Func) -> str:
    inside = [op, gated.owner, *_inside(gated)]
    for value in (gated, gate.y, up.y):
        others = [u.name for u in func.users(value) if u not in inside]
        others += ["the return"] if func.is_returned(value) else []
        if others:
            return f"{called(value)} has readers outside the MLP: {', '.join(others)}"
    return ""


def _other_end(op: Mul, func: Func) -> str:
    down = only_user(func, op.y)
    if isinstance(down, Linear) and down.x is op.y:
        return ""
    names = ", ".join(u.name for u in func.users(op.y)) or "nothing"
    return f"the product of both sides is read by {names}, not by one linear"


def _inside(gated: Value) -> list[object]:
    """The ops between the gate's product and its activation: the inner one of a squared ReLU."""
    owner = gated.owner
    return [owner.lhs.owner] if isinstance(owner, Mul) else []


def _other_halves(gate: Side, up: Side, func: Func) -> str:
    """Why columns of products are not the halves of one that nothing else reads."""
    if gate.whole or up.whole or gate.op is not up.op:
        return "one of gate and up is part of another product"
    if gate.step != 1 or up.step != 1:
        return f"gate and up take every {max(gate.step, up.step)}-th column of one product"
    product = gate.op.y
    places = sorted([(gate.start, gate.length), (up.start, up.length)])
    tiled = places[0][0] == 0 and places[1][0] == places[0][1]
    if not tiled or sum(places[1]) != product.shape[-1]:
        return "gate and up are not the two halves of one product"
    readers = [u for u in func.users(product) if u not in (gate.y.owner, up.y.owner)]
    if readers or func.is_returned(product):
        return f"{called(product)} has readers outside the MLP"
    return ""


def _mlp(gate: Side, up: Side, down: Linear, activation: Activation | None) -> GatedMlp:
    weights = [side.rows(side.op.weight) for side in (gate, up)]
    assert weights[0] is not None, "a product has a weight"
    assert weights[1] is not None, "a product has a weight"
    assert activation is not None, "unknown activations were refused"
    return GatedMlp(
        gate.op.x,
        weights[0],
        weights[1],
        down.weight,
        gate.rows(gate.op.bias),
        up.rows(up.op.bias),
        down.bias,
        activation=activation,
    )
