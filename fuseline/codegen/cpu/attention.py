"""Attention of grouped heads: over a static cache for few queries, in blocks for many.

Both kernels read q, k and v by strides, see only the keys that positions, causality and window
allow, and give a row without a key zeros, as torch's scaled dot product does. With
``max_splits`` > 1 the keys of a unit may be cut over workers; the parts then meet in a scratch
buffer, and a second kernel, launched with the same arguments, joins them (`launches`). With
``steady`` blocks of keys begin at multiples of their length, whatever keys the rows see, and are
not cut: then a row has the same bits whatever rows are beside it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from fuseline.codegen.cpu.cpp import CPP_TYPES
from fuseline.codegen.cpu.norm import float_literal
from fuseline.codegen.kernel import KernelTemplate

SCRATCH_HEADER = 64
"""Bytes before the partial results: the number of splits, padded to a cache line."""


@dataclass(frozen=True)
class AttentionKernel(KernelTemplate):
    """What the attention kernels have in common.

    q is ``[B, Hk * group, Sq, width]``, k ``[B, Hk, Sk, width]``, v ``[B, Hk, Sk, value_width]``
    and y ``[B, Hk * group, Sq, value_width]``, all of ``dtype`` and of any strides but the last,
    which is 1. The mask (``"bool"``, or the dtype of what is added) is ``[B, H, Sq, Sk]`` with
    strides of 0 where it broadcasts; positions are ``i64[B, Sq]`` (``positions_b`` may be 0) and
    default to 0, 1, ...; sinks are ``[H]``. ``buffers`` and ``dims`` name the arguments in order;
    strides are in elements. Scratch is needed with ``max_splits`` > 1 (`scratch_bytes`); it need
    not be cleared.
    """

    dtype: str
    group: int
    width: int
    value_width: int
    scale: float
    causal: bool = False
    positions: bool = False
    window: int | None = None
    softcap: float | None = None
    mask: str | None = None
    sinks: str | None = None
    max_splits: int = 1
    steady: bool = False

    steady_flags = ()  # an element of a row has one place, and products are all alike
    varies = "it adds along the keys in as many parts as there are workers for them"

    @property
    def buffers(self) -> tuple[str, ...]:
        """The names of ``buf``, in order."""
        names = ["q", "k", "v", *["mask"] * (self.mask is not None)]
        names += ["positions"] * self.positions + ["sinks"] * (self.sinks is not None)
        return (*names, "y", *["scratch"] * (self.max_splits > 1))

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of ``dim``, in order."""
        names = ["B", "Hk", "Sq", "Sk"]
        names += [f"{operand}_{axis}" for operand in "qkvy" for axis in "bhs"]
        names += [f"mask_{axis}" for axis in "bhqk"] * (self.mask is not None)
        return (*names, *["positions_b"] * self.positions)

    def launches(self) -> tuple[AttentionKernel, ...]:
        """The kernels to launch, one after the other, with the same buffers and dims."""
        if self.max_splits == 1:
            return (self,)
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return (self, CombineAttentionKernel(**fields))

    def scratch_bytes(self, rows: int) -> int:
        """The scratch for ``rows`` = B * H * Sq rows of the result."""
        return SCRATCH_HEADER + self.max_splits * rows * self.partial_row * 4

    @property
    def slot(self) -> dict[str, int]:
        """The index of each buffer."""
        return {name: i for i, name in enumerate(self.buffers)}

    @property
    def at(self) -> dict[str, int]:
        """The index of each dim."""
        return {name: i for i, name in enumerate(self.dims)}

    @property
    def partial_row(self) -> int:
        """Floats of one row of partial results: the sums, padded for any vector width, m and l."""
        return -(-self.value_width // 32) * 32 + 2

    @property
    def split_keys(self) -> int:
        """Fewer keys than this are not worth a part of their own."""
        return 128

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        group = f"{self.group} query heads a key head" if self.group > 1 else "equal heads"
        traits = ["causal"] * self.causal
        traits += [f"window {self.window}"] * (self.window is not None)
        traits += [f"cap {self.softcap}"] * (self.softcap is not None)
        widths = f"{self.width} and {self.value_width}"
        return ", ".join([f"Attention, {group}", f"heads of {widths}", *traits, self.dtype])

    @property
    def x_type(self) -> str:
        """The C++ type of q, k, v and y."""
        return CPP_TYPES[self.dtype]

    @property
    def mask_type(self) -> str:
        """The C++ type of the mask, empty without one."""
        return CPP_TYPES[self.mask] if self.mask else ""

    @property
    def sinks_type(self) -> str:
        """The C++ type of the sinks, empty without."""
        return CPP_TYPES[self.sinks] if self.sinks else ""

    @property
    def query_scale(self) -> str:
        """What q is multiplied by: the scale, relative to the cap where there is one."""
        return float_literal(self.scale / self.softcap if self.softcap else self.scale)

    @property
    def cap_literal(self) -> str:
        """The cap of the scores in C++."""
        return float_literal(self.softcap or 0.0)

    @property
    def short_nans(self) -> int:
        """0: the arithmetic of a softmax makes NaN of any payload from float32."""
        return 0


class DecodeAttentionKernel(AttentionKernel, template="cpp/attention_decode.cpp.jinja"):
    """Few rows (``group * Sq`` up to about 8): dot products straight from the cache."""


class BlockedAttentionKernel(AttentionKernel, template="cpp/attention_blocked.cpp.jinja"):
    """Many rows: register tiles over packed blocks of keys and values."""

    def why_varies(self) -> str:
        """Steady ones go through the keys in one order."""
        return "" if self.steady and self.max_splits == 1 else self.varies

    @property
    def block_rows(self) -> int:
        """Rows of a block: a multiple of every register tile."""
        return 60

    @property
    def block_keys(self) -> int:
        """Keys of a block: few enough that even wide heads stay in the second-level cache."""
        return 64 if self.width + self.value_width <= 512 else 32


class CombineAttentionKernel(AttentionKernel, template="cpp/attention_combine.cpp.jinja"):
    """Joins the parts of a split attention of the same fields."""


def attention_kind(rows: int | None) -> type[AttentionKernel]:
    """The kernel for ``rows`` = group * Sq a key head; ``None`` if only known at run time."""
    return DecodeAttentionKernel if rows is not None and rows <= 8 else BlockedAttentionKernel
