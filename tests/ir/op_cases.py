"""One strategy per declared op: a func with random small operands, and the op on them.

A case draws extents, some of which become symbols of the func, and element types that the op's
reference takes. `CASES` maps an op's name to the function that builds it; an op without an entry
fails ``test_every_op_has_a_case``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from hypothesis import strategies as st

from fuseline.ir import ops
from fuseline.ir.core import OPS, Func, Op, Opaque, Ref, Value
from fuseline.ir.evaluate import Argument
from fuseline.ir.types import BufferType, Dim, DType, TensorType, dim, symbol

T = TypeVar("T")

FLOATS = (DType.F64, DType.F32, DType.BF16, DType.F16)
INTS = (DType.I64, DType.I32, DType.I16, DType.I8, DType.U8)
NUMBERS = FLOATS + INTS
ALL = (*NUMBERS, DType.BOOL)
EXTENTS = (1, 2, 3, 4, 5)


@dataclass
class Case:
    """A func under construction, with the sizes of its symbols and its arguments."""

    draw: Callable[[st.SearchStrategy[Any]], Any]
    func: Func = field(default_factory=Func)
    arguments: list[Argument] = field(default_factory=list[Argument])
    symbolic: frozenset[int] = frozenset()

    def one_of(self, options: Iterable[T]) -> T:
        """Any of the options."""
        return self.draw(st.sampled_from(list(options)))

    def flag(self) -> bool:
        """True or false."""
        return self.draw(st.booleans())

    def number(self, lo: int, hi: int) -> int:
        """An integer from lo to hi."""
        return self.draw(st.integers(lo, hi))

    def shape(self, lo: int = 0, hi: int = 3) -> list[int]:
        """Between lo and hi extents."""
        return self.draw(st.lists(st.sampled_from(EXTENTS), min_size=lo, max_size=hi))

    def axes(self, rank: int, *, at_least: int = 0) -> tuple[int, ...]:
        """Some of the axes, in order."""
        chosen: set[int] = self.draw(st.sets(st.sampled_from(range(rank)), min_size=at_least))
        return tuple(sorted(chosen))

    def dim(self, size: int) -> Dim:
        """An extent as a symbol, where this case has one for that size, else as it is."""
        return symbol(f"N{size}") if size in self.symbolic else size

    def dims(self, sizes: Sequence[int], static: int = 0) -> tuple[Dim, ...]:
        """Extents, the last ``static`` of them never symbols."""
        head = len(sizes) - static
        return (*(self.dim(s) for s in sizes[:head]), *sizes[head:])

    def arg(
        self,
        dtype: DType,
        sizes: Sequence[int],
        *,
        static: int = 0,
        buffer: bool = False,
        values: torch.Tensor | None = None,
        positive: bool = False,
    ) -> Value:
        """A new argument, seeded; integers from 1 to 4, floats above 0 where ``positive``."""
        kind = TensorType(dtype, self.dims(sizes, static))
        value = self.func.add_arg(BufferType(kind) if buffer else kind, f"a{len(self.arguments)}")
        generator = torch.Generator().manual_seed(self.number(0, 99))
        if values is not None:
            made = values.to(dtype.torch)
        elif dtype.is_float:
            made = torch.randn(list(sizes), generator=generator, dtype=torch.float64)
            made = (made.abs() + 0.5 if positive else made).to(dtype.torch)
        elif dtype is DType.BOOL:
            made = torch.rand(list(sizes), generator=generator) < 0.5
        else:
            made = torch.randint(1, 5, list(sizes), generator=generator).to(dtype.torch)
        self.arguments.append(made)
        return value

    def indices(self, sizes: Sequence[int], limit: int) -> Value:
        """An i64 argument with elements below ``limit``."""
        generator = torch.Generator().manual_seed(self.number(0, 99))
        values = torch.randint(0, limit, list(sizes), generator=generator)
        return self.arg(DType.I64, sizes, values=values)

    def distinct(self, count: int, limit: int) -> Value:
        """A 1-d i64 argument of different elements below ``limit``."""
        generator = torch.Generator().manual_seed(self.number(0, 99))
        return self.arg(
            DType.I64, [count], values=torch.randperm(limit, generator=generator)[:count]
        )

    def maybe(self, make: Callable[[], Value]) -> Value | None:
        """An argument, or none."""
        return make() if self.flag() else None


Builder = Callable[[Case], Op]
CASES: dict[str, Builder] = {}


def case(*names: str) -> Callable[[Callable[[Case, type[Any]], Op]], None]:
    """Register the case of one or several ops; it gets the op's class."""

    def register(build: Callable[[Case, type[Any]], Op]) -> None:
        for name in names:
            CASES[name] = lambda c, name=name: build(c, OPS[name])

    return register


# -- pointwise ------------------------------------------------------------------------------

_BINARY_TYPES: dict[str, tuple[DType, ...]] = {
    **dict.fromkeys(["add", "mul", "maximum", "minimum"], ALL),
    **dict.fromkeys(["eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or"], ALL),
    **dict.fromkeys(["sub", "div", "floor_div", "remainder", "pow"], NUMBERS),
    **dict.fromkeys(["bitwise_and", "bitwise_or", "bitwise_xor"], (*INTS, DType.BOOL)),
}
_UNARY_TYPES: dict[str, tuple[DType, ...]] = {
    **dict.fromkeys(["neg", "abs", "sign", "relu", "floor", "ceil"], NUMBERS),
    "bitwise_not": (*INTS, DType.BOOL),
    "logical_not": ALL,
    **dict.fromkeys(
        ["exp", "sqrt", "rsqrt", "log", "log1p", "sin", "cos", "tanh", "erf", "sigmoid"], ALL
    ),
    "reciprocal": ALL,
    **dict.fromkeys(["silu", "softplus", "gelu"], FLOATS),
}


def _broadcast_sizes(c: Case, count: int) -> list[list[int]]:
    full = c.shape()
    sizes: list[list[int]] = []
    for _ in range(count):
        start = c.number(0, len(full))
        sizes.append([1 if c.number(0, 3) == 0 else e for e in full[start:]])
    return sizes


@case(*_BINARY_TYPES)
def _(c: Case, op: type[Any]) -> Op:
    left, right = _broadcast_sizes(c, 2)
    types = _BINARY_TYPES[op.name]
    return op(
        c.arg(c.one_of(types), left, positive=op.name == "pow"), c.arg(c.one_of(types), right)
    )


@case(*_UNARY_TYPES)
def _(c: Case, op: type[Any]) -> Op:
    x = c.arg(c.one_of(_UNARY_TYPES[op.name]), c.shape(), positive=True)
    return op(x, approximate=c.one_of(["none", "tanh"])) if op.name == "gelu" else op(x)


@case("cast")
def _(c: Case, op: type[Any]) -> Op:
    return op(c.arg(c.one_of(ALL), c.shape()), dtype=c.one_of(ALL))


@case("where")
def _(c: Case, op: type[Any]) -> Op:
    first, second, third = _broadcast_sizes(c, 3)
    return op(c.arg(DType.BOOL, first), c.arg(c.one_of(ALL), second), c.arg(c.one_of(ALL), third))


# -- creation and views ---------------------------------------------------------------------


@case("full")
def _(c: Case, op: type[Any]) -> Op:
    sizes = c.shape()
    c.arg(DType.F32, sizes)  # binds the symbols
    value = c.one_of([True, 3, -1, 0.5, 1e-6, float("inf"), float("-inf"), *c.dims(sizes)])
    dtype = c.one_of(FLOATS if isinstance(value, float) else ALL)
    return op(value=value, shape=c.dims(sizes), dtype=dtype)


@case("iota")
def _(c: Case, op: type[Any]) -> Op:
    size = c.one_of(EXTENTS)
    c.arg(DType.F32, [size])
    dtype = c.one_of([DType.I64, DType.I32, DType.F32, DType.F64])
    start = c.one_of([0, 3, c.dim(size)])
    return op(length=c.dim(size), start=start, step=c.one_of([1, 2, -1]), dtype=dtype)


@case("reshape")
def _(c: Case, op: type[Any]) -> Op:
    sizes = c.shape(1)
    x = c.arg(c.one_of(ALL), sizes)
    dims = list(x.shape)
    at = c.number(0, len(dims) - 1)
    choice = c.number(0, 2)
    if choice == 0:
        return op(x, shape=[*dims[:at], 1, *dims[at:]])
    if choice == 1:
        return op(x, shape=[x.tensor.numel])
    return op(x, shape=[*dims[:at], dim(dims[at] * 1), *dims[at + 1 :]])


@case("permute")
def _(c: Case, op: type[Any]) -> Op:
    x = c.arg(c.one_of(ALL), c.shape(1, 4))
    return op(x, dims=c.draw(st.permutations(range(x.tensor.rank))))


@case("expand")
def _(c: Case, op: type[Any]) -> Op:
    full = c.shape(1)
    start = c.number(0, len(full))
    sizes = [1 if c.flag() else e for e in full[start:]]
    shape = c.dims(full)
    c.arg(DType.F32, full)  # binds the symbols
    return op(c.arg(c.one_of(ALL), sizes), shape=shape)


@case("slice")
def _(c: Case, op: type[Any]) -> Op:
    sizes = c.shape(1)
    axis = c.number(0, len(sizes) - 1)
    start = c.number(0, sizes[axis])
    stop = c.number(start, sizes[axis])
    x = c.arg(c.one_of(ALL), sizes)
    if c.flag():
        return op(x, axis=axis, start=start, stop=stop, step=c.number(1, 3))
    return op(x, axis=axis, start=min(start, 1), stop=x.shape[axis])


@case("concat")
def _(c: Case, op: type[Any]) -> Op:
    sizes = c.shape(1)
    axis = c.number(0, len(sizes) - 1)
    parts: list[Value] = []
    for _ in range(c.number(1, 3)):
        own = [*sizes[:axis], c.one_of(EXTENTS), *sizes[axis + 1 :]]
        parts.append(c.arg(c.one_of(ALL), own))
    return op(parts, axis=axis)


@case("pad")
def _(c: Case, op: type[Any]) -> Op:
    x = c.arg(c.one_of(NUMBERS), c.shape(1))
    axis = c.number(0, x.tensor.rank - 1)
    return op(x, axis=axis, before=c.number(0, 2), after=c.number(0, 2), value=c.one_of([0.0, 2.0]))


# -- gather and scatter ---------------------------------------------------------------------


@case("embedding")
def _(c: Case, op: type[Any]) -> Op:
    rows = c.one_of(EXTENTS)
    weight = c.arg(c.one_of(FLOATS), [rows, c.one_of(EXTENTS)])
    return op(weight, c.indices(c.shape(), rows))


def _advanced(c: Case) -> tuple[Value, list[Value], tuple[int, ...], list[int]]:
    """x, indices for some of its axes, the axes, and the shape that they select."""
    sizes = c.shape(1, 4)
    axes = c.axes(len(sizes), at_least=1)
    selected = c.shape(0, 2)
    indices = [c.indices(selected, sizes[axis]) for axis in axes]
    rest = [s for a, s in enumerate(sizes) if a not in axes]
    place = axes[0] if axes == tuple(range(axes[0], axes[0] + len(axes))) else 0
    return (
        c.arg(c.one_of(NUMBERS), sizes),
        indices,
        axes,
        [*rest[:place], *selected, *rest[place:]],
    )


@case("index")
def _(c: Case, op: type[Any]) -> Op:
    x, indices, axes, _ = _advanced(c)
    return op(x, indices, axes=axes)


@case("index_put")
def _(c: Case, op: type[Any]) -> Op:
    x, indices, axes, shape = _advanced(c)
    return op(x, indices, c.arg(x.dtype, shape), axes=axes, accumulate=c.flag())


@case("index_select")
def _(c: Case, op: type[Any]) -> Op:
    sizes = c.shape(1)
    axis = c.number(0, len(sizes) - 1)
    x = c.arg(c.one_of(ALL), sizes)
    return op(x, c.indices([c.one_of(EXTENTS)], sizes[axis]), axis=axis)


def _along(c: Case) -> tuple[list[int], int, list[int]]:
    """Sizes of x, an axis, and sizes of an index that is no larger off that axis."""
    sizes = c.shape(1)
    axis = c.number(0, len(sizes) - 1)
    return sizes, axis, [c.number(1, s) for s in sizes]


@case("gather")
def _(c: Case, op: type[Any]) -> Op:
    sizes, axis, inner = _along(c)
    return op(c.arg(c.one_of(ALL), sizes), c.indices(inner, sizes[axis]), axis=axis)


@case("scatter")
def _(c: Case, op: type[Any]) -> Op:
    sizes, axis, inner = _along(c)
    x = c.arg(c.one_of(ALL), sizes)
    return op(x, c.indices(inner, sizes[axis]), c.arg(x.dtype, inner), axis=axis)


def _slices(c: Case) -> tuple[list[int], int, list[int]]:
    """Sizes of x, an axis, and sizes of a part of it along that axis."""
    sizes = c.shape(1)
    axis = c.number(0, len(sizes) - 1)
    return sizes, axis, [*sizes[:axis], c.number(1, sizes[axis]), *sizes[axis + 1 :]]


@case("index_copy")
def _(c: Case, op: type[Any]) -> Op:
    sizes, axis, part = _slices(c)
    x = c.arg(c.one_of(ALL), sizes)
    return op(x, c.distinct(part[axis], sizes[axis]), c.arg(x.dtype, part), axis=axis)


@case("slice_scatter")
def _(c: Case, op: type[Any]) -> Op:
    sizes, axis, part = _slices(c)
    x = c.arg(c.one_of(ALL), sizes)
    start = c.number(0, sizes[axis] - part[axis])
    return op(x, c.arg(x.dtype, part), axis=axis, start=start, stop=start + part[axis])


# -- buffers --------------------------------------------------------------------------------


@case("read")
def _(c: Case, op: type[Any]) -> Op:
    return op(c.arg(c.one_of(ALL), c.shape(), buffer=True))


@case("write")
def _(c: Case, op: type[Any]) -> Op:
    sizes, dtype = c.shape(), c.one_of(ALL)
    return op(c.arg(dtype, sizes, buffer=True), c.arg(dtype, sizes))


def _origin(c: Case, sizes: list[int], axis: int, part: list[int]) -> tuple[int, ...]:
    """Where a part of the other dims begins; ``part`` gets its extents. Often all of them."""
    if c.flag():
        return ()
    for a, size in enumerate(sizes):
        part[a] = part[a] if a == axis else c.number(min(size, 1), size)
    return tuple(0 if a == axis else c.number(0, s - part[a]) for a, s in enumerate(sizes))


@case("index_write")
def _(c: Case, op: type[Any]) -> Op:
    sizes, axis, part = _slices(c)
    buffer = c.arg(c.one_of(ALL), sizes, buffer=True)
    index, origin = c.distinct(part[axis], sizes[axis]), _origin(c, sizes, axis, part)
    return op(buffer, index, c.arg(buffer.dtype, part), axis=axis, origin=origin)


@case("slice_write")
def _(c: Case, op: type[Any]) -> Op:
    sizes, axis, part = _slices(c)
    buffer = c.arg(c.one_of(ALL), sizes, buffer=True)
    start, origin = c.number(0, sizes[axis] - part[axis]), _origin(c, sizes, axis, part)
    src, stop = c.arg(buffer.dtype, part), start + part[axis]
    return op(buffer, src, axis=axis, start=start, stop=stop, origin=origin)


@case("shift_write")
def _(c: Case, op: type[Any]) -> Op:
    sizes, axis, part = _slices(c)
    buffer = c.arg(c.one_of(ALL), sizes, buffer=True)
    return op(buffer, c.arg(buffer.dtype, part), axis=axis)


# -- reductions, scans, selection -----------------------------------------------------------


@case("sum", "mean", "amax", "amin", "any", "all")
def _(c: Case, op: type[Any]) -> Op:
    x = c.arg(c.one_of(FLOATS if op.name == "mean" else ALL), c.shape(1))
    return op(x, axes=c.axes(x.tensor.rank), keepdim=c.flag())


@case("argmax")
def _(c: Case, op: type[Any]) -> Op:
    x = c.arg(c.one_of(NUMBERS), c.shape(1))
    return op(x, axis=c.number(0, x.tensor.rank - 1), keepdim=c.flag())


@case("cumsum", "softmax")
def _(c: Case, op: type[Any]) -> Op:
    x = c.arg(c.one_of(ALL if op.name == "cumsum" else FLOATS), c.shape(1))
    return op(x, axis=c.number(0, x.tensor.rank - 1))


@case("topk")
def _(c: Case, op: type[Any]) -> Op:
    sizes = c.shape(1)
    axis = c.number(0, len(sizes) - 1)
    x = c.arg(c.one_of(NUMBERS), sizes)
    return op(x, k=c.number(1, sizes[axis]), axis=axis, largest=c.flag())


@case("sort")
def _(c: Case, op: type[Any]) -> Op:
    x = c.arg(c.one_of(ALL), c.shape(1))
    return op(x, axis=c.number(0, x.tensor.rank - 1), descending=c.flag())


# -- products and attention -----------------------------------------------------------------


@case("linear")
def _(c: Case, op: type[Any]) -> Op:
    dtype, k, n = c.one_of(FLOATS), c.one_of(EXTENTS), c.one_of(EXTENTS)
    return op(
        c.arg(dtype, [*c.shape(), k]), c.arg(dtype, [n, k]), c.maybe(lambda: c.arg(dtype, [n]))
    )


@case("matmul")
def _(c: Case, op: type[Any]) -> Op:
    dtype, (m, k, n) = c.one_of(FLOATS), c.shape(3, 3)
    batches = _broadcast_sizes(c, 2)
    return op(c.arg(dtype, [*batches[0], m, k]), c.arg(dtype, [*batches[1], k, n]))


def _qkv(c: Case, dtype: DType) -> tuple[Value, Value, Value, list[int]]:
    """q, k, v with grouped heads, and the shape of the scores."""
    b, groups, times, sq, sk = c.shape(5, 5)
    d, dv = c.one_of(EXTENTS), c.one_of(EXTENTS)
    heads = groups * times
    q = c.arg(dtype, [b, heads, sq, d], static=1)
    k = c.arg(dtype, [b, groups, sk, d], static=1)
    return q, k, c.arg(dtype, [b, groups, sk, dv], static=1), [b, heads, sq, sk]


@case("sdpa")
def _(c: Case, op: type[Any]) -> Op:
    q, k, v, scores = _qkv(c, c.one_of(FLOATS))
    causal = c.flag()
    mask = None if causal else c.maybe(lambda: c.arg(DType.BOOL, scores[-2:]))
    return op(q, k, v, mask, is_causal=causal, scale=c.one_of([None, 0.5]), enable_gqa=True)


@case("attention")
def _(c: Case, op: type[Any]) -> Op:
    q, k, v, scores = _qkv(c, c.one_of(FLOATS))
    return op(
        q,
        k,
        v,
        c.maybe(lambda: c.arg(c.one_of([DType.BOOL, q.dtype]), [scores[0], 1, *scores[2:]])),
        c.maybe(lambda: c.arg(DType.I64, [scores[0], scores[2]] if c.flag() else [scores[2]])),
        c.maybe(lambda: c.arg(q.dtype, [scores[1]])),
        scale=0.5,
        causal=c.flag(),
        window=c.one_of([None, 2]),
        softcap=c.one_of([None, 3.0]),
    )


@case("latent_attention")
def _(c: Case, op: type[Any]) -> Op:
    dtype, (b, h, sq, sk) = c.one_of(FLOATS), c.shape(4, 4)
    latent, key, value, shared = (c.one_of(EXTENTS) for _ in range(4))
    shared, split = c.one_of([0, shared]), c.flag()
    groups = c.one_of([h, 1])
    return op(
        c.arg(dtype, [b, h, sq, key + shared], static=3),
        c.arg(dtype, [b, 1, sk, latent], static=1),
        c.arg(dtype, [groups * (key if split else key + value), latent], static=2),
        c.arg(dtype, [b, 1, sk, shared], static=1) if shared else None,
        c.maybe(lambda: c.arg(c.one_of([DType.BOOL, dtype]), [b, 1, sq, sk], static=2)),
        c.maybe(lambda: c.arg(DType.I64, [b, sq] if c.flag() else [sq], static=1)),
        c.maybe(lambda: c.arg(dtype, [h], static=1)),
        c.arg(dtype, [groups * value, latent], static=2) if split else None,
        key=key,
        value=value,
        scale=0.5,
        causal=c.flag(),
        window=c.one_of([None, 2]),
        softcap=c.one_of([None, 3.0]),
    )


def _latent_rows(c: Case) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The fields that the two ops share, and batch, tokens and widths."""
    dtype, (b, s) = c.one_of(FLOATS), (c.one_of(EXTENTS), c.one_of(EXTENTS))
    widths = [2 * c.one_of(EXTENTS) for _ in range(3)]
    rows = [c.arg(dtype, [b, s, w], static=1) for w in widths]
    table, rotated = c.one_of(["full", "half"]), c.flag()
    columns = widths[1] if table == "full" else widths[1] // 2
    cos, sin = (
        c.arg(dtype, [c.one_of([1, b]), s, columns], static=1) if rotated else None for _ in "cs"
    )
    fields = {
        "latent": rows[0],
        "shared": rows[1],
        "q": c.one_of([None, rows[2]]),
        "latent_weight": c.maybe(lambda: c.arg(dtype, widths[:1], static=1)),
        "cos": cos,
        "sin": sin,
        **_norm_attributes(c),
        "norm": c.flag(),
        "scale": c.one_of([1.0, 2.5]),
        "style": c.one_of(["half", "interleaved", "deinterleave"]),
        "table": table,
        "width": widths[1],
        "sign": c.one_of([1, -1]),
        "round": c.flag(),
    }
    return fields, (b, s, *widths)


@case("mla_projection")
def _(c: Case, op: type[Any]) -> Op:
    return op(**_latent_rows(c)[0])


@case("mla_projection_write")
def _(c: Case, op: type[Any]) -> Op:
    (fields, (b, s, latent, shared, _)), longest = _latent_rows(c), 7
    dtype, lead = fields["latent"].dtype, [b, 1] if c.flag() else [b]
    caches = {
        f"{name}_cache": c.arg(dtype, [*lead, longest, width], static=len(lead) + 1, buffer=True)
        for name, width in (("latent", latent), ("shared", shared))
    }
    return op(**fields, index=c.distinct(s, longest), **caches)


# -- norms, rope, MLPs ----------------------------------------------------------------------


def _norm_attributes(c: Case) -> dict[str, Any]:
    return {"eps": c.one_of([1e-6, 1e-5]), "cast": c.one_of(["before_weight", "last"])}


@case("rms_norm")
def _(c: Case, op: type[Any]) -> Op:
    sizes = c.shape(1)
    x = c.arg(c.one_of(FLOATS), sizes)
    weight = c.maybe(lambda: c.arg(c.one_of(FLOATS), sizes[-1:]))
    return op(x, weight, offset=c.one_of([0.0, 1.0]), **_norm_attributes(c))


@case("layer_norm")
def _(c: Case, op: type[Any]) -> Op:
    sizes = c.shape(2)
    x, rows = c.arg(c.one_of(FLOATS), sizes), c.number(1, 2)
    weight, bias = (c.maybe(lambda: c.arg(c.one_of(FLOATS), sizes[-rows:])) for _ in range(2))
    return op(x, weight, bias, **_norm_attributes(c))


def _rope_attributes(c: Case, head: int) -> dict[str, Any]:
    width = c.one_of([w for w in (2, 4, 6) if w <= head])
    return {
        "style": c.one_of(["half", "interleaved", "deinterleave"]),
        "table": c.one_of(["full", "half"]),
        "start": c.number(0, head - width),
        "width": width,
        "sign": c.one_of([1, -1]),
        "round": c.flag(),
    }


def _table_columns(attributes: dict[str, Any]) -> int:
    width: int = attributes["width"]
    return width if attributes["table"] == "full" else width // 2


@case("rope")
def _(c: Case, op: type[Any]) -> Op:
    b, s, h = c.shape(3, 3)
    dtype, head = c.one_of(FLOATS), c.one_of([2, 4, 6, 8])
    attributes = _rope_attributes(c, head)
    columns = _table_columns(attributes)
    cos, sin = (c.arg(dtype, [1 if c.flag() else b, s, 1, columns], static=1) for _ in range(2))
    return op(c.arg(dtype, [b, s, h, head], static=1), cos, sin, **attributes)


def _gate_and_up(c: Case) -> tuple[list[Value], list[Value | None], int]:
    """x, gate, up; their biases; and the width between."""
    dtype, k, n = c.one_of(FLOATS), c.one_of(EXTENTS), c.one_of(EXTENTS)
    x = c.arg(dtype, [*c.shape(), k])
    weights = [c.arg(dtype, [n, k]) for _ in range(2)]
    return [x, *weights], [c.maybe(lambda: c.arg(dtype, [n])) for _ in range(2)], n


_ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")


@case("gated_mlp")
def _(c: Case, op: type[Any]) -> Op:
    values, biases, n = _gate_and_up(c)
    out = c.one_of(EXTENTS)
    down = c.arg(values[0].dtype, [out, n])
    last = c.maybe(lambda: c.arg(values[0].dtype, [out]))
    return op(*values, down, *biases, last, activation=c.one_of(_ACTIVATIONS))


@case("gated_linear")
def _(c: Case, op: type[Any]) -> Op:
    values, biases, _ = _gate_and_up(c)
    return op(*values, *biases, activation=c.one_of(_ACTIVATIONS))


@case("merged_linear")
def _(c: Case, op: type[Any]) -> Op:
    dtype, k = c.one_of(FLOATS), c.one_of(EXTENTS)
    x = c.arg(dtype, [*c.shape(), k])
    widths = c.shape(1, 3)
    weights = [c.arg(dtype, [n, k]) for n in widths]
    return op(x, weights, [c.arg(dtype, [n]) for n in widths] if c.flag() else [])


@case("wide_linear")
def _(c: Case, op: type[Any]) -> Op:
    narrow = FLOATS[1:]
    dtype, k, n = c.one_of(narrow), c.one_of(EXTENTS), c.one_of(EXTENTS)
    x = c.arg(c.one_of(narrow), [*c.shape(), k])
    return op(x, c.arg(dtype, [n, k]), c.maybe(lambda: c.arg(dtype, [n])))


@case("linear_add")
def _(c: Case, op: type[Any]) -> Op:
    dtype, k, n, lead = c.one_of(FLOATS), c.one_of(EXTENTS), c.one_of(EXTENTS), c.shape()
    return op(
        c.arg(dtype, [*lead, k]),
        c.arg(dtype, [n, k]),
        c.arg(dtype, [*lead, n]),
        c.maybe(lambda: c.arg(dtype, [n])),
    )


@case("add_rms_norm")
def _(c: Case, op: type[Any]) -> Op:
    sizes, dtype = c.shape(1), c.one_of(FLOATS)
    weight = c.maybe(lambda: c.arg(c.one_of(FLOATS), sizes[-1:]))
    x, residual = c.arg(dtype, sizes), c.arg(dtype, sizes)
    return op(x, residual, weight, offset=c.one_of([0.0, 1.0]), **_norm_attributes(c))


@case("rms_norm_add")
def _(c: Case, op: type[Any]) -> Op:
    sizes, dtype = c.shape(1), c.one_of(FLOATS)
    weight = c.maybe(lambda: c.arg(dtype, sizes[-1:]))
    x, residual = c.arg(dtype, sizes), c.arg(dtype, sizes)
    return op(x, residual, weight, offset=c.one_of([0.0, 1.0]), **_norm_attributes(c))


@case("sandwich_norm")
def _(c: Case, op: type[Any]) -> Op:
    sizes, dtype = c.shape(1), c.one_of(FLOATS)
    weights = [c.maybe(lambda: c.arg(dtype, sizes[-1:])) for _ in range(2)]
    x, residual = c.arg(dtype, sizes), c.arg(dtype, sizes)
    attributes = _norm_attributes(c) | {f"next_{k}": v for k, v in _norm_attributes(c).items()}
    return op(x, residual, *weights, offset=c.one_of([0.0, 1.0]), next_offset=1.0, **attributes)


def _qk(c: Case) -> tuple[dict[str, Any], list[int]]:
    """The shared fields of the QK norm ops, and B, S, H, Hk, D."""
    dtype, d = c.one_of(FLOATS), c.one_of([2, 4, 6])
    b, s, h, hk = c.shape(4, 4)
    norm, scope = c.one_of(["rms", "layer", "none"]), c.one_of(["head", "row"])
    attributes = _rope_attributes(c, d) | _norm_attributes(c)
    attributes |= {"norm": norm, "scope": scope, "order": c.one_of(["norm_rope", "rope_norm"])}
    attributes["out"] = c.one_of(["bshd", "bhsd"])
    fields = {"q": c.arg(dtype, [b, s, h, d], static=2), "k": c.arg(dtype, [b, s, hk, d], static=2)}
    if norm != "none" and c.flag():
        for name, heads in (("q", h), ("k", hk)):
            width = heads * d if scope == "row" else d
            fields[f"{name}_weight"] = c.arg(dtype, [width])
            if norm == "layer":
                fields[f"{name}_bias"] = c.arg(dtype, [width])
    if c.flag():
        columns = _table_columns(attributes)
        for name in ("cos", "sin"):
            fields[name] = c.arg(dtype, [b, s, columns], static=1)
    return fields | attributes, [b, s, h, hk, d]


@case("qk_norm_rope")
def _(c: Case, op: type[Any]) -> Op:
    fields, _ = _qk(c)
    return op(**fields)


@case("qk_norm_rope_write")
def _(c: Case, op: type[Any]) -> Op:
    fields, (b, s, _, hk, d) = _qk(c)
    dtype, dv, longest = fields["q"].dtype, c.one_of(EXTENTS), 7
    return op(
        **fields,
        v=c.arg(dtype, [b, s, hk, dv], static=2),
        index=c.distinct(s, longest),
        k_cache=c.arg(dtype, [b, hk, longest, d], static=3, buffer=True),
        v_cache=c.arg(dtype, [b, hk, longest, dv], static=3, buffer=True),
    )


# -- experts --------------------------------------------------------------------------------


@case("grouped_matmul")
def _(c: Case, op: type[Any]) -> Op:
    dtype, rows, k, n, groups = c.one_of(FLOATS), *(c.one_of(EXTENTS) for _ in range(4))
    ends = torch.tensor(sorted(c.number(0, rows) for _ in range(groups)))
    return op(
        c.arg(dtype, [rows, k], static=1),
        c.arg(dtype, [groups, k, n], static=3),
        c.arg(DType.I32, [groups], static=1, values=ends),
    )


@case("route")
def _(c: Case, op: type[Any]) -> Op:
    groups, each = c.one_of([1, 2, 3]), c.one_of([2, 3])
    kept, experts = c.number(1, groups), groups * each
    logits = c.arg(c.one_of(FLOATS), [*c.shape(), experts], static=1)
    return op(
        logits,
        c.maybe(lambda: c.arg(c.one_of(FLOATS), [experts], static=1)),
        k=c.number(1, kept * each),
        score=c.one_of(["none", "softmax", "sigmoid", "sqrt_softplus"]),
        dtype=c.one_of([DType.F32, logits.dtype]),
        groups=groups,
        top_groups=kept,
        group_score=c.one_of(["max", "top2"]),
        group_fill=c.one_of([0.0, float("-inf")]),
        ordered=c.flag(),
        normalize=c.one_of(["none", "sum", "softmax", "sigmoid"]),
        eps=c.one_of([0.0, 1e-20]),
        floor=c.one_of([None, 1e-6]),
        scale=c.one_of([1.0, 2.5]),
        weight_dtype=c.one_of([DType.F32, logits.dtype]),
    )


def _activation(dtype: DType, width: int, gated: bool) -> Func:
    body = Func("body")
    sides = [body.add_arg(TensorType(dtype, (width,)), f"p{i}") for i in range(1 + gated)]
    y = body.append(ops.pointwise.Silu(sides[0])).y
    body.set_returns([body.append(ops.pointwise.Mul(y, sides[1])).y if gated else y])
    return body


def _experts(c: Case) -> dict[str, Any]:
    """The fields of `experts`."""
    dtype, count = c.one_of(FLOATS), c.number(1, 4)
    tokens, hidden, width, out = (c.one_of(EXTENTS) for _ in range(4))
    gated, transposed, form = c.flag(), c.flag(), c.one_of(["packed", "apart", "one by one"])
    halves, k = 1 + gated, c.number(1, count)
    generator = torch.Generator().manual_seed(c.number(0, 99))
    picks = torch.rand(tokens, count, generator=generator).argsort(-1)[:, :k]

    def matrices(rows: int, columns: int, parts: int) -> list[Value]:
        sizes = [columns, rows] if transposed else [rows, columns]
        lead = [] if form == "one by one" else [count]
        many = parts * count if form == "one by one" else parts
        return [c.arg(dtype, [*lead, *sizes], static=len(lead) + 2) for _ in range(many)]

    whole = form == "packed" or c.flag()
    parts = 1 if whole else halves
    return {
        "x": c.arg(dtype, [tokens, hidden], static=1),
        "indices": c.arg(DType.I64, [tokens, k], static=1, values=picks),
        "weights": c.arg(c.one_of([dtype, DType.F32]), [tokens, k], static=1),
        "up": matrices(width * halves // parts, hidden, parts),
        "down": matrices(out, width, 1),
        "up_bias": c.maybe(lambda: c.arg(dtype, [count, width * halves], static=2)),
        "down_bias": c.maybe(lambda: c.arg(dtype, [count, out], static=2)),
        "experts": count,
        "body": _activation(dtype, width, gated),
        "gated": gated,
        "interleaved": c.flag(),
        "transposed": transposed,
        "round_bias": c.flag(),
        "weigh": c.one_of(["output", "input"]),
        "combine": c.one_of(["slots", "experts", "in_turn"]),
        "dtype": dtype,
    }


@case("experts")
def _(c: Case, op: type[Any]) -> Op:
    return op(**_experts(c))


@case("moe")
def _(c: Case, op: type[Any]) -> Op:
    fields = _experts(c)
    x, width, tokens = fields["x"], c.one_of(EXTENTS), cast("torch.Tensor", c.arguments[0]).shape[0]
    out = fields["down"][0].shape[-1 if fields["transposed"] else -2]
    if c.flag():
        gated = c.flag()
        fields |= {
            "shared_up": [c.arg(x.dtype, [width, x.shape[1]], static=2) for _ in range(1 + gated)],
            "shared_down": c.arg(x.dtype, [out, width], static=2),
            "shared_body": _activation(x.dtype, width, gated),
            "shared_gate": c.maybe(lambda: c.arg(c.one_of(FLOATS), [tokens, 1], static=1)),
            "factor": c.one_of([1.0, 0.5]),
        }
    return op(**fields)


# -- the rest -------------------------------------------------------------------------------


@case("pointwise")
def _(c: Case, op: type[Any]) -> Op:
    dtype, sizes = c.one_of(FLOATS), c.shape(1)
    xs = [c.arg(dtype, sizes), c.arg(dtype, sizes[-1:])]
    body = Func("body")
    lhs, rhs = (body.add_arg(x.type, f"p{i}") for i, x in enumerate(xs))
    total = body.append(ops.pointwise.Add(lhs, rhs))
    top = body.append(ops.reduce.Amax(total.y, axes=(len(sizes) - 1,), keepdim=True))
    away = body.append(ops.pointwise.Sub(total.y, top.y))
    body.set_returns([away.y, top.y])
    return op(xs, body=body)


@case("copy")
def _(c: Case, op: type[Any]) -> Op:
    return op(c.arg(c.one_of(ALL), c.shape()))


@case("aten.call")
def _(c: Case, op: type[Any]) -> Op:
    x = c.arg(c.one_of(FLOATS), c.shape(1))
    if c.flag():
        args = (Ref(0), (1, x.shape[0]), float("-inf"), 0.5, None, True)
        kwargs = (("dtype", DType.F32), ("device", Opaque("device", "cpu")))
        one = TensorType(DType.F32, x.shape)
        call = {"target": "aten.zeros_like.default", "args": args[:1], "kwargs": kwargs}
        return op([x], types=[one], **call)
    indices = x.tensor.with_dtype(DType.I64)
    return op([x], target="aten.sort.default", args=(Ref(0), -1, True), types=[x.tensor, indices])


@st.composite
def op_cases(draw: Callable[[st.SearchStrategy[Any]], Any], name: str) -> Case:
    """A func whose only op is the named one, its results returned, with arguments for it."""
    made = Case(draw)
    wide = [e for e in EXTENTS if e > 1]
    made.symbolic = draw(st.frozensets(st.sampled_from(wide), max_size=2))
    op = made.func.append(CASES[name](made))
    made.func.set_returns(op.results)
    return made
