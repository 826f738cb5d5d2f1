"""Attention spelled out: two products, and a softmax over the scores between them.

Read backwards from the second product: casts, the softmax, the logit of a sink that was appended
before it, masks that are added or filled in, a softcap, the scale, and the first product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

from fuseline.ir.core import Func, Op, Ref, Value
from fuseline.ir.ops import call, create, matmul, pointwise, reduce, view
from fuseline.ir.types import Dim, DType, product
from fuseline.passes.attention_forms import Form, once_each
from fuseline.passes.masks.arithmetic import number_of
from fuseline.passes.masks.elements import Elements
from fuseline.passes.masks.expressions import Datum
from fuseline.passes.masks.integers import ZERO, new_index, same_dim
from fuseline.passes.masks.terms import HIDING, Applied
from fuseline.passes.rewrite import NoMatch
from fuseline.passes.wording import called, maker

_STEPS = (
    pointwise.Cast,
    pointwise.Add,
    pointwise.Where,
    pointwise.Mul,
    pointwise.Div,
    pointwise.Tanh,
    view.Reshape,
)
"""What may stand between the first product and the softmax."""


class _Miss(Exception):
    """A predicate that failed, in words."""


def match_softmax(op: matmul.Matmul, func: Func, elements: Elements) -> Form | NoMatch | None:
    """The form of ``softmax(f(q @ k.T)) @ v``; None where no softmax leads to the product."""
    softmax = _softmax_before(op.lhs)
    if softmax is None:
        return None
    try:
        return _Reader(op, func, elements).form()
    except _Miss as miss:
        return NoMatch(str(miss))


def _softmax_before(weights: Value) -> reduce.Softmax | None:
    op = weights.owner
    while isinstance(op, (pointwise.Cast, view.Slice, view.Reshape)):
        op = op.x.owner
    return op if isinstance(op, reduce.Softmax) else None


class _Reader:
    """Reads one attention backwards; each value on the way may have no other reader."""

    def __init__(self, op: matmul.Matmul, func: Func, elements: Elements) -> None:
        self.op = op
        self.func = func
        self.elements = elements
        self.lead: tuple[Dim, ...] | None = None
        self.masks: list[tuple[Applied, int]] = []
        self.scale = 1.0
        self.softcap: float | None = None
        self.shifted: Value | None = None
        """Scores whose largest one was subtracted: that is a second reader."""

    def form(self) -> Form:
        """The form, or a `_Miss`."""
        softmax, dropped = self._weights(self.op.lhs)
        if softmax.axis != len(softmax.x.shape) - 1:
            raise _Miss(f"the softmax runs over dim {softmax.axis} of {softmax.x.type}")
        scores = self._shifted(self._cast(softmax.x))
        scores, column = self._sink(scores, dropped)
        product = self._scores(scores)
        return self._operands(product, column)

    # -- one step back ------------------------------------------------------------------------

    def _alone(self, value: Value) -> None:
        if self.func.use_count(value) > (2 if value is self.shifted else 1):
            names = sorted({op.name for op in self.func.users(value)})
            also = "is returned too" if self.func.is_returned(value) else f"readers: {names}"
            raise _Miss(
                f"{called(value)}, on the way to the second product, has another use ({also})"
            )

    def _cast(self, value: Value) -> Value:
        """The value before casts and regroupings of its leading dims."""
        while True:
            match value.owner:
                case pointwise.Cast(x) if x.dtype.is_float:
                    pass
                case view.Reshape(x) if x.shape[-2:] == value.shape[-2:]:
                    self._note_lead(x)
                    self._note_lead(value)
                case _:
                    return value
            self._alone(value)
            value = x

    def _note_lead(self, value: Value) -> None:
        if len(value.shape) == 4:
            self.lead = value.shape[:2]

    def _weights(self, value: Value) -> tuple[reduce.Softmax, view.Slice | None]:
        """The softmax, and the slice that drops the weights of sinks."""
        dropped: view.Slice | None = None
        value = self._cast(value)
        self._alone(value)
        if isinstance(value.owner, view.Slice):
            dropped = value.owner
            value = self._cast(dropped.x)
            self._alone(value)
        if not isinstance(value.owner, reduce.Softmax):
            raise _Miss(f"the weights come from {maker(value)}, not from a softmax")
        return value.owner, dropped

    def _shifted(self, value: Value) -> Value:
        """The scores before their largest one was subtracted, which changes no weight."""
        match value.owner:
            case pointwise.Sub(scores, largest) if _is_largest(largest, scores):
                self._alone(value)
                self.shifted = scores
                return self._cast(scores)
            case _:
                return value

    def _sink(self, value: Value, dropped: view.Slice | None) -> tuple[Value, Value | None]:
        """The scores and the column that stands behind them in the softmax."""
        last = len(value.shape) - 1
        match value.owner:
            case view.Concat((scores, column)) if value.owner.axis == last:
                pass
            case _ if dropped is None:
                return value, None
            case _:
                raise _Miss(f"weights are dropped, but {maker(value)} appended no logits")
        if dropped is None or column.shape[-1] != 1:
            raise _Miss(f"{column.type} is appended to the scores, and its weight is not dropped")
        ends = same_dim(dropped.start, 0) and same_dim(dropped.stop, scores.shape[-1])
        if dropped.axis != len(dropped.y.shape) - 1 or not ends or dropped.step != 1:
            raise _Miss(f"the slice {dropped.y.type} of the weights is not all but the last one")
        self._alone(value)
        return scores, column

    # -- from the softmax to the product ------------------------------------------------------

    def _scores(self, value: Value) -> _Product:
        """The first product; masks, factors and a softcap on the way are noted."""
        outer, cap = 1.0, None
        while True:
            value = self._cast(value)
            self._alone(value)
            factor, scaled = self._factor(value)
            if factor is not None:
                outer, value = outer * factor, scaled
            elif isinstance(value.owner, pointwise.Tanh):
                if cap is not None or outer <= 0:
                    raise _Miss(f"the scores go through tanh, times {outer}, within {cap}")
                cap, outer, value = outer, 1.0, value.owner.x
            elif (found := self._mask(value)) is not None:
                self._note_mask(found[0], outer, len(value.shape), cap)
                if found[1].shape != value.shape:
                    raise _Miss(f"the mask {found[0].value.type} widens scores {found[1].type}")
                value = found[1]
            elif (product := _product(value)) is not None:
                if product.added is not None:
                    self._note_mask(Applied(product.added, "add"), outer, len(value.shape), cap)
                self.scale, self.softcap = outer * product.factor * (cap or 1.0), cap
                return product
            else:
                raise _Miss(f"the scores come from {maker(value)}, not from a product")

    def _note_mask(self, applied: Applied, factor: float, rank: int, cap: float | None) -> None:
        """A mask, with the factor that the masked scores are multiplied by later."""
        if cap is not None or factor <= 0:
            raise _Miss(f"a mask comes before a softcap of {cap} or a factor of {factor}")
        if applied.how != "add" and applied.fill * factor > HIDING:
            raise _Miss(f"hidden scores are {applied.fill * factor}, which still counts")
        if factor != 1.0 and applied.how == "add":
            by = create.Full(value=factor, dtype=applied.value.dtype).y
            applied = replace(applied, value=pointwise.Mul(applied.value, by).y)
        self.masks.append((replace(applied, fill=applied.fill * factor), rank))

    def _mask(self, value: Value) -> tuple[Applied, Value] | None:
        match value.owner:
            case pointwise.Where(condition, lhs, rhs):
                for scores, other, how in ((lhs, rhs, "keep"), (rhs, lhs, "hide")):
                    fill = self._scalar(other)
                    if fill is not None and fill <= HIDING:
                        return Applied(condition, how, fill), scores
                return None
            case pointwise.Add(lhs, rhs):
                for scores, other in ((lhs, rhs), (rhs, lhs)):
                    if _leads_from_product(scores):
                        return Applied(other, "add"), scores
                return None
            case _:
                return None

    def _factor(self, value: Value) -> tuple[float | None, Value]:
        """A constant factor, and what it multiplies."""
        match value.owner:
            case pointwise.Mul(lhs, rhs):
                for x, other in ((lhs, rhs), (rhs, lhs)):
                    factor = self._scalar(other)
                    if factor is not None and x.shape == value.shape:
                        return factor, x
            case pointwise.Div(lhs, rhs) if lhs.shape == value.shape:
                divisor = self._scalar(rhs)
                if divisor:
                    return 1 / divisor, lhs
            case _:
                pass
        return None, value

    def _scalar(self, value: Value) -> float | None:
        op = value.owner
        if isinstance(op, create.Full) and op.y.tensor.numel == 1 and op.dtype is DType.F32:
            return float(op.value) if isinstance(op.value, (int, float)) else None
        if value.tensor.numel != 1:
            return None
        return number_of(self.elements.at(value, [ZERO] * len(value.shape)))

    # -- the operands -------------------------------------------------------------------------

    def _operands(self, product: _Product, column: Value | None) -> Form:
        q, k, v = product.lhs, product.rhs, self.op.rhs
        rank = len(product.y.shape)
        if rank not in (3, 4) or any(len(x.shape) != rank for x in (q, k, v)):
            raise _Miss(f"the products are of {q.type}, {k.type} and {v.type}")
        lead = product.y.shape[:2] if rank == 4 else self.lead or (1, product.y.shape[0])
        masks = tuple(self._lined_up(applied, at, lead) for applied, at in self.masks)
        dtype = self.op.y.dtype
        q = _regrouped(_narrow(q, dtype), lead)
        k = _regrouped(_narrow(k, dtype), lead)
        v = _regrouped(v, lead)
        k, v = once_each(k, v, self.elements, transposed=True)
        k = _narrow(k, dtype)
        if any(x.dtype is not dtype for x in (q, k, v)):
            raise _Miss(f"q is {q.type}, k {k.type}, v {v.type}: expected one element type")
        if q.shape[:2] != lead:
            raise _Miss(f"q {q.type} is repeated to the scores' {product.y.type}")
        sinks = None if column is None else self._sinks(column, lead)
        return Form(q, k, v, self.scale, masks, False, self.softcap, sinks)

    def _lined_up(self, applied: Applied, rank: int, lead: tuple[Dim, ...]) -> Applied:
        """A mask on scores ``[B * H, Sq, Sk]`` as one on ``[B, H, Sq, Sk]``."""
        mask = applied.value
        if rank == 4 or len(mask.shape) < 3 or mask.shape[0] == 1 or lead[0] == 1:
            return applied
        if not same_dim(mask.shape[0], product(lead)):
            raise _Miss(f"the mask {mask.type} does not line up with batch rows and heads")
        return replace(applied, value=view.Reshape(mask, shape=(*lead, *mask.shape[1:])).y)

    def _sinks(self, column: Value, lead: tuple[Dim, ...]) -> Value:
        """The logits ``[H]`` of which the column is a copy."""
        if len(column.shape) != 4:
            raise _Miss(f"the appended logits are {column.type}, not one column a head")
        heads = new_index("h", lead[1])
        place = (new_index("b", lead[0]), heads, new_index("q", column.shape[2]), ZERO)
        found = self.elements.at(column, place)
        number = number_of(found)
        if number is not None:
            return create.Full(value=number, shape=lead[1:], dtype=column.dtype).y
        if isinstance(found, Datum) and [i for i in found.at if i != ZERO] in ([heads], []):
            value = found.value
            if value.tensor.numel == lead[1]:
                return value if len(value.shape) == 1 else view.Reshape(value, shape=lead[1:]).y
        raise _Miss(f"the appended logits {column.type} differ by more than the head")


@dataclass(frozen=True)
class _Product:
    """``added + factor * lhs @ rhs``."""

    lhs: Value
    rhs: Value
    y: Value
    factor: float = 1.0
    added: Value | None = None


def _product(value: Value) -> _Product | None:
    """The product that makes a value; ``baddbmm`` adds a bias to it in the same call."""
    match value.owner:
        case matmul.Matmul(lhs, rhs):
            return _Product(lhs, rhs, value)
        case call.AtenCall((added, lhs, rhs)) if value.owner.target == "aten.baddbmm.default":
            factors = dict(cast("tuple[tuple[str, float], ...]", value.owner.kwargs))
            if value.owner.args != (Ref(0), Ref(1), Ref(2)) or factors.get("beta", 1) != 1:
                return None
            return _Product(lhs, rhs, value, float(factors.get("alpha", 1)), added)
        case _:
            return None


def _is_largest(value: Value, scores: Value) -> bool:
    """Whether a value is the largest score of each row."""
    last = len(scores.shape) - 1
    match value.owner:
        case reduce.Amax(x):
            return x is scores and value.owner.axes == (last,) and value.owner.keepdim
        case call.AtenCall(xs):
            args = (Ref(0), -1, True), (Ref(0), last, True)
            is_max = value.owner.target == "aten.max.dim" and value.owner.args in args
            return is_max and xs == (scores,) and value is value.owner.ys[0]
        case _:
            return False


def _leads_from_product(value: Value) -> bool:
    """Whether a value is made of a product by the steps that scores go through."""
    stack = [value]
    for _ in range(64):
        if not stack:
            return False
        value = stack.pop()
        if _product(value) is not None:
            return True
        op = value.owner
        if isinstance(op, _STEPS):
            stack += _floats(op)
    return False


def _floats(op: Op) -> Iterator[Value]:
    return (v for v in op.operands if v.dtype.is_float)


def _narrow(value: Value, dtype: DType) -> Value:
    """The value before a cast that only widened it: attention computes in float32 anyhow."""
    match value.owner:
        case pointwise.Cast(x) if x.dtype is dtype and value.dtype is DType.F32:
            return x
        case _:
            return value


def _regrouped(value: Value, lead: tuple[Dim, ...]) -> Value:
    if len(value.shape) == 4:
        return value
    return view.Reshape(value, shape=(*lead, *value.shape[1:])).y
