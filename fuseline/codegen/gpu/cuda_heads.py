"""Norm and rotation of heads in CUDA C++, written strided or into a static cache: one launch.

A block belongs to one stream. A row, which is one head of one token, or for a norm across heads all
heads of a token, has ``lanes`` threads: lanes of a warp that lie side by side, as many groups of
them as fit, or all of a block. A thread has both elements of a pair, in *units* of 16 bytes of the
first and of the second, so that the rotation is its own business; what is not rotated is in units
of 16 bytes, too. A sum within a warp needs no shared memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fuseline.codegen.gpu.cuda import (
    CPP_TYPES,
    MOST_THREADS,
    NARROW,
    WARP,
    CudaKernel,
    Units,
    accesses,
    busy,
    lanes_of,
    literal,
    rounding,
    vector,
)
from fuseline.codegen.gpu.qk_norm_rope import Heads, QkNormRopeKernel, stream_tiles
from fuseline.codegen.heads import Rotation, Stream
from fuseline.codegen.norms import promote

HELD = 64
"""Elements of a row that a thread holds, at most."""

Layout: TypeAlias = Literal["APART", "SIDE", "ONE"]
"""Where the two elements of a pair lie: halves apart, side by side, or in one place for both."""


@dataclass(frozen=True)
class Units16:
    """How a row of one stream is cut up.

    Attributes:
        unit: elements of an access of 16 bytes, or of as many bytes as begin at a multiple.
        pair: pairs of a unit of pairs.
        pairs: such units of a head.
        rest: units of a head that are not rotated.
        start: of what is rotated.
        width: of that.
        heads: of a row.
        read: where the elements of pairs lie in the source.
        written: where they lie in the result.
    """

    unit: int
    pair: int
    pairs: int
    rest: int
    start: int
    width: int
    heads: int
    read: Layout
    written: Layout

    @classmethod
    def of(cls, dtype: str, stream: Stream, rotation: Rotation | None, heads: int) -> Units16:
        """The units of a stream whose rows have so many heads.

        Raises:
            ValueError: pairs side by side do not begin at a multiple of two elements.

        """
        if rotation is None or not stream.roped:
            unit = vector(dtype, stream.width)
            return cls(unit, 0, 0, stream.width // unit, 0, 0, heads, "APART", "APART")
        together = rotation.style == "interleaved"
        part = rotation.width if together else rotation.width // 2
        unit = vector(dtype, stream.width, rotation.start, part)
        if together and unit < 2:
            raise ValueError(f"pairs side by side from element {rotation.start} of {stream.width}")
        return cls(
            unit=unit,
            pair=unit // 2 if together else unit,
            pairs=part // unit,
            rest=(stream.width - rotation.width) // unit,
            start=rotation.start,
            width=rotation.width,
            heads=heads,
            read="APART" if rotation.style == "half" else "SIDE",
            written="SIDE" if together else "APART",
        )

    @property
    def work(self) -> Units:
        """The units of a row, and the accesses of each."""
        each = 2 * self.pair // self.unit if self.pairs else 0
        return [(self.heads * self.pairs, each), (self.heads * self.rest, 1)]

    @property
    def column(self) -> str:
        """Where unit ``u`` of what is not rotated begins."""
        first = f"u * {self.unit}"
        if not self.pairs or self.start >= self.rest * self.unit:
            return first
        if not self.start:
            return f"{self.width} + {first}"
        return f"{first} + (u < {self.start // self.unit} ? 0 : {self.width})"


@dataclass(frozen=True)
class StreamText:
    """What the template needs of one stream, as ready-made strings."""

    name: str
    heads: int
    width: int
    across: bool
    last: bool
    cached: bool
    normed: bool
    units: Units16
    lanes: int
    warp_rows: int
    block_rows: int
    pair_loads: int
    rest_loads: int
    pairs_masked: bool
    rest_masked: bool
    types: dict[str, str]
    at_once: dict[str, int]
    pair_of: dict[str, str]
    own: str
    rotates: bool
    total: str
    share: str
    steps: tuple[str, ...]


@dataclass(frozen=True)
class CudaHeadsKernel(Heads, CudaKernel, template="cuda/heads_cuda.cu.jinja"):
    """The work of `Heads`; ``lanes`` has, for each stream, the threads of a row, 0 for a block."""

    varies = "how a row is cut over threads depends on where its neighbours lie"

    lanes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Reject what threads cannot hold or share.

        Raises:
            ValueError: says what.

        """
        super().__post_init__()
        for stream, cut in zip(self.streams, self.units, strict=True):
            held = accesses(cut.work, self.threads_of(stream)) * cut.unit
            if held > HELD:
                raise ValueError(f"{held} elements of {stream.name} in a thread")

    @property
    def units(self) -> tuple[Units16, ...]:
        """How the rows of each stream are cut up."""
        return tuple(
            Units16.of(self.dtype, s, self.rotation, s.heads if self.is_across(s) else 1)
            for s in self.streams
        )

    @property
    def by_twos(self) -> bool:
        """Whether a multiprocessor must have registers for two blocks, so that the rows of one come
        while the warps of the other wait for each other's sums.

        Of narrow blocks it has for more, unasked; two wider ones leave a thread too few.
        """
        return 8 < self.warps <= 20

    def is_across(self, stream: Stream) -> bool:
        """Whether the heads of a token are normed as one."""
        return stream.normed and self.scope == "row"

    def threads_of(self, stream: Stream) -> int:
        """The threads of a row."""
        return self.lanes[self.streams.index(stream)] or self.threads

    def block_rows(self, stream: Stream) -> int:
        """Rows of a block of a stream."""
        lanes = self.lanes[self.streams.index(stream)]
        return WARP // lanes * self.warps if lanes else 1

    @property
    def written(self) -> tuple[str, ...]:
        """The buffers that are written."""
        return tuple(f"{s.name}_out" for s in self.streams)

    @property
    def busy(self) -> float:
        """The share of the threads that have work, where each stream has as many rows as heads."""
        done = [s.heads * s.width for s in self.streams]
        shares = [
            busy(cut.work, self.threads_of(s))
            for s, cut in zip(self.streams, self.units, strict=True)
        ]
        return sum(done) / sum(n / share for n, share in zip(done, shares, strict=True))

    @property
    def is_wide(self) -> bool:
        """Whether sources and results are moved 16 bytes at once."""
        kinds = dict(self.buffers)
        return all(
            text.at_once[name] == vector(kinds[buffer])
            for text in self.texts
            for name, buffer in (("x", text.name), ("out", f"{text.name}_out"))
        )

    @property
    def texts(self) -> tuple[StreamText, ...]:
        """The streams as the template writes them."""
        return tuple(self._text(i) for i in range(len(self.streams)))

    def _text(self, index: int) -> StreamText:
        s, cut, lanes = self.streams[index], self.units[index], self.lanes[index]
        across, threads = self.is_across(s), self.threads_of(s)
        pairs, rest = cut.heads * cut.pairs, cut.heads * cut.rest
        named = {"x": s.name, "out": f"{s.name}_out"}
        named |= {"weight": f"{s.name}_weight"} if s.weight and s.normed else {}
        named |= {"bias": f"{s.name}_bias"} if s.bias and s.normed else {}
        kinds, axes = dict(self.buffers), "th" if self.flat else "bth"
        steps = {
            "x": [f"{s.name}_{axis}" for axis in axes],
            "out": [f"{s.name}_out_{axis}" for axis in axes],
        }
        at_once = {
            name: self.access(buffer, cut.unit, *steps.get(name, ()))
            for name, buffer in named.items()
        }
        types = {name: CPP_TYPES[kinds[buffer]] for name, buffer in named.items()}
        layouts: dict[str, Layout] = {"x": cut.read, "out": cut.written}
        normed_at = cut.read if self.order == "norm_rope" else cut.written
        layouts |= {name: normed_at for name in ("weight", "bias") if name in named}
        rotates = self.rotation is not None and s.roped
        if rotates:
            for name in ("cos", "sin"):
                layouts[name], at_once[name], types[name] = self._table(name, cut)
        return StreamText(
            name=s.name,
            heads=s.heads,
            width=s.width,
            across=across,
            last=index == len(self.streams) - 1,
            cached=s.cached,
            normed=s.normed,
            units=cut,
            lanes=threads,
            warp_rows=WARP // lanes if lanes else 0,
            block_rows=self.block_rows(s),
            pair_loads=-(-pairs // threads),
            rest_loads=-(-rest // threads),
            pairs_masked=bool(pairs % threads),
            rest_masked=bool(rest % threads),
            types=types,
            at_once=at_once,
            pair_of={
                name: f"Pairs<{types[name]}, {cut.pair}, {at_once[name]}, {layout}>"
                for name, layout in layouts.items()
            },
            own=f"head * {s.width} + " if s.per_head or across else "",
            rotates=rotates,
            total=f"sum_lanes<{lanes}" if lanes else f"sum_block<{self.warps}",
            share=literal(1.0 / (s.width * cut.heads)),
            steps=tuple(self._steps(s)) if s.normed else (),
        )

    def _table(self, name: str, cut: Units16) -> tuple[Layout, int, str]:
        """Where the entries of a pair lie, how many are read at once, and their type."""
        assert self.rotation is not None
        axes = "t" if self.flat else "bt"
        layout: Layout = "ONE" if self.rotation.table == "half" else cut.written
        most = 2 * cut.pair if layout == "SIDE" else cut.pair
        at_once = self.access(name, most, *(f"{name}_{axis}" for axis in axes))
        return layout, at_once, CPP_TYPES[self.rotation.dtype]

    def _steps(self, s: Stream) -> Iterator[str]:
        """What is done to an element ``n`` that was divided by the norm: statements in float32."""
        early, out = self.cast == "before_weight", self.out(s)
        after = rounding("n", out) if self._turns_last(s) else ""
        parameters = bool(s.weight), bool(s.bias), s.scale != 1.0
        if early:
            yield rounding("n", self.dtype)
        elif not any(parameters):
            yield after
        if s.weight:
            if self.offset:
                yield f"w = {literal(self.offset)} + w;"
                yield rounding("w", s.weight) if early else ""
            yield "n = n * w;"
            if not any(parameters[1:]):
                yield after
            elif s.bias and early:
                yield rounding("n", promote(self.dtype, s.weight))
        if s.bias:
            yield "n = n + b;"
            yield after if s.scale == 1.0 else ""
        if s.scale != 1.0:
            yield rounding("n", out)
            yield f"n = n * {literal(s.scale)};"
            yield after

    def _turns_last(self, s: Stream) -> bool:
        """Whether a stream is rotated behind its norm."""
        return self.rotation is not None and s.roped and self.order == "norm_rope"

    def turned(self, s: Stream) -> tuple[str, str]:
        """The two elements of a rotated pair ``a``, ``b``, by ``c1``, ``s1`` and ``c2``, ``s2``."""
        kind = self.dtype if self.order == "rope_norm" and s.normed else self.out(s)
        cast = CPP_TYPES[kind] if self.rounds_products(kind) and kind != "f32" else ""

        def product(term: str) -> str:
            return f"rounded<{cast}>({term})" if cast else term

        minus, plus = ("-", "+") if self.rotation is None or self.rotation.sign > 0 else ("+", "-")
        first = f"{product('a * c1')} {minus} {product('b * s1')}"
        second = f"{product('b * c2')} {plus} {product('a * s2')}"
        if self.order == "rope_norm" and self.dtype != "f32":
            both = (f"rounded<{CPP_TYPES[self.dtype]}>({each})" for each in (first, second))
            first, second = both
        return first, second

    @property
    def epsilon(self) -> str:
        """What is added to the mean of the squares."""
        return literal(self.eps)

    @property
    def rotations(self) -> dict[str, tuple[str, str]]:
        """The two elements of a rotated pair, by stream."""
        return {s.name: self.turned(s) for s in self.streams if s.roped and self.rotation}


def forms(triton: QkNormRopeKernel, *, warps: int) -> list[CudaHeadsKernel]:
    """The CUDA C++ kernels that do the same, the likelier first.

    Args:
        triton: the norm and rotation.
        warps: of a block that has several rows.

    Raises:
        ValueError: there is none, and why.

    """
    cuts = [
        Units16.of(triton.dtype, s, triton.rotation, s.heads if across else 1)
        for s in triton.streams
        for across in [s.normed and triton.scope == "row"]
    ]
    lanes = tuple(lanes_of(cut.work) if accesses(cut.work, 1) <= NARROW else 0 for cut in cuts)
    fields = {name: getattr(triton, name) for name in Heads.__dataclass_fields__}
    if all(lanes):
        return [CudaHeadsKernel(**fields, lanes=lanes, warps=warps)]
    widest = max(max(n for n, _ in cut.work) for cut, n in zip(cuts, lanes, strict=True) if not n)
    threads = {-(-widest // (each * WARP)) * WARP: None for each in (1, 2, 4)}
    possible = [n for n in threads if n <= MOST_THREADS]
    if not possible:
        raise ValueError(f"{widest} accesses of a row")
    return [CudaHeadsKernel(**fields, lanes=lanes, warps=n // WARP) for n in possible[:2]]


def leads(kernel: CudaHeadsKernel, triton: QkNormRopeKernel) -> bool:
    """Whether a kernel is likelier to do well than Triton's, by what is known without a GPU.

    Both wait for memory, so Triton's stands where nothing sets them apart. What does: its tiles are
    powers of two. Of heads of 80 or 96 elements, whose halves of 40 and 48 are in tiles of 64, and
    of rows of 1536 in blocks of 2048, three or two of eight threads have nothing to read while they
    hold registers and take their turn. Here a head has 5 or 6 lanes, all with 16 bytes of each
    half, and a warp six or five such heads. That takes rows of which 16 bytes can be read at once.
    """
    tiles = [(s, stream_tiles(s, triton.rotation)[0]) for s in triton.streams]
    done = sum(s.heads * s.width for s in triton.streams)
    held = sum(s.heads * sum(tile.block for tile in of_row) for s, of_row in tiles)
    return kernel.is_wide and 0.95 * kernel.busy > done / held


__all__ = ["CudaHeadsKernel", "Units16", "forms", "leads"]
