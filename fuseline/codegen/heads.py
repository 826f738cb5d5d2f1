"""The heads that a kernel norms, rotates and writes: geometry that every target shares."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fuseline.codegen.lower import dtype_name
from fuseline.ir.core import Value
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.fused import QkNormRope, QkNormRopeWrite
from fuseline.ir.ops.merged_rows import MergedRows
from fuseline.ir.ops.mla_projection import MlaProjection, MlaProjectionWrite
from fuseline.ir.ops.raised import Rope, RopeStyle, RopeTable
from fuseline.ir.types import Dim


@dataclass(frozen=True)
class Rotation:
    """How elements ``start .. start + width`` of a head are rotated; the others are copied.

    ``half`` pairs element j with j + width / 2, ``interleaved`` 2 j with 2 j + 1, ``deinterleave``
    reads pairs 2 j, 2 j + 1 and writes them width / 2 apart; the first of a pair becomes
    ``x1 cos - sign x2 sin``. Tables are ``full`` (an entry for each element of the result) or
    ``half`` (one a pair); entry i of a token lies at ``i * step`` (2: the real view of a complex
    table). With ``round`` each product is rounded to the promoted dtype of value and table before
    the sum.
    """

    width: int
    style: RopeStyle = "half"
    table: RopeTable = "full"
    start: int = 0
    sign: int = 1
    round: bool = True
    dtype: str = "f32"
    step: int = 1

    def entry(self, second: bool) -> str:
        """The index into a table for the first or second element of pair j."""
        if self.table == "half":
            index = "j"
        elif self.style == "interleaved":
            index = "2 * j + 1" if second else "2 * j"
        else:
            index = f"j + {self.width // 2}" if second else "j"
        return index if self.step == 1 else f"({index}) * {self.step}"


@dataclass(frozen=True)
class Stream:
    """``heads`` heads of ``width`` elements and what is done to them.

    ``weight`` and ``bias`` are dtypes or ``None``. With ``per_head`` each head has its own row of
    them (``[heads, width]``); a norm across the heads always does (``[heads * width]``). What was
    normed is rounded and multiplied by ``scale``. With ``cached``, token t is written to row
    ``positions[t]``; one outside is a fault of the call.
    """

    name: str
    heads: int
    width: int
    normed: bool = True
    roped: bool = True
    weight: str | None = None
    bias: str | None = None
    per_head: bool = False
    cached: bool = False
    scale: float = 1.0


def check_rotation(rotation: Rotation, streams: Iterable[Stream]) -> None:
    """Reject a rotation that has no meaning, or lies beyond the elements of a stream.

    Raises:
        ValueError: says which.

    """
    if rotation.width % 2 or rotation.width <= 0 or rotation.start < 0:
        raise ValueError(f"rotation of {rotation.width} elements from {rotation.start}")
    for stream in streams:
        if stream.roped and rotation.start + rotation.width > stream.width:
            raise ValueError(f"rotation beyond the {stream.width} elements of {stream.name}")


def qk_streams(
    heads: tuple[int, int],
    width: int,
    *,
    weights: tuple[str | None, str | None] = (None, None),
    biases: tuple[str | None, str | None] = (None, None),
    normed: bool = True,
    per_head: bool = False,
    cache: bool = False,
    values: tuple[int, int] | None = None,
) -> tuple[Stream, ...]:
    """The streams ``q`` and ``k`` of one width and, with ``values`` = (heads, width), ``v``.

    With ``cache`` k and v are written at ``positions``; v is only copied. The buffers are then
    those of `QkNormRopeWrite`: ``k_out`` and ``v_out`` are the caches.
    """
    q, k = (
        Stream(name, n, width, normed, True, weight, bias, per_head, cache and name == "k")
        for name, n, weight, bias in zip("qk", heads, weights, biases, strict=True)
    )
    if values is None:
        return q, k
    return q, k, Stream("v", *values, normed=False, roped=False, cached=cache)


def rotation_of(
    op: QkNormRope | QkNormRopeWrite | Rope | MlaProjection | MlaProjectionWrite | MergedRows,
) -> Rotation | None:
    """How an op rotates; None where it has no tables."""
    if op.cos is None:
        return None
    return Rotation(
        width=op.width,
        style=op.style,
        table=op.table,
        start=op.start,
        sign=1 if op.sign > 0 else -1,
        round=op.round,
        dtype=op.cos.dtype.value,
    )


def token_strides(value: Value, layouts: LayoutMap) -> tuple[Dim, Dim, Dim] | None:
    """Strides of batch, token and head of ``[B, S, H, D]``; None where rows are not dense."""
    layout = layouts.layout(value)
    if not layout.is_inner_dense(value.shape):
        return None
    b, t, h, _ = layout.strides
    return b, t, h


def table_strides(value: Value, batch: Dim, tokens: Dim, layouts: LayoutMap) -> tuple[Dim, Dim]:
    """Strides of batch and token of a table ``[B | 1, S | 1, W]``; 0 where it is broadcast."""
    b, t, _ = layouts.layout(value).strides
    return (
        0 if value.shape[0] == 1 and batch != 1 else b,
        0 if value.shape[1] == 1 and tokens != 1 else t,
    )


def out_strides(
    op: QkNormRope | QkNormRopeWrite, out: Value, layouts: LayoutMap, *, written: bool
) -> tuple[Dim, Dim, Dim]:
    """Strides of batch, token and head of a result or a cache."""
    strides = layouts.layout(out).strides
    if written or op.out == "bhsd":
        return strides[0], strides[2], strides[1]
    return strides[0], strides[1], strides[2]


def streams_of(op: QkNormRope | QkNormRopeWrite) -> tuple[Stream, ...]:
    """The streams of an op.

    Raises:
        ValueError: head counts or widths that are not known.

    """
    cached = isinstance(op, QkNormRopeWrite)
    streams = [
        _stream("q", op, op.q, op.q_weight, op.q_bias, cached=False),
        _stream("k", op, op.k, op.k_weight, op.k_bias, cached=cached),
    ]
    if cached:
        heads, width = op.v.shape[2:]
        if not isinstance(heads, int) or not isinstance(width, int):
            raise ValueError(f"v {op.v.type}; the kernel needs known heads and head dims")
        streams.append(Stream("v", heads, width, normed=False, roped=False, cached=True))
    return tuple(streams)


def _stream(
    name: str,
    op: QkNormRope | QkNormRopeWrite,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    *,
    cached: bool,
) -> Stream:
    heads, width = x.shape[2:]
    if not isinstance(heads, int) or not isinstance(width, int):
        raise ValueError(f"{name} {x.type}; the kernel needs known heads and head dims")
    parameters = [v for v in (weight, bias) if v is not None]
    return Stream(
        name,
        heads,
        width,
        normed=op.norm != "none",
        roped=op.cos is not None,
        weight=dtype_name(weight),
        bias=dtype_name(bias),
        per_head=any(len(v.shape) > 1 for v in parameters),
        cached=cached,
    )
