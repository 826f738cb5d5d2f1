"""The chain of norm and rotation that makes the q or k operand of an attention op, read backwards.

Reshapes keep the row-major order of the elements and a permute ``(0, 2, 1, 3)`` swaps heads and
tokens, so the walk needs to know only one thing of the values between: whether heads or tokens
come first. Shapes such as ``[B * S, H, D]`` are no special cases then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from fuseline.ir.core import Func, Op, Value
from fuseline.ir.ops.buffer import IndexWrite, Read, ShiftWrite, SliceWrite
from fuseline.ir.ops.index import IndexCopy, SliceScatter
from fuseline.ir.ops.raised import LayerNorm, RmsNorm, Rope
from fuseline.ir.ops.view import Concat, Expand, Permute, Reshape, Slice
from fuseline.ir.types import Dim, dim
from fuseline.passes.match import reshaped
from fuseline.passes.wording import maker

Order: TypeAlias = Literal["bshd", "bhsd"]
Norm: TypeAlias = "RmsNorm | LayerNorm"

SWAP = (0, 2, 1, 3)


@dataclass
class Chain:
    """What lies between a projection and an attention operand ``out``, in the order ``layout``.

    ``source`` is what the first of ``steps`` (norm and rope, in program order) reads, with its
    elements in ``order``; ``between`` are the values that would no longer exist if the chain were
    one op.
    """

    out: Value
    source: Value
    order: Order = "bhsd"
    layout: Order = "bhsd"
    steps: list[Norm | Rope] = field(default_factory=list["Norm | Rope"])
    orders: dict[Op, Order] = field(default_factory=dict[Op, "Order"])
    between: list[Value] = field(default_factory=list[Value])

    @property
    def bhsd(self) -> tuple[Dim, Dim, Dim, Dim]:
        """Batch, heads, tokens and head dim of an ``out`` with four dims."""
        b, x, y, d = self.out.shape
        return (b, x, y, d) if self.layout == "bhsd" else (b, y, x, d)

    @property
    def norm(self) -> Norm | None:
        """The norm, where there is one."""
        return next((s for s in self.steps if isinstance(s, (RmsNorm, LayerNorm))), None)

    @property
    def rope(self) -> Rope | None:
        """The rotation, where there is one."""
        return next((s for s in self.steps if isinstance(s, Rope)), None)

    @property
    def orders_coincide(self) -> bool:
        """Whether heads before tokens and tokens before heads are the same order of elements."""
        return 1 in self.out.shape[1:3]

    @property
    def scope(self) -> Literal["head", "row"] | None:
        """What the norm runs over: a head, all heads of a token, or neither."""
        norm = self.norm
        if norm is None:
            return None
        _, heads, _, width = self.bhsd
        if norm.x.shape[-1] == width:
            return "head"
        by_token = self.orders[norm] == "bshd" or self.orders_coincide
        return "row" if by_token and norm.x.shape[-1] == dim(heads * width) else None

    def separate_norms(self) -> int:
        """How many norms of single heads are concatenated to the source; 0 where it is no such."""
        value = self.source
        while isinstance(value.owner, (Reshape, Permute)):
            value = value.owner.x
        if not isinstance(value.owner, Concat):
            return 0
        parts = value.owner.xs
        return len(parts) if all(_is_normed(x) for x in parts) else 0

    def describe(self) -> str:
        """What is done to the operand, for reasons."""
        words = ["rotated" if isinstance(s, Rope) else "normalised" for s in self.steps]
        return " and ".join(words) or f"plain (from {maker(self.source)})"

    def by_token(self) -> Value:
        """The source as ``[B, S, H, D]``, by view ops that are not yet in the func."""
        b, h, s, d = self.bhsd
        if self.order == "bshd" or self.orders_coincide:
            return reshaped(_swapped_back(self.source, (b, s, h, d)), (b, s, h, d))
        source = reshaped(self.source, (b, h, s, d))
        match source.owner:
            case Permute(x, dims=dims) if dims == SWAP:
                return x
            case _:
                return Permute(source, dims=SWAP).y


def _swapped_back(value: Value, shape: tuple[Dim, ...]) -> Value:
    """What was permuted to give the value, where that has the shape already: with one token."""
    match value.owner:
        case Permute(x, dims=dims) if dims == SWAP and x.shape == shape:
            return x
        case _:
            return value


def _is_normed(value: Value) -> bool:
    while isinstance(value.owner, (Reshape, Permute)):
        value = value.owner.x
    return isinstance(value.owner, (RmsNorm, LayerNorm))


def trace(out: Value, layout: Order = "bhsd", *, rope: bool = True) -> Chain:
    """Walk back from an attention operand as far as norm, views, and a rotation if asked, go."""
    chain = Chain(out, out, layout, layout)
    current, order, passed = out, layout, list[Value]()
    while True:
        match current.owner:
            case Permute(dims=dims) as op if dims == SWAP and _is_in(chain, order, current):
                order = "bshd" if order == "bhsd" else "bhsd"
            case Reshape() as op:
                pass
            case RmsNorm() | LayerNorm() as op if chain.norm is None:
                chain.steps.insert(0, op)
            case Rope() as op if rope and chain.rope is None:
                chain.steps.insert(0, op)
            case _:
                return _ended(chain, current, order)
        passed.append(current)
        current = op.x
        if chain.steps and chain.steps[0] is op:
            chain.orders[op] = order
            chain.source, chain.order = current, order
            chain.between += passed
            passed = []


def without_rope(chain: Chain) -> Chain:
    """The part of a chain before its rotation, or behind it: the one that has the norm."""
    if chain.rope is None:
        return chain
    if chain.steps[-1] is chain.rope:
        return trace(chain.rope.x, chain.orders[chain.rope], rope=False)
    return trace(chain.out, chain.layout, rope=False)


def _is_in(chain: Chain, order: Order, value: Value) -> bool:
    """Whether a value has the dims of ``out`` in this order: others may be swapped, too."""
    if chain.out.tensor.rank != 4:
        return False
    b, h, s, d = chain.bhsd
    return value.shape == ((b, h, s, d) if order == "bhsd" else (b, s, h, d))


def _ended(chain: Chain, last: Value, order: Order) -> Chain:
    """Where the walk ended at a value that is ``[B, S, H, D]`` already, start there."""
    chain.between = [v for v in chain.between if v is not chain.out]
    if chain.out.tensor.rank != 4 or order != "bshd":
        return chain
    b, h, s, d = chain.bhsd
    if last.shape == (b, s, h, d):
        chain.source, chain.order = last, order
    return chain


def written_key(func: Func, k: Value) -> Value:
    """The keys of this step: what was last written to the cache that ``k`` reads, else ``k``.

    A cache may also be given as a new tensor: the old keys with this step's put in, or behind.
    """
    match k.owner:
        case Read(buffer=buffer) as read:
            place = func.places
            kinds = (IndexWrite, SliceWrite, ShiftWrite)
            writes = [w for w in func.users(buffer) if isinstance(w, kinds)]
            earlier = [w for w in writes if place[w] < place[read]]
            return max(earlier, key=place.__getitem__).src if earlier else k
        case Slice(x=x) if isinstance(x.owner, (Read, IndexCopy, SliceScatter)):
            return written_key(func, x)  # the part of a cache that can be seen
        case (IndexCopy() | SliceScatter() | Concat()) as op if op.axis == k.tensor.rank - 2:
            return op.xs[-1] if isinstance(op, Concat) else op.src
        case _:
            return k


@dataclass(frozen=True)
class Table:
    """A cos or sin table and the shape ``[B, S, W]`` or ``[1, S, W]`` that it is to have."""

    base: Value
    shape: tuple[Dim, ...]
    expand: bool = False

    def value(self) -> Value:
        """The table in that shape, by view ops that are not yet in the func."""
        if self.base.shape == self.shape:
            return self.base
        if not self.expand:
            return Reshape(self.base, shape=self.shape).y
        one = Reshape(self.base, shape=(self.shape[0], 1, self.shape[2])).y
        return Expand(one, shape=self.shape).y


def table(chain: Chain, value: Value) -> Table | str:
    """Bring a table that broadcasts against what is rotated to ``[B|1, S, W]``, or say why not."""
    rope = chain.rope
    assert rope is not None, "only a rotation has tables"
    b, h, s, d = chain.bhsd
    width = value.shape[-1]
    x, order = rope.x.shape, chain.orders[rope]
    flat = order == "bshd" and x == (dim(b * s), h, d)
    if flat and _aligned(value.shape, 3)[:2] == (dim(b * s), 1):
        return Table(_peeled(value, (b, s, width)), (b, s, width))
    both = chain.orders_coincide
    if x == (b, s, h, d) and (order == "bshd" or both):
        batch, tokens, heads, _ = _aligned(value.shape, 4)
    elif x == (b, h, s, d) and (order == "bhsd" or both):
        batch, heads, tokens, _ = _aligned(value.shape, 4)
    else:
        return f"the rotated value is {rope.x.type}, not four dims with heads and tokens"
    if heads != 1:
        return f"the tables {value.type} differ by head"
    if batch not in (1, b) or tokens not in (1, s):
        return f"the tables {value.type} do not have one row a token"
    shape = (batch, s, width)
    return Table(_peeled(value, (batch, tokens, width)), shape, expand=tokens != s)


def _aligned(shape: Sequence[Dim], rank: int) -> tuple[Dim, ...]:
    """The shape with leading ones, as broadcasting reads it."""
    return (1,) * (rank - len(shape)) + tuple(shape)


def _peeled(value: Value, shape: tuple[Dim, ...]) -> Value:
    """The same elements before reshapes: where they have the shape, else where they come from."""
    while value.shape != shape and isinstance(value.owner, Reshape):
        value = value.owner.x
    return value
