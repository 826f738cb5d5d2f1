"""What a router's top-k compares: scores of the logits, a correction, and limits to groups."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fuseline.ir.core import Func, Value
from fuseline.ir.ops.experts import GroupScore, Score
from fuseline.ir.ops.index import Gather, Scatter
from fuseline.ir.ops.pointwise import Add, Cast, LogicalNot, Sigmoid, Softplus, Sqrt, Where
from fuseline.ir.ops.reduce import Amax, Softmax, Sum, TopK
from fuseline.ir.ops.view import Expand, Reshape
from fuseline.ir.types import DType, promote
from fuseline.passes.constants import is_number, number
from fuseline.passes.expert_rows import unshaped
from fuseline.passes.match import narrow


@dataclass(frozen=True)
class Groups:
    """Selection within the best groups of experts: the attributes of `Route`."""

    count: int
    top: int
    score: GroupScore
    fill: float


@dataclass(frozen=True)
class Choice:
    """What top-k compares, in the terms of `Route`.

    Attributes:
        logits: what the scores are made of; whatever makes them stays in front.
        score: how.
        scores: the scores of all experts, before the correction.
        dtype: their element type.
        correction: ``[E]``, added for the selection.
        groups: absent where all groups compete.
    """

    logits: Value
    score: Score
    scores: Value
    dtype: DType
    correction: Value | None = None
    groups: Groups | None = None


def choice_of(topk: TopK, func: Func) -> Choice:
    """How a router makes what its top-k compares."""
    groups, compared = _without_groups(topk.x)
    gathered = [g.x for g in func.users(topk.indices) if isinstance(g, Gather)]
    choice = _corrected(compared, gathered) or _scored(compared)
    return replace(choice, groups=groups)


def _scored(scores: Value) -> Choice:
    """Scores without a correction."""
    last = scores.tensor.rank - 1
    score: Score = "none"
    made = scores
    match scores.owner:
        case Softmax(x, axis=axis) if axis == last:
            score, made = "softmax", x
        case Sigmoid(x):
            score, made = "sigmoid", x
        case Sqrt(x) if isinstance(x.owner, Softplus):
            score, made = "sqrt_softplus", x.owner.x
        case _:
            pass
    return Choice(narrow(made), score, scores, scores.dtype)


def _corrected(compared: Value, gathered: list[Value]) -> Choice | None:
    """Scores with a correction, where the weights are ``gathered`` from those without it.

    The sum of logits and a vector is a correction only then; else it makes the logits.
    """
    if not isinstance(compared.owner, Add):
        return None
    for side, other in (compared.owner.operands, compared.owner.operands[::-1]):
        vector = _vector(other, compared)
        if vector is None or side.shape != compared.shape:
            continue
        scores = narrow(side) if narrow(side) in gathered else side
        choice = _scored(scores)
        if choice.score == "none" and scores not in gathered:
            continue
        if scores.dtype is compared.dtype:
            vector = narrow(vector)
        if promote([scores.tensor, vector.tensor]) is compared.dtype:
            return replace(choice, correction=vector)
    return None


def _vector(value: Value, compared: Value) -> Value | None:
    """A value as ``[E]`` where it is one number an expert, the same for all tokens."""
    width = compared.shape[-1:]
    while isinstance(value.owner, Reshape) and value.shape != width:
        value = value.owner.x
    source = narrow(value)
    if value.shape == width:
        return value
    of_model = source.owner is None and source.origin is not None and source.origin.kind != "input"
    if of_model and value.tensor.numel == width[0] and value.shape[-1:] == width:
        return Reshape(value, shape=width).y
    return None


def _without_groups(compared: Value) -> tuple[Groups | None, Value]:
    """The limit to the best groups, and the values that it is put on."""
    op = unshaped(compared).owner
    op = compared.owner if isinstance(compared.owner, Where) else op
    if not isinstance(op, Where):
        return None, compared
    marks, inverted = _marks(op.condition)
    chosen, filled = (op.rhs, op.lhs) if inverted else (op.lhs, op.rhs)
    fill = number(filled)
    if marks is None or fill is None or chosen.shape != op.y.shape:
        return None, compared
    if chosen.shape != compared.shape:
        chosen = unshaped(chosen)  # the groups are a dim of their own
        if chosen.shape != compared.shape:
            return None, compared
    groups = _groups(marks, op.condition, chosen, float(fill))
    if groups is None:
        return None, compared
    return (None if groups.top == groups.count else groups), chosen


def _marks(condition: Value) -> tuple[Scatter | None, bool]:
    """The marks of groups that a condition repeats, and whether it holds outside of the best."""
    inverted = False
    while isinstance(condition.owner, (LogicalNot, Cast, Reshape, Expand)):
        inverted ^= isinstance(condition.owner, LogicalNot)
        condition = condition.owner.x
    marks = condition.owner
    if not isinstance(marks, Scatter):
        return None, False
    if is_number(marks.x, 0) and is_number(marks.src, 1):
        return marks, inverted
    if is_number(marks.x, 1) and is_number(marks.src, 0):
        return marks, not inverted
    return None, False


def _groups(marks: Scatter, mask: Value, chosen: Value, fill: float) -> Groups | None:
    """The groups that a mask over all experts keeps."""
    *lead, experts = chosen.shape
    groups, best = marks.y.shape[-1], marks.index.owner
    if not isinstance(experts, int) or not isinstance(groups, int) or experts % groups:
        return None
    by_group = (*lead, groups, experts // groups)
    if marks.y.shape != (*lead, groups) or not _spreads(mask, marks.y, by_group):
        return None
    last = len(lead)
    if marks.axis != last or not isinstance(best, TopK) or best.indices is not marks.index:
        return None
    score = _group_score(best.x, chosen, by_group)
    if score is None or best.axis != last or not best.largest or not isinstance(best.k, int):
        return None
    return Groups(groups, best.k, score, fill)


def _spreads(mask: Value, marks: Value, by_group: tuple[object, ...]) -> bool:
    """Whether a mask is each mark ``[..., G]`` for all experts of its group: ``[..., E]``, or
    ``[..., G, E / G]``, or that with a last dim of 1.
    """
    *lead, groups, each = by_group
    column = (*lead, groups, 1)
    source = _plain(mask)
    if isinstance(source.owner, Reshape) and source.owner.x.shape == tuple(by_group):
        source = _plain(source.owner.x)
    if not isinstance(source.owner, Expand):
        return (each == 1 or source.shape == column) and _views_of(source, marks)
    wide, source = source.shape, _plain(source.owner.x)
    if wide == tuple(by_group):
        fits = source.shape == column
    else:
        fits = groups == 1 and wide == (*lead, each) and source.shape == (*lead, 1)
    return fits and _views_of(source, marks)


def _views_of(value: Value, source: Value) -> bool:
    """Whether a value holds the elements of another in their order, or the negation of each."""
    while value is not source and isinstance(value.owner, (Reshape, Cast, LogicalNot)):
        value = value.owner.x
    return value is source


def _plain(value: Value) -> Value:
    """A mask without the casts and negations that lead to it: those of 0 and 1 are by element."""
    while isinstance(value.owner, (Cast, LogicalNot)):
        value = value.owner.x
    return value


def _group_score(value: Value, chosen: Value, by_group: tuple[object, ...]) -> GroupScore | None:
    """How the groups ``[..., G]`` of the chosen values are compared."""
    axis = len(by_group) - 1
    match value.owner:
        case Amax(x, axes=axes) if axes == (axis,):
            return "max" if _grouped(x, chosen, by_group) else None
        case Sum(x, axes=axes) if axes == (axis,):
            best = x.owner
            if not isinstance(best, TopK) or best.values is not x:
                return None
            plain = (best.axis, best.k, best.largest) == (axis, 2, True)
            return "top2" if plain and _grouped(best.x, chosen, by_group) else None
        case _:
            return None


def _grouped(value: Value, chosen: Value, by_group: tuple[object, ...]) -> bool:
    """Whether a value is the chosen ones group by group."""
    if value.shape != tuple(by_group):
        return False
    while value is not chosen and isinstance(value.owner, Reshape):
        value = value.owner.x
    return value is chosen
