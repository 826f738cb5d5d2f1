"""The shared branch of a mixture of experts: an MLP whose result is added to theirs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fuseline.ir.core import Func, Op, Trait, Value
from fuseline.ir.ops.create import Full
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.ops.pointwise import Mul, Sigmoid
from fuseline.ir.ops.raised import GatedMlp
from fuseline.ir.ops.view import Reshape
from fuseline.ir.types import TensorType
from fuseline.passes.expert_body import Refused, body_between
from fuseline.passes.expert_rows import unshaped
from fuseline.passes.fuse_gated_mlp import side_by_side
from fuseline.passes.lower_gated_mlp import activated
from fuseline.passes.match import only_user
from fuseline.passes.merge_linears import unpackable
from fuseline.passes.wording import called


@dataclass(frozen=True)
class Shared:
    """A branch in the terms of `Moe`.

    Attributes:
        up: its weights: gate and up, or up alone.
        down: the weight of the second product.
        body: what stands between the products.
        gate: the logits that weigh the branch by their sigmoid.
        words: what it is, for the site.
    """

    up: tuple[Value, ...]
    down: Value
    body: Func
    gate: Value | None
    words: str


def is_branch(value: Value) -> bool:
    """Whether an MLP, weighed or not, makes a value."""
    inner = _ungated(value)[0]
    return isinstance(inner.owner, GatedMlp) or bool(_products(inner))


def shared_branch(value: Value, x: Value, func: Func) -> Shared:
    """The branch that makes a value of x, through reshapes.

    Raises:
        Refused: it reads something else, or `Moe` cannot compute it; the message says why.

    """
    inner, gate, weighed = _ungated(value)
    _check_one_reader(func, value, [o for o in (weighed, inner.owner) if o is not None])
    if gate is not None:
        _check_gate(gate, x)
    mlp = inner.owner
    if isinstance(mlp, GatedMlp):
        shared = _of_gated_mlp(mlp, func)
        _check_same(mlp.x, x)
    else:
        shared = _of_products(inner, x, func)
    return shared if gate is None else replace(shared, gate=gate, words=f"{shared.words}, gated")


def _ungated(value: Value) -> tuple[Value, Value | None, Mul | None]:
    """A branch without the sigmoid that weighs it, the sigmoid's logits, and the product."""
    inner = unshaped(value)
    product = inner.owner
    if isinstance(product, Mul):
        for weight, branch in (product.operands, product.operands[::-1]):
            sigmoid = unshaped(weight).owner
            if isinstance(sigmoid, Sigmoid) and weight.shape == (*branch.shape[:-1], 1):
                return unshaped(branch), sigmoid.x, product
    return inner, None, None


def _products(inner: Value) -> list[Value]:
    """The first products of an MLP whose second one makes a value; empty where there are none."""
    down = inner.owner
    if not isinstance(down, Linear):
        return []
    found: dict[Value, None] = {}
    stack, seen = [down.x], set[Value]()
    while stack:
        value = stack.pop()
        owner = value.owner
        if value in seen or isinstance(owner, Full):
            continue
        seen.add(value)
        if isinstance(owner, Linear):
            found[value] = None
        elif owner is not None and (owner.has(Trait.POINTWISE) or owner.has(Trait.VIEW)):
            stack += owner.operands
        else:
            return []
    plain = all(unshaped(down.x) is not v for v in found)
    return list(found) if plain else []


def _of_gated_mlp(op: GatedMlp, func: Func) -> Shared:
    if any(b is not None for b in (op.gate_bias, op.up_bias, op.down_bias)):
        raise Refused("its products have biases")
    if reason := side_by_side(func, op.gate, op.up, "weights"):
        raise Refused(reason)
    width = op.gate.shape[:1]
    body = Func("body")
    sides = [body.add_arg(TensorType(op.x.dtype, width), name) for name in ("gate", "up")]
    result = Mul(activated(sides[0], op.activation), sides[1]).y
    for made in _made(result):
        body.append(made)
    body.set_returns([result])
    return Shared((op.gate, op.up), op.down, body, None, f"{op.activation} MLP of {width[0]}")


def _made(value: Value) -> list[Op]:
    """The ops that make a value, operands first."""
    order: dict[Op, None] = {}

    def visit(op: Op | None) -> None:
        if op is None or op in order:
            return
        for operand in op.operands:
            visit(operand.owner)
        order[op] = None

    visit(value.owner)
    return list(order)


def _of_products(inner: Value, x: Value, func: Func) -> Shared:
    down = inner.owner
    assert isinstance(down, Linear), "asked of branches only"
    ups = [v.owner for v in sorted(_products(inner), key=lambda v: _place(func, v))]
    products = [op for op in ups if isinstance(op, Linear)]
    for op in products:
        _check_same(op.x, x)
    if any(op.bias is not None for op in (down, *products)):
        raise Refused("its products have biases")
    widths = [op.weight.shape[0] for op in products]
    known = [w for w in widths if isinstance(w, int)]
    if len(known) < len(widths):
        raise Refused("its width is not known")
    body = body_between([op.y for op in products], known, down.x)
    if body.interleaved or (body.gated and len(products) == 1):
        raise Refused("gate and up are columns of one product")
    _check_inside(func, [op.y for op in products], frozenset[Op]([*body.inside, down]))
    if len(products) > 1:
        for label, op in zip(("gate", "up"), products, strict=True):
            if reason := unpackable(func, op.weight, label):
                raise Refused(reason)
    weights = tuple(op.weight for op in products)
    return Shared(weights, down.weight, body.func, None, f"MLP of {body.func.returns[0].shape[0]}")


def _place(func: Func, value: Value) -> int:
    return 0 if value.owner is None else func.places[value.owner]


def _check_inside(func: Func, products: list[Value], inside: frozenset[Op]) -> None:
    """Nothing else may read what goes away."""
    made = [*products, *(v for op in inside if not isinstance(op, Linear) for v in op.results)]
    for value in made:
        others = [u.name for u in func.users(value) if u not in inside]
        if others or func.is_returned(value):
            names = ", ".join(others) or "the return"
            raise Refused(f"{called(value)} inside of it is read by {names}")


def _check_one_reader(func: Func, value: Value, ops: list[Op]) -> None:
    """Each result on the way to the sum has one reader."""
    while True:
        if only_user(func, value) is None:
            raise Refused(f"{called(value)} has other readers")
        owner = value.owner
        if isinstance(owner, Reshape):
            value = owner.x
        elif isinstance(owner, Mul) and owner in ops:
            value = next(v for v in owner.operands if unshaped(v).owner in ops)
        else:
            return


def _check_gate(gate: Value, x: Value) -> None:
    source = unshaped(gate).owner
    if not isinstance(source, Linear):
        raise Refused(f"its weight is the sigmoid of {called(gate)}")
    _check_same(source.x, x)
    if gate.dtype is not x.dtype:
        raise Refused(f"its weight is computed in {gate.dtype}")


def _check_same(mine: Value, x: Value) -> None:
    if unshaped(mine) is not unshaped(x) or mine.shape[-1:] != x.shape[-1:]:
        raise Refused(f"reads {called(unshaped(mine))}, the experts {called(unshaped(x))}")
