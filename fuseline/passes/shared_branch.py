"""The shared branch of a mixture of experts: an MLP whose result is added to theirs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fuseline.ir.core import Func, Op, Trait, Value
from fuseline.ir.ops.create import Full
from fuseline.ir.ops.matmul import Linear, Matmul
from fuseline.ir.ops.pointwise import Add, Cast, Div, Mul, Sigmoid
from fuseline.ir.ops.raised import GatedMlp, LayerNorm, RmsNorm
from fuseline.ir.ops.reduce import Sum
from fuseline.ir.ops.view import Reshape
from fuseline.ir.types import DType, TensorType
from fuseline.passes.canonical_casts import is_exact
from fuseline.passes.constants import number
from fuseline.passes.expert_body import Refused, body_between
from fuseline.passes.expert_rows import unshaped
from fuseline.passes.fuse_gated_mlp import side_by_side
from fuseline.passes.lower_gated_mlp import activated
from fuseline.passes.match import narrow, only_user
from fuseline.passes.merge_linears import unpackable
from fuseline.passes.raise_gated_mlp import activation_of
from fuseline.passes.wording import called, readers_beside


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


@dataclass(frozen=True)
class Branch:
    """What an MLP makes, and what is done to it before it is added that `Moe` does not do.

    Attributes:
        value: what the MLP makes, weighed or not; absent for a branch that is none.
        steps: each as a reason why the branch stays.
    """

    value: Value | None
    steps: tuple[str, ...] = ()


def branch_behind(value: Value, x: Value) -> Branch | None:
    """The branch that makes a summand: an MLP, or else products of the experts' x."""
    if (found := _behind(value, x)) is not None:
        return found
    made = _makers(value, x)
    if made is None:
        return None
    return Branch(None, (f"made by {', '.join(sorted(made))}: no MLP that the op has",))


def _is_mlp(value: Value) -> bool:
    """Whether an MLP, weighed or not, makes a value."""
    inner = _ungated(value)[0]
    return isinstance(inner.owner, GatedMlp) or bool(_products(inner))


def _reads_like(branch: Branch, x: Value) -> bool:
    """Whether an MLP reads x, or a norm of the same."""
    assert branch.value is not None, "asked of MLPs"
    inner = _ungated(branch.value)[0]
    mlp = inner.owner if isinstance(inner.owner, GatedMlp) else _products(inner)[0].owner
    assert isinstance(mlp, (GatedMlp, Linear)), "an MLP has products"
    return root_of(mlp.x) is root_of(x)


def _behind(value: Value, x: Value, *, joined: bool = False) -> Branch | None:
    """The MLP behind ops that `Moe` does not do.

    A sum or product with another tensor may be the residual stream, in which the MLPs of earlier
    layers are: there it must be one over what the experts read, or over a norm of that, and one
    such op is all that is looked behind.
    """
    if _is_mlp(value):
        return Branch(value)
    op = value.owner
    match op:
        case Reshape():
            return _behind(op.x, x, joined=joined)
        case RmsNorm() | LayerNorm():
            return _with(_behind(op.x, x, joined=joined), "added as the norm of its result")
        case Cast():
            found = _behind(op.x, x, joined=joined)
            back = None if found is None or found.value is None else found.value.dtype
            return found if back is op.dtype else _with(found, f"added as its result in {op.dtype}")
        case Mul() | Div() | Add() if op.lhs is not op.rhs:
            for inner, other in (op.operands, op.operands[::-1]):
                plain = not other.shape
                if joined and not plain:
                    continue
                found = _behind(inner, x, joined=joined or not plain)
                if found is not None and (plain or _reads_like(found, x)):
                    return _with(found, _words(op, other))
            return None
        case Op() if op.has(Trait.POINTWISE) and len(op.operands) == 1:
            found = _behind(op.operands[0], x, joined=joined)
            return _with(found, f"added as {op.name} of its result")
        case _:
            return None


def _with(found: Branch | None, step: str) -> Branch | None:
    return None if found is None else replace(found, steps=(*found.steps, step))


def _words(op: Mul | Div | Add, other: Value) -> str:
    known = None if other.shape else number(other)
    name = called(other) if known is None else f"{known:g}"
    sign = {"mul": "times", "div": "divided by", "add": "plus"}[op.name]
    return f"added as its result {sign} {name}"


def root_of(value: Value) -> Value:
    """What a value is a norm of, however it is rounded, shaped and weighed."""
    while True:
        match value.owner:
            case Reshape(x=x) | Cast(x=x) | RmsNorm(x=x) | LayerNorm(x=x):
                value = x
            case Mul(lhs, rhs) if len(lhs.shape) != len(rhs.shape):
                value = lhs if len(lhs.shape) > len(rhs.shape) else rhs
            case _:
                return value


def _makers(value: Value, x: Value) -> set[str] | None:
    """The products, and what they are summed by, that make a value of x alone; else None."""
    root, names, reached = root_of(x), set[str](), False
    stack, seen = [value], set[Value]()
    while stack:
        current = stack.pop()
        op = current.owner
        if current in seen or (op is not None and not op.operands):
            continue
        seen.add(current)
        if current is x or current is unshaped(x) or current is root:
            reached = True
        elif isinstance(op, (Linear, Matmul, GatedMlp)):
            names.add(op.name)
            stack += op.operands
        elif op is None:
            continue
        elif isinstance(op, (RmsNorm, LayerNorm, Sum)) or _is_plain(op):
            stack += op.operands
        else:
            return None
    return names if reached and names and root not in _summands(value) else None


def _is_plain(op: Op) -> bool:
    return op.has(Trait.POINTWISE) or op.has(Trait.VIEW)


def _summands(value: Value) -> set[Value]:
    """What a value is the sum of."""
    found, stack = set[Value](), [value]
    while stack:
        current = stack.pop()
        if isinstance(current.owner, Add) and current not in found:
            stack += current.owner.operands
        found.add(current)
    return found


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
        _check_same(mlp.x, x)
        shared = _of_gated_mlp(mlp, func)
    else:
        shared = _of_products(inner, x, func)
    return shared if gate is None else replace(shared, gate=gate, words=f"{shared.words}, gated")


def described(value: Value, x: Value) -> str:
    """A branch over x in a few words, whether or not `Moe` could compute it.

    Raises:
        Refused: it reads something else.

    """
    inner, gate, _ = _ungated(value)
    mlp = inner.owner
    if isinstance(mlp, GatedMlp):
        _check_same(mlp.x, x)
        words = _name_of_gated(mlp)
    else:
        assert isinstance(mlp, Linear), "asked of branches only"
        for product in _products(inner):
            assert isinstance(product.owner, Linear), "products are"
            _check_same(product.owner.x, x)
        words = _name(mlp)
    return words if gate is None else f"{words}, gated"


def _ungated(value: Value) -> tuple[Value, Value | None, Mul | None]:
    """A branch without the sigmoid that weighs it, the sigmoid's logits, and the product."""
    inner = unshaped(value)
    product = inner.owner
    if isinstance(product, Mul):
        for weight, branch in (product.operands, product.operands[::-1]):
            logits = _logits(weight)
            if logits is not None and weight.shape == (*branch.shape[:-1], 1):
                return unshaped(branch), logits, product
    return inner, None, None


def _logits(weight: Value) -> Value | None:
    """The logits of a weight that is their sigmoid, rounded to its type once."""
    made = unshaped(weight).owner
    if isinstance(made, Cast):
        made = unshaped(made.x).owner
    if not isinstance(made, Sigmoid) or not is_exact(weight.dtype, made.y.dtype):
        return None
    plain = narrow(made.x)  # torch widens narrow numbers for a sigmoid, too
    return plain if plain.dtype is weight.dtype else made.x


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
    return Shared((op.gate, op.up), op.down, body, None, _name_of_gated(op))


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
    return Shared(weights, down.weight, body.func, None, _name(down))


def _name_of_gated(op: GatedMlp) -> str:
    return f"{op.activation} MLP of {op.gate.shape[0]}"


def _name(down: Linear) -> str:
    """An MLP by its second product: by its activation, where it has no gate and a known one."""
    inner, plain = unshaped(down.x), len(_products(down.y)) == 1
    squares = isinstance(inner.owner, Mul) and inner.owner.lhs is not inner.owner.rhs
    activation = activation_of(inner) if plain and not squares else None
    return " ".join([*([activation] if activation else []), f"MLP of {down.x.shape[-1]}"])


def _place(func: Func, value: Value) -> int:
    return 0 if value.owner is None else func.places[value.owner]


def _check_inside(func: Func, products: list[Value], inside: frozenset[Op]) -> None:
    """Nothing else may read what goes away."""
    made = [*products, *(v for op in inside if not isinstance(op, Linear) for v in op.results)]
    for value in made:
        if readers := readers_beside(func, value, inside):
            raise Refused(f"{called(value)} inside of it is read by {readers}")


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
    _check_same(narrow(source.x), x)
    if gate.dtype not in (x.dtype, DType.F32):
        raise Refused(f"its weight is computed in {gate.dtype}")


def _check_same(mine: Value, x: Value) -> None:
    if unshaped(mine) is unshaped(x) and mine.shape[-1:] == x.shape[-1:]:
        return
    root = root_of(x)
    if root_of(mine) is root and root not in (unshaped(mine), unshaped(x)):
        raise Refused(f"reads another norm of {called(root)} than the experts")
    raise Refused(f"reads {called(unshaped(mine))}, the experts {called(unshaped(x))}")
