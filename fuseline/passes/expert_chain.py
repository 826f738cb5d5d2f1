"""Experts that are modules of their own, each on every token, added up one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fuseline.ir.core import Func, Op, Value
from fuseline.ir.ops.experts import Experts
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.ops.pointwise import Add, Cast, Eq, Mul, Where
from fuseline.ir.ops.reduce import Sum
from fuseline.ir.ops.view import Reshape, Slice
from fuseline.ir.types import DType, product, promote
from fuseline.passes.constants import is_number, number
from fuseline.passes.expert_body import Refused, body_between, check_readers
from fuseline.passes.expert_gate import Gate, are_distinct, gate_of
from fuseline.passes.expert_own import Mlp, Product, check_alike, check_packable, stacked_biases
from fuseline.passes.expert_products import lie_within
from fuseline.passes.expert_walk import ops_before
from fuseline.passes.match import only_user, reshaped
from fuseline.passes.wording import called

_LEAST = 2
"""How many experts there must be for a sum of weighed products to look like them."""


@dataclass(frozen=True)
class Term:
    """One expert: its weight for each token, and its last product."""

    weight: Value
    down: Linear
    inside: tuple[Op, ...]


def raised_chain(op: Add, func: Func) -> tuple[Value, Experts] | None:
    """The last addition of a chain of experts, and the op to take its place.

    None where it does not look like experts.

    Raises:
        Refused: it does, and a predicate fails.

    """
    if isinstance(reader := only_user(func, op.y), Add) and _term(reader.lhs, reader.rhs, op.y):
        return None  # not the last one
    terms, inside, begin = _terms(op)
    if len(terms) < _LEAST:
        return None
    columns = _Columns()
    places = [columns.of(term.weight) for term in terms]
    if not any(places):
        return None
    if places[0] is not None and places[1] is not None and places[0][0] > places[1][0]:
        terms[:2], places[:2] = terms[1::-1], places[1::-1]  # the sum of two has no order
    gate = _one_gate(terms, places)
    if begin is not None:
        raise Refused(f"the sum of the experts begins with {called(begin)}, not with zeros")
    experts = [_expert(term) for term in terms]
    _check_alike(experts)
    check_packable(func, experts)
    inside |= {o for t in terms for o in t.inside} | {o for e in experts for o in e.body.inside}
    inside.update(p.op for e in experts for p in e.products)
    check_readers(func, inside, op.y)
    return op.y, _op(experts, gate, op.y.dtype)


# -- the chain --------------------------------------------------------------------------------


def _terms(op: Add) -> tuple[list[Term], set[Op], Value | None]:
    """The terms of a chain of additions, and what it begins with; None for zeros or a term."""
    terms, inside = list[Term](), set[Op]()
    current = op.y
    while isinstance(current.owner, Add) and current.dtype is op.y.dtype:
        lhs, rhs = current.owner.lhs, current.owner.rhs
        term, total = _term_of(rhs), lhs
        if term is None:
            term, total = _term_of(lhs), rhs
        if term is None:
            break
        inside.add(current.owner)
        terms.insert(0, term)
        current = total
    if (first := _term_of(current)) is not None:
        return [first, *terms], inside, None
    return terms, inside, None if is_number(current, 0) else current


def _term(lhs: Value, rhs: Value, total: Value) -> Term | None:
    return _term_of(rhs if lhs is total else lhs)


def _term_of(value: Value) -> Term | None:
    """``weight * linear(...)``, the weight one number for each token."""
    owner = value.owner
    if not isinstance(owner, Mul) or len(value.shape) < 2:
        return None
    for weight, given in ((owner.lhs, owner.rhs), (owner.rhs, owner.lhs)):
        cast = given.owner
        product_ = cast.x.owner if isinstance(cast, Cast) else cast
        if not isinstance(product_, Linear) or weight.shape != (*given.shape[:-1], 1):
            continue
        if owner.y.dtype is promote([weight.tensor, product_.y.tensor]):
            inside = (owner, cast) if isinstance(cast, Cast) else (owner,)
            return Term(weight, product_, inside)
    return None


def expert_weighed_by(weight: Value) -> tuple[int, Gate] | None:
    """The expert that a weight for each token is of, and the weights of all."""
    return _Columns().of(weight)


class _Columns:
    """The expert that a weight ``[..., 1]`` is of, and the gate that it is a column of."""

    def __init__(self) -> None:
        self.gates: dict[Value, Gate | None] = {}

    def of(self, weight: Value) -> tuple[int, Gate] | None:
        """The number of the expert, and the weights of all."""
        value = weight
        while isinstance(value.owner, Reshape):
            value = value.owner.x
        match value.owner:
            case Slice(x, axis=axis, start=int(start)) if axis == len(x.shape) - 1:
                if x not in self.gates:
                    self.gates[x] = gate_of(x)
                gate = self.gates[x]
                return None if gate is None else (start, gate)
            case Sum(x, axes=(axis,)) if axis == len(x.shape) - 1:
                return _chosen(x)
            case _:
                return None


def _chosen(x: Value) -> tuple[int, Gate] | None:
    """``weights * (indices == e)``, to be summed."""
    match x.owner:
        case Mul(lhs, rhs):
            pairs = [(lhs, rhs), (rhs, lhs)]
        case Where(condition, chosen, other) if is_number(other, 0):
            pairs = [(condition, chosen)]
        case _:
            return None
    for hot, weights in pairs:
        compared = hot.owner.x.owner if isinstance(hot.owner, Cast) else hot.owner
        if not isinstance(compared, Eq) or weights.shape != x.shape:
            continue
        expert = number(compared.rhs)
        if isinstance(expert, int) and compared.lhs.shape == weights.shape:
            return expert, Gate.zero_elsewhere(compared.lhs, weights)
    return None


def _one_gate(terms: Sequence[Term], places: Sequence[tuple[int, Gate] | None]) -> Gate:
    """The gate that all weights are columns of, in the order of the experts."""
    found = [place for place in places if place is not None]
    if len(found) < len(terms):
        missing = terms[[place is None for place in places].index(True)]
        raise Refused(
            f"an expert is weighed by {called(missing.weight)}, which does not choose some experts"
        )
    gate = found[0][1]
    if any((g.indices, g.values) != (gate.indices, gate.values) for _, g in found):
        raise Refused("the experts are weighed by different choices")
    order = [expert for expert, _ in found]
    if order != list(range(len(terms))):
        raise Refused(f"the experts are added in the order {order}")
    if not gate.is_zero_elsewhere:
        raise Refused(f"experts that were not chosen have the weight {gate.fill.item()}, not 0")
    if not lie_within(gate.indices, len(terms)):
        raise Refused(
            f"the experts' numbers come from {called(gate.indices)}, which does not choose among "
            f"{len(terms)}"
        )
    if not are_distinct(gate.indices):
        raise Refused(f"{called(gate.indices)} may choose an expert twice for one token")
    return gate


# -- one expert -------------------------------------------------------------------------------


def _expert(term: Term) -> Mlp:
    ups = [Product.of(op) for op in ops_before(term.down.x) if isinstance(op, Linear)]
    body = body_between([up.y for up in ups], [up.width for up in ups], term.down.x)
    return Mlp(tuple(ups), Product.of(term.down), body)


def _check_alike(experts: Sequence[Mlp]) -> None:
    """All experts must read one x and do the same to it."""
    first = experts[0]
    for number_, expert in enumerate(experts):
        if any(up.x is not first.ups[0].x for up in expert.ups):
            raise Refused(f"expert {number_} reads another x")
        check_alike(number_, expert, first)


# -- the op -----------------------------------------------------------------------------------


def _op(experts: Sequence[Mlp], gate: Gate, dtype: DType) -> Experts:
    first = experts[0]
    x = first.ups[0].x
    tokens = product(x.shape[:-1])
    k = gate.indices.shape[-1]
    return Experts(
        reshaped(x, (tokens, x.shape[-1])),
        reshaped(gate.indices, (tokens, k)),
        reshaped(gate.values, (tokens, k)),
        tuple(up.weight for e in experts for up in e.ups),
        tuple(e.down.weight for e in experts),
        stacked_biases([up for e in experts for up in e.ups], len(experts)),
        stacked_biases([e.down for e in experts], len(experts)),
        experts=len(experts),
        body=first.body.func,
        gated=first.body.gated,
        interleaved=first.body.interleaved,
        round_bias=False,
        combine="in_turn",
        dtype=dtype,
    )
