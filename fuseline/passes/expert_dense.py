"""Experts that compute every token, of which only the chosen ones count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from fuseline.ir.core import Func, Op, Value
from fuseline.ir.evaluate import evaluate
from fuseline.ir.ops.experts import Experts, Weigh
from fuseline.ir.ops.matmul import Matmul
from fuseline.ir.ops.pointwise import Add, Cast, Mul
from fuseline.ir.ops.reduce import Sum
from fuseline.ir.ops.view import Permute, Reshape
from fuseline.ir.types import Dim, DType
from fuseline.passes.canonical_casts import is_exact
from fuseline.passes.expert_axes import (
    Axes,
    Extents,
    broadcast,
    follows,
    traced,
    view_along,
    viewed,
)
from fuseline.passes.expert_body import Body, Refused, body_between, check_readers
from fuseline.passes.expert_gate import Gate, are_distinct, gate_of
from fuseline.passes.expert_products import SWAPPED, lie_within, oriented
from fuseline.passes.expert_walk import VIEWS, ops_after, ops_before
from fuseline.passes.match import only_user, other_operand
from fuseline.passes.wording import called


@dataclass(frozen=True)
class Dense:
    """``[E, T, K]`` (or ``[T, K]``) by matrices ``[E, N, K]`` (``transposed``: ``[E, K, N]``).

    The dims of the result ``y`` follow ``axes``: e and t, or t and e, then n.
    """

    op: Matmul
    y: Value
    axes: Axes
    inside: tuple[Op, ...]
    rows: Value
    weight: Value
    transposed: bool
    experts: int
    depth: int
    width: int


def dense_product(op: Op, func: Func) -> Dense | None:
    """A product of all tokens by the matrices of all experts, which are an argument."""
    if not isinstance(op, Matmul) or len(op.y.shape) != 3:
        return None
    return _batched(op) or _side_by_side(op, func)


def _batched(op: Matmul) -> Dense | None:
    """One product for each expert."""
    weight, transposed = op.rhs, True
    if isinstance(weight.owner, Permute) and weight.owner.dims == SWAPPED:
        weight, transposed = weight.owner.x, False
    match weight.owner, op.rhs.shape:
        case None, (int(experts), int(depth), int(width)) if experts > 1:
            axes = ("e", "t", "n")
            inside = (op,)
            return Dense(op, op.y, axes, inside, op.lhs, weight, transposed, experts, depth, width)
        case _:
            return None


def _side_by_side(op: Matmul, func: Func) -> Dense | None:
    """One product for all experts, whose matrices stand side by side, as einsum has it."""
    joined = op.rhs.owner
    moved = joined.x.owner if isinstance(joined, Reshape) else None
    if not isinstance(moved, Permute) or op.lhs.shape[0] != 1:
        return None
    if moved.x.owner is not None or moved.dims not in ((2, 0, 1), (1, 0, 2)):
        return None
    match moved.y.shape:
        case (int(depth), int(experts), int(width)) if experts > 1:
            if op.rhs.shape != (1, depth, experts * width):
                return None
            turned = moved.dims == (1, 0, 2)
            extents = {"e": experts, "t": op.y.shape[1], "n": width}
            for y, axes, inside in _views(op, func, extents):
                if any(follows(axes, wanted, extents) for wanted in ("ten", "etn")):
                    shape = (op.lhs, moved.x, turned, experts, depth, width)
                    return Dense(op, y, axes, inside, *shape)
            return None
        case _:
            return None


def _views(
    op: Matmul, func: Func, extents: Extents
) -> Iterator[tuple[Value, Axes, tuple[Op, ...]]]:
    """What views make of the columns of all experts, with the ops up to there."""
    y, inside = op.y, list[Op]([op])
    axes: Axes | None = ("", "" if extents["t"] == 1 else "t", "en")
    while isinstance(user := only_user(func, y), (Permute, Reshape)):
        axes = viewed(user, axes, extents)
        if axes is None:
            return
        inside.append(user)
        y = user.y
        yield y, axes, tuple(inside)


def raised_dense(op: Op, func: Func) -> tuple[Value, Experts] | None:
    """The sum that experts on every token end in, and the op to take its place.

    None where it does not look like experts: two such products with element-wise ops between.

    Raises:
        Refused: it does, but experts that were not chosen may count.

    """
    up = dense_product(op, func)
    down = None if up is None else _second(func, up.y)
    if up is None or down is None:
        return None
    ups = sorted(_before(down.rows, func), key=lambda d: func.places[d.op])
    if not ups or op is not ups[0].op or any(_before(u.rows, func) for u in ups):
        return None
    return _Match(func, ups, down).run()


_VIEWS = (*VIEWS, Permute)
"""Products of all experts at once have their dims moved, too."""


def _second(func: Func, value: Value) -> Dense | None:
    """The product whose rows are made of a value by element-wise ops and views."""
    for op, read in ops_after(func, value, _VIEWS):
        if (found := dense_product(op, func)) is not None:
            return found if found.rows is read else None
    return None


def _before(value: Value, func: Func) -> list[Dense]:
    """The dense products that a value is made of by element-wise ops and views."""
    found = (dense_product(op, func) for op in ops_before(value, _VIEWS))
    return [dense for dense in found if dense is not None]


@dataclass
class _Match:
    func: Func
    ups: list[Dense]
    down: Dense
    inside: set[Op] = field(default_factory=set[Op])
    extents: dict[str, Dim] = field(default_factory=dict[str, "Dim"])
    gate: Gate | None = None

    def run(self) -> tuple[Value, Experts]:
        """Match, from what goes in to the sum."""
        up, down = self.ups[0], self.down
        tokens = down.y.shape[down.axes.index("t")]
        self.extents = {"e": up.experts, "t": tokens, "k": up.depth, "d": down.width}
        for other in (*self.ups, down):
            self.inside.update(other.inside)
            if other.experts != up.experts:
                raise Refused(f"{up.experts} experts in one product, {other.experts} in another")
        sides = [self.biased(u) for u in self.ups]
        up_bias = sides[0][1]
        if len(sides) > 1 and any(bias is not None for _, bias in sides):
            raise Refused("gate and up are apart and have a bias")
        body = body_between([y for y, _ in sides], [u.width for u in self.ups], self.inner())
        last, down_bias = self.biased(down)
        self.inside |= body.inside
        y, dtype = self.summed(last)
        if any(u.rows is not up.rows for u in self.ups):
            raise Refused("gate and up read different rows")
        x, weigh = self.given(up, body, has_bias=up_bias is not None or down_bias is not None)
        gate = self.gate
        if gate is None:
            raise Refused("no weights of the experts are multiplied to what goes in or comes out")
        if not lie_within(gate.indices, up.experts):
            raise Refused(f"the experts' numbers come from {called(gate.indices)}")
        if not are_distinct(gate.indices):
            raise Refused(f"{called(gate.indices)} may choose an expert twice for one token")
        check_readers(self.func, self.inside, y)
        turned = down.transposed
        return y, Experts(
            x,
            gate.indices,
            gate.values,
            tuple(oriented(u.weight, turn=u.transposed is not turned) for u in self.ups),
            (down.weight,),
            up_bias,
            down_bias,
            experts=up.experts,
            body=body.func,
            gated=body.gated,
            interleaved=body.interleaved,
            transposed=turned,
            weigh=weigh,
            combine="experts",
            dtype=dtype,
        )

    def inner(self) -> Value:
        """What the second product reads, before views that move its leading dims."""
        value, axes = self.down.rows, ["e", "t", "n"]
        while isinstance(value.owner, Permute) and value.owner.dims[-1] == len(value.shape) - 1:
            self.inside.add(value.owner)
            axes = [axes[value.owner.dims.index(i)] for i in range(len(axes))]
            value = value.owner.x
        for up in self.ups:
            if self.order(up.axes) != self.order(axes):
                raise Refused(f"{called(self.down.rows)} has experts and tokens in another order")
        return value

    def order(self, axes: Sequence[str]) -> list[str]:
        """Whether experts or tokens come first, where there are several of both."""
        return [a for a in axes if a in ("e", "t") and self.extents[a] != 1]

    def biased(self, product: Dense) -> tuple[Value, Value | None]:
        """A product with the bias of its experts, ``[E, N]``, where there is one."""
        y = product.y
        user = only_user(self.func, y)
        other = other_operand(user, y) if isinstance(user, Add) else None
        if not isinstance(user, Add) or other is None or user.y.type != y.type:
            return y, None
        axes = broadcast(other, product.axes)
        extents = self.extents | {"n": product.width}
        bias = None if "t" in axes else view_along(other, axes, "en", extents)
        if bias is None:
            return y, None
        self.inside.add(user)
        return user.y, bias

    def summed(self, value: Value) -> tuple[Value, DType]:
        """Follow what the experts give to its sum over them."""
        axes: Axes = tuple("" if self.extents[a] == 1 else a for a in (*self.down.axes[:2], "d"))
        while True:
            user = only_user(self.func, value)
            if user is None:
                raise Refused(f"{called(value)}, of each expert by itself, has several readers")
            self.inside.add(user)
            match user:
                case Permute() | Reshape() if moved := viewed(user, axes, self.extents):
                    axes = moved
                case Cast(dtype=dtype) if is_exact(value.dtype, dtype):
                    pass
                case Mul():
                    self.weighed(other_operand(user, value), axes, user.y.dtype, self.down)
                case Sum(axes=(axis,)) if axes[axis] == "e" and self.is_rest(axes, axis):
                    return self.rounded(user.y)
                case Matmul() if (other := self.contracted(user, value, axes)) is not None:
                    self.weighed(other[0], other[1], user.y.dtype, self.down)
                    return self.in_float32(user.y)
                case _:
                    raise Refused(
                        f"what the experts give is read by {user.name}, which neither weighs it "
                        "nor adds it up"
                    )
            value = user.results[0]

    def is_rest(self, axes: Axes, axis: int) -> bool:
        """Whether tokens and columns are left where an axis is added up."""
        return follows((*axes[:axis], *axes[axis + 1 :]), "td", self.extents)

    def rounded(self, y: Value) -> tuple[Value, DType]:
        """The sum, or what it is cast to."""
        reader = only_user(self.func, y)
        if isinstance(reader, Cast) and is_exact(reader.dtype, y.dtype):
            return reader.y, reader.dtype
        return y, y.dtype

    def contracted(self, op: Matmul, value: Value, axes: Axes) -> tuple[Value, Axes] | None:
        """What each token's sum over experts weighs them by, ``[T, 1, E]`` or ``[T, E, 1]``."""
        token = axes[0] if axes else ""
        if op.rhs is value and op.lhs is not value and follows(axes, "ted", self.extents):
            return (op.lhs, (token, "", "e")) if op.lhs.shape[1] == 1 else None
        if op.lhs is value and op.rhs is not value and follows(axes, "tde", self.extents):
            return (op.rhs, (token, "e", "")) if op.rhs.shape[2] == 1 else None
        return None

    def in_float32(self, y: Value) -> tuple[Value, DType]:
        """The sum of a product, which rounds once: the weights multiply in float32."""
        gate = self.gate
        assert gate is not None, "the product has weighed"
        if not is_exact(gate.values.dtype, DType.F32):
            raise Refused(f"weights of {gate.values.dtype} are added up by a product")
        if gate.values.dtype is not DType.F32:
            self.gate = replace(gate, values=Cast(gate.values, dtype=DType.F32).y)
        return y, y.dtype

    def weighed(self, value: Value | None, axes: Axes, dtype: DType, product: Dense) -> None:
        """Take the weights of the experts, which must be 0 for those that were not chosen."""
        if value is None or self.gate is not None:
            raise Refused("what the experts give is multiplied more than once")
        own = broadcast(value, axes)
        matrix = view_along(value, own, "te", self.extents)
        gate = None if matrix is None else gate_of(matrix)
        if gate is None:
            raise Refused(
                f"the weights of the experts come from {called(value)}, which does not choose "
                "some of them"
            )
        if not gate.is_zero_elsewhere:
            raise Refused(f"experts that were not chosen have the weight {gate.fill.item()}, not 0")
        promoted = torch.promote_types(gate.values.dtype.torch, product.op.y.dtype.torch)
        if promoted != dtype.torch:
            raise Refused(f"weights of {gate.values.dtype} are multiplied in {dtype}")
        self.gate = gate

    def given(self, up: Dense, body: Body, *, has_bias: bool) -> tuple[Value, Weigh]:
        """x ``[T, H]`` that goes into the experts, and where the weights are multiplied."""
        axes: Axes = ("e", "t", "k") if len(up.rows.shape) == 3 else ("t", "k")
        axes = broadcast(up.rows, axes)
        for source, own in traced(up.rows, axes, self.extents):
            x = self._copied(source, own)
            if x is not None:
                return x, "output"
            if isinstance(source.owner, Mul) and self.gate is None:
                return self._weighed_input(source.owner, own, up, body, has_bias), "input"
        raise Refused(f"the rows come from {called(up.rows)}, which is not each token once")

    def _copied(self, value: Value, axes: Axes) -> Value | None:
        """x, where a value holds each token's row and no axis of experts any more."""
        for source, own in traced(value, axes, self.extents):
            if "e" not in "".join(own):
                return view_along(source, own, "tk", self.extents)
        return None

    def _weighed_input(self, op: Mul, axes: Axes, up: Dense, body: Body, has_bias: bool) -> Value:
        for rows, weights in ((op.lhs, op.rhs), (op.rhs, op.lhs)):
            x = self._copied(rows, broadcast(rows, axes))
            if x is None:
                continue
            self.weighed(weights, axes, op.y.dtype, up)
            if has_bias:
                raise Refused("experts with a bias give more than 0 where nothing goes in")
            if not maps_zero_to_zero(body.func):
                raise Refused("the activation does not map 0 to 0: all experts count")
            if op.y.dtype is not up.op.y.dtype or x.dtype is not op.y.dtype:
                raise Refused(f"x is {x.dtype}, weighed in {op.y.dtype}")
            return x
        raise Refused(f"the rows come from {called(op.y)}, which is not each token once")


def maps_zero_to_zero(body: Func) -> bool:
    """Whether element-wise ops give exactly 0 where all their arguments are 0."""
    zeros = [torch.zeros(1, dtype=a.dtype.torch) for a in body.args]
    return all(bool((y == 0).all()) for y in evaluate(body, zeros, binding={}))
