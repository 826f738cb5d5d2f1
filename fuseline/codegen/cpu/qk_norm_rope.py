"""Norm and rotation of query and key heads in one launch, and rotation alone.

A kernel works on *streams*: sets of heads that are read as strided rows (slices of one merged
projection, say) and written strided, or straight into a static cache. A stream may be normed,
rotated, both, or only copied (the values on their way into the cache).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fuseline.codegen.cpu.cpp import CPP_TYPES
from fuseline.codegen.cpu.norm import float_literal, norm_flags
from fuseline.codegen.heads import Rotation, Stream, check_rotation
from fuseline.codegen.kernel import KernelTemplate
from fuseline.codegen.norms import NormKind, norm_result, promote
from fuseline.ir.ops.raised import CastPoint


@dataclass(frozen=True)
class StreamCode:
    """What the template needs of one stream, as ready-made strings."""

    name: str
    heads: int
    width: int
    normed: bool
    roped: bool
    cached: bool
    copied: bool
    across: bool
    batched: bool
    fused: bool
    weighed: bool
    cos_at: str
    sin_at: str
    moments_at: str
    first: int
    stop: int
    how: str
    scale: str
    method: str
    weight_read: str
    bias_read: str
    weight_at: str
    bias_at: str
    shared: tuple[tuple[str, str], ...] = field(default=())


@dataclass(frozen=True)
class QkNormRopeKernel(KernelTemplate, template="cpp/qk_norm_rope.cpp.jinja"):
    """Norm (RMS or layer, per head or across the heads of a token) and rotation of ``streams``.

    x and out of a stream are ``[B, S, heads, width]`` of ``dtype`` with any strides but the last,
    which is 1; out has the dtype ``out`` (``dtype`` for a stream that is only copied). cos and sin
    are ``[B, S, W]`` (strides of 0 broadcast), positions ``i64[S]``. ``buffers`` and ``dims`` name
    the arguments in order: ``B``, ``S``; the strides ``<name>_{b,t,h}`` and ``<name>_out_{b,t,h}``
    of each stream, in elements (``out_t`` steps from cache row to cache row when cached); those of
    the tables; and ``capacity``, the rows of the cache. A stream may be computed in place, except
    across heads, where another worker may still sum the row. Without ``rounded``, intermediate
    values stay in float32 whatever `cast` and `Rotation.round` say: closer to the float64 oracle
    than eager, and twice as fast in 16-bit types.
    """

    varies = ""

    dtype: str
    streams: tuple[Stream, ...]
    rotation: Rotation | None = None
    kind: NormKind = "rms"
    eps: float = 1e-6
    offset: float = 0.0
    cast: CastPoint = "before_weight"
    scope: Literal["head", "row"] = "head"
    order: Literal["norm_rope", "rope_norm"] = "norm_rope"
    rounded: bool = True

    def __post_init__(self) -> None:
        """Reject geometry that has no meaning."""
        outs = {
            norm_result(self.dtype, s.weight, s.bias, self.cast) for s in self.streams if s.normed
        }
        if len(outs) > 1:
            raise ValueError(f"streams of several result dtypes: {sorted(outs)}")
        if self.scope == "row" and self.order == "rope_norm":
            raise ValueError("a norm across heads cannot follow the rotation in one launch")
        if self.rotation is not None:
            check_rotation(self.rotation, self.streams)

    @property
    def out(self) -> str:
        """The dtype of every stream that is not only copied."""
        for stream in self.streams:
            if stream.normed:
                return norm_result(self.dtype, stream.weight, stream.bias, self.cast)
        return self.dtype

    @property
    def cached(self) -> bool:
        """Whether a stream is written into a cache."""
        return any(stream.cached for stream in self.streams)

    @property
    def buffers(self) -> tuple[str, ...]:
        """The names of ``buf``, in order."""
        names: list[str] = []
        for s in self.streams:
            names += [s.name, f"{s.name}_out", *[f"{s.name}_weight"] * (s.weight is not None)]
            names += [f"{s.name}_bias"] * (s.bias is not None)
        names += ["cos", "sin"] * (self.rotation is not None) + ["positions"] * self.cached
        return tuple(names)

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of ``dim``, in order."""
        names = ["B", "S"]
        for s in self.streams:
            names += [f"{s.name}{side}_{axis}" for side in ("", "_out") for axis in "bth"]
        if self.rotation is not None:
            names += ["cos_b", "cos_t", "sin_b", "sin_t"]
        return (*names, *["capacity"] * self.cached)

    @property
    def slot(self) -> dict[str, int]:
        """The index of each buffer."""
        return {name: i for i, name in enumerate(self.buffers)}

    @property
    def at(self) -> dict[str, int]:
        """The index of each dim."""
        return {name: i for i, name in enumerate(self.dims)}

    @property
    def units(self) -> int:
        """Units of work of one token: its heads."""
        return sum(stream.heads for stream in self.streams)

    @property
    def code(self) -> tuple[StreamCode, ...]:
        """The streams as the template writes them."""
        first, codes = 0, list[StreamCode]()
        for stream in self.streams:
            codes.append(self._code(stream, first))
            first += stream.heads
        return tuple(codes)

    def _code(self, s: Stream, first: int) -> StreamCode:
        roped = s.roped and self.rotation is not None
        across = s.normed and self.scope == "row"
        weight_read, weight_at, weight_shared = self._parameter(s, "weight", s.weight)
        bias_read, bias_at, bias_shared = self._parameter(s, "bias", s.bias)
        late = s.normed and roped and self.order == "rope_norm"
        batched = s.normed and not across and not late
        plain = s.bias is None and not s.per_head and s.scale == 1.0
        fused = batched and roped and plain and self.exact_between
        weighed = fused and s.weight is not None
        return StreamCode(
            name=s.name,
            heads=s.heads,
            width=s.width,
            normed=s.normed,
            roped=roped,
            cached=s.cached,
            copied=not s.normed and not roped,
            across=across,
            batched=batched,
            fused=fused,
            weighed=weighed,
            cos_at=f"weighed ? cos_{s.name} : cos" if weighed else "cos",
            sin_at=f"weighed ? sin_{s.name} : sin" if weighed else "sin",
            moments_at="m" if across else "m[h - first]" if batched else "{}",
            first=first,
            stop=first + s.heads,
            how=self._how(s) if s.normed else "0",
            scale=float_literal(s.scale),
            method="rope_norm" if late else "norm_rope",
            weight_read=weight_read,
            bias_read=bias_read,
            weight_at=weight_at,
            bias_at=bias_at,
            shared=weight_shared + bias_shared,
        )

    def _how(self, s: Stream) -> str:
        flags = norm_flags(self.kind, self.cast, s.weight, s.bias)
        return flags if s.scale == 1.0 else f"{flags} | SCALED"

    def _parameter(
        self, s: Stream, operand: str, dtype: str | None
    ) -> tuple[str, str, tuple[tuple[str, str], ...]]:
        """The type that a head reads, where it reads it, and what is prepared once per worker."""
        if dtype is None or not s.normed:
            return "float", "nullptr", ()
        if s.per_head or self.scope == "row":
            cpp = CPP_TYPES[dtype]
            at = f"(const {cpp} *)call->buf[{self.slot[f'{s.name}_{operand}']}] + h * {s.width}"
            return cpp, at, ()
        return "fl_lanes", f"{operand}_{s.name}", ((operand, CPP_TYPES[dtype]),)

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        norm = {"rms": "RMS norm", "layer": "Layer norm"}[self.kind]
        steps = [norm] * any(s.normed for s in self.streams)
        steps += ["rotation"] * (self.rotation is not None)
        steps = steps[::-1] if self.order == "rope_norm" else steps
        heads = " and ".join(f"{s.heads} {s.name} heads of {s.width}" for s in self.streams)
        return f"{', '.join(steps) or 'Copy'}: {heads}, {self.dtype}"

    @property
    def exact_between(self) -> bool:
        """Whether nothing is rounded to a 16-bit type between norm and rotation."""
        return not self.rounded or (self.dtype == "f32" and self.out == "f32")

    @property
    def product_rounds(self) -> bool:
        """Whether the products of the rotation are rounded to the dtype of what is rotated."""
        if self.rotation is None or not self.rotation.round or not self.rounded:
            return False
        value = self.dtype if self.order == "rope_norm" else self.out
        return promote(value, self.rotation.dtype) == value

    @property
    def x_type(self) -> str:
        """The C++ type of the inputs."""
        return CPP_TYPES[self.dtype]

    @property
    def out_type(self) -> str:
        """The C++ type of the results."""
        return CPP_TYPES[self.out]

    @property
    def table_type(self) -> str:
        """The C++ type of cos and sin, empty without a rotation."""
        return CPP_TYPES[self.rotation.dtype] if self.rotation else ""

    @property
    def sin_signs(self) -> tuple[str, str]:
        """The signs that the sines of the first and the second element of a pair get."""
        return ("-", "") if self.rotation is None or self.rotation.sign > 0 else ("", "-")

    @property
    def first_entry(self) -> str:
        """The table index of the first element of pair j."""
        return self.rotation.entry(second=False) if self.rotation else ""

    @property
    def second_entry(self) -> str:
        """The table index of the second element of pair j."""
        return self.rotation.entry(second=True) if self.rotation else ""

    @property
    def short_nans(self) -> int:
        """1 if everything read is bf16 (see _rows.h)."""
        read = {self.dtype, *(d for s in self.streams for d in (s.weight, s.bias) if d)}
        return int(read | {self.rotation.dtype if self.rotation else "bf16"} == {"bf16"})

    @property
    def eps_literal(self) -> str:
        """``eps`` in C++."""
        return float_literal(self.eps)

    @property
    def offset_literal(self) -> str:
        """``offset`` in C++."""
        return float_literal(self.offset)
