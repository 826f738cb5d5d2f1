"""Norm and rotation of heads in Triton, written strided or into a static cache: one launch.

A kernel works on *streams* (`fuseline.codegen.heads`): q, k and v of different head counts and
widths. A block belongs to one stream and takes a few of its rows; a row is one head of one token,
held as a handful of *tiles* of columns. The two halves of a rotation are two tiles of one shape, so
that a thread has both elements of a pair, the sums of both in the same registers, and nothing goes
through shared memory. Pairs that lie side by side are read as one tile and split.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from fuseline.codegen.gpu.kernel import AT_HAND, TL_TYPES, TritonKernel, next_power_of_two, strides
from fuseline.codegen.heads import Rotation, Stream, check_rotation
from fuseline.codegen.norms import NormKind, norm_result, promote
from fuseline.ir.ops.raised import CastPoint

MOST_TILES = 8
"""A row that is rotated in part is cut into up to so many tiles of one shape."""


@dataclass(frozen=True)
class Tile:
    """Columns ``start .. start + width`` of a row, in a ``block`` of a power of two of them."""

    name: str
    start: int
    width: int
    block: int

    @classmethod
    def of(cls, name: str, start: int, width: int) -> Tile:
        """The tile of the narrowest block that holds the columns."""
        return cls(name, start, width, next_power_of_two(width))

    @property
    def columns(self) -> str:
        """Where they lie in a row."""
        return f"({self.start} + col_{self.block})" if self.start else f"col_{self.block}"

    @property
    def mask(self) -> str:
        """Which of the block are columns, empty if all."""
        return "" if self.width == self.block else f"(col_{self.block} < {self.width})"

    @property
    def live(self) -> str:
        """Which elements there are to read."""
        return f"live & {self.mask}" if self.mask else "live"

    @property
    def kept(self) -> str:
        """Which elements there are to write."""
        return f"kept & {self.mask}" if self.mask else "kept"


def cut(name: str, start: int, stop: int, block: int) -> tuple[Tile, ...]:
    """Columns as tiles of one shape."""
    return tuple(
        Tile(f"{name}{i}", at, min(block, stop - at), block)
        for i, at in enumerate(range(start, stop, block))
    )


@dataclass(frozen=True)
class StreamCode:
    """What the template needs of one stream, as ready-made strings.

    ``sources`` are the tiles that are read, ``results`` those that are written: they differ where
    the rotation moves elements, and of those ``normed`` are normed. ``rows`` make a block; with
    ``across``, ``tokens`` of ``head_rows`` rows each. Weight and bias are read ``first``, before
    the rows, or else behind their sums.
    """

    name: str
    index: int
    heads: int
    width: int
    rows: int
    across: bool
    padded: bool
    first: bool
    head_rows: int
    tokens: int
    last: bool
    cached: bool
    sources: tuple[Tile, ...]
    results: tuple[Tile, ...]
    normed: tuple[Tile, ...]
    copied: frozenset[str]
    rotates: str
    weight: str
    bias: str
    by_head: bool
    weight_cast: str
    weighted_cast: str
    out_cast: str
    out_type: str
    product_cast: str
    scale: str
    mean: str
    square: str
    share: str
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Heads:
    """Norm (RMS or layer, per head or across the heads of a token) and rotation of ``streams``.

    Sources and results are ``[B, S, heads, width]`` with any strides but the last, which is 1. cos
    and sin are ``[B, S, W]`` (strides of 0 broadcast), positions ``i64[S]``. A stream that is
    ``cached`` is written to row ``positions[t]`` of its result; a token whose position lies outside
    the ``capacity`` is written nowhere. Intermediate values are rounded where eager rounds.

    ``tokens`` counts those of all batch entries, ``length`` those of one; with ``flat`` there is
    one entry and no stride of batch. With ``ready`` weights and biases are parameters, which
    nothing writes: they may be read while the kernel ahead still runs.
    """

    dtype: str
    streams: tuple[Stream, ...]
    rotation: Rotation | None = None
    kind: NormKind = "rms"
    eps: float = 1e-6
    offset: float = 0.0
    cast: CastPoint = "before_weight"
    scope: Literal["head", "row"] = "head"
    order: Literal["norm_rope", "rope_norm"] = "norm_rope"
    flat: bool = False
    ready: bool = False

    def __post_init__(self) -> None:
        """Reject geometry that has no meaning."""
        if self.rotation is not None:
            check_rotation(self.rotation, self.streams)
            if self.rotation.step != 1:
                raise ValueError("tables whose entries lie apart")

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        norm = {"rms": "RMS norm", "layer": "Layer norm"}[self.kind]
        across = " across heads" * (self.scope == "row")
        steps = [norm + across] * any(s.normed for s in self.streams)
        steps += ["rotation"] * (self.rotation is not None)
        steps = steps[::-1] if self.order == "rope_norm" else steps
        counts = [f"{s.heads} {s.name} head{'s' * (s.heads != 1)}" for s in self.streams]
        pairs = zip(counts, self.streams, strict=True)
        heads = " and ".join(f"{count} of {s.width}" for count, s in pairs)
        return f"{', '.join(steps) or 'Copy'}: {heads}, {self.dtype}"

    @property
    def weighed(self) -> bool:
        """Whether there are weights or biases."""
        return any(s.normed and (s.weight or s.bias) for s in self.streams)

    @property
    def ahead(self) -> bool:
        """Whether there is anything to read while the kernel ahead still runs."""
        return self.ready and self.weighed

    @property
    def cached(self) -> bool:
        """Whether a stream is written into a cache."""
        return any(stream.cached for stream in self.streams)

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        found: list[tuple[str, str]] = []
        for s in self.streams:
            found += [(s.name, self.dtype), (f"{s.name}_out", self.out(s))]
            found += [(f"{s.name}_weight", s.weight)] if s.weight else []
            found += [(f"{s.name}_bias", s.bias)] if s.bias else []
        if self.rotation is not None:
            found += [("cos", self.rotation.dtype), ("sin", self.rotation.dtype)]
        return (*found, *[("positions", "i64")] * self.cached)

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        counts = [("tokens", "i32"), *[("length", "i32")] * (not self.flat)]
        axes = "t" if self.flat else "bt"
        names = [name for s in self.streams for name in (s.name, f"{s.name}_out")]
        tables = ("cos", "sin") if self.rotation else ()
        return (
            *counts,
            *strides(*names, axes=f"{axes}h"),
            *strides(*tables, axes=axes),
            *[("capacity", "i64")] * self.cached,
        )

    def out(self, stream: Stream) -> str:
        """The dtype of a stream's result."""
        if not stream.normed:
            return self.dtype
        return norm_result(self.dtype, stream.weight, stream.bias, self.cast)

    def rounds_products(self, turned: str) -> bool:
        """Whether the products of the rotation are rounded to the dtype of what is rotated."""
        if self.rotation is None or not self.rotation.round:
            return False
        return promote(turned, self.rotation.dtype) == turned


@dataclass(frozen=True)
class QkNormRopeKernel(Heads, TritonKernel, template="triton/qk_norm_rope.py.jinja"):
    """The work of `Heads`, in blocks of so many ``rows`` for each stream: a power of two, and for a
    norm across heads a multiple of the power of two that holds the heads.
    """

    varies = ""

    rows: tuple[int, ...] = ()

    @property
    def code(self) -> tuple[StreamCode, ...]:
        """The streams as the template writes them."""
        return tuple(self._code(i) for i in range(len(self.streams)))

    def _code(self, index: int) -> StreamCode:
        s, rows = self.streams[index], self.rows[index]
        sources, results = stream_tiles(s, self.rotation)
        rotates = self.rotation.style if self.rotation and s.roped else ""
        normed = sources if self.order == "norm_rope" else results
        turned = self.dtype if self.order == "rope_norm" and s.normed else self.out(s)
        across = s.normed and self.scope == "row"
        head_rows = next_power_of_two(s.heads)
        centred = self.kind == "layer"
        count = s.width * (s.heads if across else 1)
        moved = {"x1", "x2", "pair"}
        return StreamCode(
            name=s.name,
            index=index,
            heads=s.heads,
            width=s.width,
            rows=rows,
            across=across,
            padded=across and head_rows != s.heads,
            first=rows * sum(t.block for t in sources) <= AT_HAND * 32 * self.warps,
            head_rows=head_rows,
            tokens=max(1, rows // head_rows),
            last=index == len(self.streams) - 1,
            cached=s.cached,
            sources=sources,
            results=results,
            normed=normed if s.normed else (),
            copied=frozenset(t.name for t in sources if not s.normed and t.name not in moved),
            rotates=rotates,
            weight=f"{s.name}_weight" if s.weight and s.normed else "",
            bias=f"{s.name}_bias" if s.bias and s.normed else "",
            by_head=s.per_head or across,
            weight_cast=self._offset_cast(s),
            weighted_cast=_rounding(promote(self.dtype, s.weight) if s.weight else self.dtype),
            out_cast=_rounding(self.out(s)),
            out_type=TL_TYPES[self.out(s)],
            product_cast=_rounding(turned) if self.rounds_products(turned) else "",
            scale="" if s.scale == 1.0 else repr(s.scale),
            mean=_sums(normed, "{0}") if centred else "",
            square=_sums(normed, "{0} * {0}"),
            share=repr(1.0 / count),
            blocks=tuple(sorted({t.block for t in self._tiles(s)})),
        )

    def _tiles(self, s: Stream) -> tuple[Tile, ...]:
        """All tiles that a stream needs, those of the tables among them."""
        sources, results = stream_tiles(s, self.rotation)
        if self.rotation is None or not s.roped:
            return sources
        together = self.rotation.style == "interleaved" and self.rotation.table == "full"
        return (*sources, *results, self.whole if together else self.table)

    def _offset_cast(self, s: Stream) -> str:
        """The rounding of weight plus offset: to the weight's type before it is multiplied by."""
        return _rounding(s.weight) if s.weight and self.cast == "before_weight" else ""

    @property
    def stops(self) -> tuple[str, ...]:
        """For each stream, the first block behind it."""
        return tuple(accumulate((f"{s.name}_blocks" for s in self.streams), "{} + {}".format))

    @property
    def befores(self) -> tuple[str, ...]:
        """For each stream, its first block."""
        return ("0", *(f"({stop})" if "+" in stop else stop for stop in self.stops))

    @property
    def x_cast(self) -> str:
        """The rounding to the type of the sources."""
        return _rounding(self.dtype)

    @property
    def plus(self) -> tuple[str, str]:
        """The signs of the sines of the first and the second element of a pair."""
        return ("-", "+") if self.rotation is None or self.rotation.sign > 0 else ("+", "-")

    @property
    def table(self) -> Tile:
        """The columns of a table that belong to the pairs, one each."""
        return Tile.of("table", 0, self.rotation.width // 2 if self.rotation else 1)

    @property
    def second(self) -> Tile:
        """The columns of a full table for the second elements, where those lie apart."""
        return Tile.of("table", self.table.width, self.table.width)

    @property
    def whole(self) -> Tile:
        """The columns of a full table whose entries lie by pair."""
        return Tile.of("table", 0, 2 * self.table.width)


def stream_tiles(
    stream: Stream, rotation: Rotation | None
) -> tuple[tuple[Tile, ...], tuple[Tile, ...]]:
    """The tiles of a stream as it is read and as it is written.

    The rotated part is ``x1`` and ``x2``, its halves, or ``pair``, with pairs side by side. What
    lies before and behind it is one tile each; in a row that is normed it is cut into tiles of the
    same shape, where those are few: tiles of another shape lie in other threads, and what is known
    of a row would have to travel between them.
    """
    if rotation is None or not stream.roped:
        whole = (Tile.of("part", 0, stream.width),)
        return whole, whole
    start, half, stop = rotation.start, rotation.width // 2, rotation.start + rotation.width
    halves = (Tile.of("x1", start, half), Tile.of("x2", start + half, half))
    pair = (Tile.of("pair", start, rotation.width),)
    read = halves if rotation.style == "half" else pair
    written = pair if rotation.style == "interleaved" else halves
    around = (("before", 0, start), ("behind", stop, stream.width))
    like = [tile for part in around for tile in cut(*part, read[0].block)]
    alone = [Tile.of(name, a, b - a) for name, a, b in around if b > a]
    few = len(like) + len(read) <= MOST_TILES
    rest = like if stream.normed and few else alone
    return (*read, *rest), (*written, *rest)


def _sums(normed: tuple[Tile, ...], term: str) -> str:
    """The sum of a term over the rows of tiles; those of one shape are added up first."""
    by_block: dict[int, list[str]] = {}
    for tile in normed:
        by_block.setdefault(tile.block, []).append(term.format(tile.name))
    return " + ".join(f"tl.sum({' + '.join(terms)}, axis=1)" for terms in by_block.values())


def _rounding(dtype: str) -> str:
    """The call that rounds a float32 value to a type and keeps it in float32."""
    return "" if dtype == "f32" else f".to({TL_TYPES[dtype]}).to(tl.float32)"


__all__ = ["Heads", "QkNormRopeKernel", "StreamCode", "Tile", "stream_tiles"]
