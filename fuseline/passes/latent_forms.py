"""Keys and values as expansions of one latent, read back from the operands of an attention.

An element of the keys is found in the product that made it by index arithmetic
(`fuseline.passes.masks.elements`): where its column is ``rows * h + start + d``, head h takes
its rows of the weight from ``start`` on, in whatever order the views between them stand.
"""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Value
from fuseline.ir.ops.buffer import IndexWrite
from fuseline.ir.ops.index import Gather, Index, IndexSelect
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.ops.raised import Attention
from fuseline.ir.ops.view import Concat, Slice, View
from fuseline.ir.types import Dim, dim
from fuseline.passes.masks import integers
from fuseline.passes.masks.elements import Elements
from fuseline.passes.masks.integers import ZERO, new_index, of_dim
from fuseline.passes.masks.places import Place
from fuseline.passes.repeated_heads import arranged, views_between
from fuseline.passes.rewrite import NoMatch


@dataclass(frozen=True)
class Expansion:
    """``width`` columns a head of a product: those of head h start at ``rows * h + start``."""

    product: Linear
    place: Place
    rows: int
    start: int
    width: int


@dataclass(frozen=True)
class Shared:
    """A part of the keys that all heads have in common, ``[B, 1, S, width]``."""

    value: Value
    width: int


@dataclass(frozen=True)
class Expanded:
    """The keys and values of one attention.

    ``parts`` make up a key, in order; ``latent`` is what the products read, as ``[B, 1, S, L]``.
    """

    parts: tuple[Expansion | Shared, ...]
    values: Expansion
    latent: Value

    @property
    def keys(self) -> Expansion:
        """The part of the keys that is expanded."""
        return next(p for p in self.parts if isinstance(p, Expansion))

    @property
    def shared(self) -> Shared | None:
        """The part of the keys that all heads have in common."""
        return next((p for p in self.parts if isinstance(p, Shared)), None)


@dataclass(frozen=True)
class _Tokens:
    """Batch, heads and tokens of the keys, and the index over each."""

    shape: tuple[Dim, Dim, Dim]
    at: Place


@dataclass(frozen=True)
class _Strand:
    """``width`` elements of a value, those that the index ``d`` of ``place`` runs over."""

    value: Value
    place: Place
    width: Dim

    @property
    def index(self) -> integers.Linear:
        """The index over the elements."""
        return new_index("d", self.width)


def expanded(op: Attention, elements: Elements) -> Expanded | NoMatch | None:
    """The keys and values as expansions of a latent; None where they do not look like that."""
    b, heads, s, _ = op.k.shape
    tokens = _Tokens((b, heads, s), (new_index("b", b), new_index("h", heads), new_index("s", s)))
    k, v = (
        _Strand(x, (*tokens.at, new_index("d", x.shape[-1])), x.shape[-1]) for x in (op.k, op.v)
    )
    values = _expansion(v, tokens, elements)
    parts = [_part(strand, tokens, elements) for strand in _strands(k, tokens, elements)]
    made = [p for p in parts if isinstance(p, Expansion)]
    if values is None or not made:
        return _selected(v, elements)
    common = [p for p in parts if isinstance(p, Shared)]
    if len(made) != 1 or len(common) > 1 or len(parts) != len(made) + len(common):
        return NoMatch(
            f"a key is made of {len(parts)} parts: {len(made)} expanded from a latent, "
            f"{len(common)} common to all heads"
        )
    keys = made[0]
    if keys.product.x is not values.product.x or keys.place != values.place:
        return None
    latent = _latent(keys, tokens, elements)
    if latent is None:
        return NoMatch(f"the rows of {keys.product.x.type} are not the tokens of v {op.v.type}")
    return Expanded(tuple(p for p in parts if p is not None), values, latent)


def expanded_writes(
    keys: IndexWrite, values: IndexWrite, elements: Elements
) -> Expanded | NoMatch | None:
    """The same of what is written to a cache of keys and to one of values."""
    k, v = keys.src, values.src
    return expanded(Attention(k, k, v, None, None, None, scale=1.0), elements)


def _strands(strand: _Strand, tokens: _Tokens, elements: Elements) -> list[_Strand]:
    """What a strand is concatenated of along ``d``, in order: itself where it is not.

    What is concatenated of parts common to all heads, such as the halves of a rotation, is one.
    """
    *_, (source, where) = elements.sources(strand.value, strand.place)
    op = source.owner
    if not isinstance(op, Concat) or op.y.shape[op.axis] != strand.width or strand.width == 1:
        return [strand]
    if where[op.axis] != strand.index:
        return [strand]
    found: list[_Strand] = []
    for x in op.xs:
        width = x.shape[op.axis]
        place = (*where[: op.axis], new_index("d", width), *where[op.axis + 1 :])
        part = _Strand(x, place, width)
        within = _strands(part, tokens, elements)
        made = any(_expansion(piece, tokens, elements) for piece in within)
        found += within if made or _shared(part, tokens, elements) is None else [part]
    return found


def _part(strand: _Strand, tokens: _Tokens, elements: Elements) -> Expansion | Shared | None:
    return _expansion(strand, tokens, elements) or _shared(strand, tokens, elements)


def _expansion(strand: _Strand, tokens: _Tokens, elements: Elements) -> Expansion | None:
    """A strand as columns of a product, as many for each head."""
    *_, (source, where) = elements.sources(strand.value, strand.place)
    product, heads = source.owner, tokens.shape[1]
    if not isinstance(product, Linear) or not isinstance(strand.width, int):
        return None
    if not isinstance(heads, int) or not isinstance(source.shape[-1], int):
        return None
    rows = source.shape[-1]
    if heads > 1:
        rows = where[-1].coefficient(integers.Index("h", of_dim(heads)))
    start = where[-1] - tokens.at[1].times(rows) - strand.index
    if rows <= 0 or not start.is_const or any({"h", "d"} & e.indices() for e in where[:-1]):
        return None
    return Expansion(product, where[:-1], rows, start.const, strand.width)


def _shared(strand: _Strand, tokens: _Tokens, elements: Elements) -> Shared | None:
    """A strand that is the same for all heads, by as few views as can be."""
    (b, _, s), (at_b, _, at_s) = tokens.shape, tokens.at
    want = [(at_b, b), (ZERO, 1), (at_s, s), (strand.index, strand.width)]
    value = _least(list(elements.sources(strand.value, strand.place)), want)
    if value is None or not isinstance(strand.width, int):
        return None
    return Shared(value, strand.width)


def _selected(strand: _Strand, elements: Elements) -> NoMatch | None:
    """The miss of tokens that are picked from among expanded ones."""
    *_, (source, _) = elements.sources(strand.value, strand.place)
    pick = source.owner
    if not isinstance(pick, (Gather, Index, IndexSelect)):
        return None
    value = pick.x
    while isinstance(value.owner, View):
        value = value.owner.x
    if not isinstance(value.owner, Linear):
        return None
    return NoMatch(f"the tokens of v are selected by {pick.name} from what a linear makes")


def _latent(keys: Expansion, tokens: _Tokens, elements: Elements) -> Value | None:
    """What a product reads, as ``[B, 1, S, L]``."""
    x = keys.product.x
    (b, _, s), (at_b, _, at_s) = tokens.shape, tokens.at
    column = new_index("l", x.shape[-1])
    want = [(at_b, b), (ZERO, 1), (at_s, s), (column, x.shape[-1])]
    return _least(list(elements.sources(x, (*keys.place, column))), want)


def _least(
    sources: list[tuple[Value, Place]], want: list[tuple[integers.Linear, Dim]]
) -> Value | None:
    """The source that has the wanted dims, by as few views as can be; the first of several.

    Where none has as many tokens as are wanted, some tokens of one.
    """
    for every in (sources, [_some_tokens(source, at, *want[2]) for source, at in sources]):
        found = [(source, arranged(source, at, want)) for source, at in reversed(every)]
        ranked = [(views_between(v, source), v) for source, v in found if v is not None]
        if ranked:
            return min(ranked, key=lambda r: r[0])[1]
    return None


def _some_tokens(
    source: Value, at: Place, token: integers.Linear, count: Dim
) -> tuple[Value, Place]:
    """The tokens of a source that are wanted, where it has more, and where they are in that."""
    place = list(at)
    for axis, expr in enumerate(at):
        start = (expr - token).const
        if source.shape[axis] == 1 or start < 0 or expr - token != integers.Linear(start):
            continue
        source = Slice(source, axis=axis, start=start, stop=dim(start + count)).y
        place[axis] = token
    return source, tuple(place)
