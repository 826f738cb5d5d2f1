"""Which two values are the q and k of one attention: its operands, or a pair of rotations.

Attention is not always an op of the func: it may be an operator that is not known, or lie behind
a graph break. Then two rotations belong together that have the same tables and, where there are
more, come from the same value.
"""

from __future__ import annotations

from fuseline.ir.core import Func, Op, Trait, Value
from fuseline.ir.ops.call import AtenCall
from fuseline.ir.ops.fused import GatedLinear, LinearAdd, MergedLinear
from fuseline.ir.ops.latent import LatentAttention
from fuseline.ir.ops.matmul import Linear, Matmul, Sdpa
from fuseline.ir.ops.raised import Attention, LayerNorm, RmsNorm, Rope
from fuseline.ir.ops.view import Permute, Reshape, Slice
from fuseline.passes.dependence import depends
from fuseline.passes.qk_chain import Chain, Order, trace, written_key

ROOTS = (Attention, Sdpa, Rope)
"""The ops from which `chains` finds q and k."""

_PRODUCTS = (Linear, MergedLinear, GatedLinear, LinearAdd, Matmul, AtenCall)
_VIEWS = (Reshape, Permute, Slice)


def chains(op: Op, func: Func) -> tuple[Chain, Chain] | None:
    """What makes the q and k of an attention op, a cached k by what is written for it; or of the
    attention to which a rotation and its partner go. None for a rotation that has none.
    """
    if not isinstance(op, Rope):
        assert isinstance(op, (Attention, Sdpa)), "the root is one of ROOTS"
        return trace(op.q), trace(written_key(func, op.k))
    partner = None if _attended(op, func) else _partner(op, func)
    if partner is None:
        return None
    return _chain(op, func), _chain(partner, func)


def _chain(rope: Rope, func: Func) -> Chain:
    """The chain that ends with a rotation, or with the norm that alone reads it."""
    users = func.users(rope.y)
    match users:
        case [RmsNorm() | LayerNorm() as norm] if func.use_count(rope.y) == 1:
            return trace(norm.y, _order(rope))
        case _:
            return trace(rope.y, _order(rope))


def _order(rope: Rope) -> Order:
    """Whether heads or tokens come first in what is rotated: the tables are the same for all heads,
    and have a row for each token.
    """
    if rope.x.tensor.rank != 4:
        return "bhsd"
    x, table = rope.x.shape, (1, 1, *rope.cos.shape)[-3:]
    if table[1] != 1:
        return "bhsd"
    return "bshd" if table[0] != 1 or x[1] == 1 else "bhsd"


def _partner(rope: Rope, func: Func) -> Rope | None:
    """The one later rotation by the same tables; of several, the one of the same origin."""
    found = [o for o in func.ops if isinstance(o, Rope) and (o.cos, o.sin) == (rope.cos, rope.sin)]
    found = [o for o in found if not _attended(o, func) and not depends(func, [o.x], [rope])]
    if len(found) > 2:
        found = [o for o in found if _origin(o) is _origin(rope)]
    return found[1] if len(found) == 2 and found[0] is rope else None


def _origin(rope: Rope) -> Value:
    """What the projection is made from of which a rotation takes a part."""
    value = trace(rope.y).source
    while isinstance(value.owner, _VIEWS):
        value = value.owner.x
    return value.owner.x if isinstance(value.owner, (Linear, MergedLinear)) else value


def _attended(rope: Rope, func: Func) -> bool:
    """Whether an attention op reads a rotation, with no product or unknown call between."""
    stack, seen = [rope.y], set[Value]()
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        for user in func.users(value):
            if isinstance(user, (Attention, LatentAttention, Sdpa)):
                return True
            if not isinstance(user, _PRODUCTS):
                stack += user.results
                stack += [v for v in user.operands if user.has(Trait.WRITES)]
    return False
