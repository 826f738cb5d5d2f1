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
    match compared.owner:
        case Where(condition, lhs, rhs):
            mask, inverted = _mask(condition)
            chosen, filled = (rhs, lhs) if inverted else (lhs, rhs)
            fill = number(filled)
            groups = None if fill is None else _groups(mask, chosen, float(fill))
            if groups is not None and chosen.shape == compared.shape:
                return (None if groups.top == groups.count else groups), chosen
        case _:
            pass
    return None, compared


def _mask(condition: Value) -> tuple[Value, bool]:
    """A mask without its casts and negations, and whether it is negated."""
    inverted = False
    while isinstance(condition.owner, (LogicalNot, Cast)):
        inverted ^= isinstance(condition.owner, LogicalNot)
        condition = condition.owner.x
    return condition, inverted


def _groups(mask: Value, chosen: Value, fill: float) -> Groups | None:
    """The groups that a mask over all experts ``[..., E]`` keeps."""
    *lead, experts = chosen.shape
    marks = _each_group(mask).owner
    if not isinstance(marks, Scatter) or not isinstance(experts, int):
        return None
    groups = marks.y.shape[-1]
    best = marks.index.owner
    if not isinstance(groups, int) or marks.y.shape != (*lead, groups) or experts % groups:
        return None
    if not _spreads(mask, marks.y, (*lead, groups, experts // groups)):
        return None
    if not is_number(marks.x, 0) or not is_number(marks.src, 1):
        return None
    last = len(lead)
    if marks.axis != last or not isinstance(best, TopK) or best.indices is not marks.index:
        return None
    score = _group_score(best.x, chosen, (*lead, groups, experts // groups))
    if score is None or best.axis != last or not best.largest or not isinstance(best.k, int):
        return None
    return Groups(groups, best.k, score, fill)


def _each_group(mask: Value) -> Value:
    """What a mask over experts repeats."""
    while isinstance(mask.owner, (Reshape, Expand, Cast)):
        mask = mask.owner.x
    return mask


def _spreads(mask: Value, marks: Value, by_group: tuple[object, ...]) -> bool:
    """Whether a mask ``[..., E]`` is each mark ``[..., G]`` for all experts of its group."""
    *lead, groups, each = by_group
    source = _plain(mask)
    if isinstance(source.owner, Reshape) and source.owner.x.shape == tuple(by_group):
        source = _plain(source.owner.x)
    if not isinstance(source.owner, Expand):
        return each == 1 and _views_of(source, marks)
    wide, source = source.shape, _plain(source.owner.x)
    if wide == tuple(by_group):
        fits = source.shape == (*lead, groups, 1)
    else:
        fits = groups == 1 and wide == (*lead, each) and source.shape == (*lead, 1)
    return fits and _views_of(source, marks)


def _views_of(value: Value, source: Value) -> bool:
    """Whether a value holds the elements of another in their order."""
    while value is not source and isinstance(value.owner, (Reshape, Cast)):
        value = value.owner.x
    return value is source


def _plain(value: Value) -> Value:
    """A value without the casts that lead to it: those of marks of 0 and 1 change none."""
    while isinstance(value.owner, Cast):
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
    return value.shape == tuple(by_group) and _views_of(value, chosen)
