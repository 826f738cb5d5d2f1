"""Multi-head latent attention: in the latent space for few queries, expanded for many.

In the latent space (weight absorption; DeepSeek-V2, arXiv 2405.04434) three kernels run one after
the other, with the same buffers and dims: queries are brought into the latent space, all heads
attend to the latents as if these were keys and values of one head, and the sums are expanded to
values. The latents are read once for all heads, and nothing of the size of the keys is written.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from fuseline.codegen.cpu.attention import SCRATCH_HEADER, AttentionKernel, BlockedAttentionKernel
from fuseline.ir.types import Dim, dim

PARTS = 4
"""Parts of the keys a worker, at most, where units are few (see ``choose_splits``)."""


@dataclass(frozen=True, kw_only=True)
class LatentKernel(AttentionKernel):
    """What the kernels of latent attention have in common.

    q is ``[B, H, Sq, key + shared]`` and y ``[B, H, Sq, value]``, of any strides but the last; a
    latent is a row of ``[B, Sk, latent]`` and the shared part of its key one of ``[B, Sk,
    shared]``, also by strides. The weight is dense, ``[G * (key + value), latent]``, where
    ``repeat`` query heads have one of the G key heads; with ``apart`` its rows for values are those
    of a second one, ``[G * value, latent]``.
    """

    key: int
    value: int
    latent: int
    shared: int = 0
    repeat: int = 1
    apart: bool = False

    @property
    def heads(self) -> int:
        """Query heads."""
        raise NotImplementedError

    def latent_scratch(self, rows: Dim, keys: Dim, workers: Dim) -> Dim:
        """Bytes of scratch for ``rows`` = B * H * Sq and ``keys`` = Sk."""
        raise NotImplementedError

    @property
    def buffers(self) -> tuple[str, ...]:
        """The names of ``buf``, in order."""
        names = ["q", "latent", "weight", *["shared"] * bool(self.shared)]
        names += ["value_weight"] * self.apart
        names += ["mask"] * (self.mask is not None)
        names += ["positions"] * self.positions + ["sinks"] * (self.sinks is not None)
        return (*names, "y", "scratch")

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of ``dim``, in order."""
        names = ["B", "Hk", "Sq", "Sk", "q_b", "q_h", "q_s", "latent_b", "latent_s"]
        names += ["shared_b", "shared_s"] * bool(self.shared)
        names += ["y_b", "y_h", "y_s"]
        names += [f"mask_{axis}" for axis in "bhqk"] * (self.mask is not None)
        return (*names, *["positions_b"] * self.positions)

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        made = f"keys of {self.key} + {self.shared} and values of {self.value}"
        return f"{super().title}; {made} of latents of {self.latent}"


@dataclass(frozen=True, kw_only=True)
class AbsorbedKernel(LatentKernel):
    """A kernel of attention in the latent space.

    Every head is a query head of the one key head (``group`` is the number of heads, the dim Hk is
    1), and ``value_width`` is ``latent``. `launches` are the three kernels.
    """

    max_splits: int = 8

    def why_varies(self) -> str:
        """Steady ones go through the keys, and the rows of weights, in one order."""
        return "" if self.steady and self.max_splits == 1 else self.varies

    def __post_init__(self) -> None:
        """State what the fields of the base mean here."""
        assert self.value_width == self.latent, "values are latents"
        assert self.width == self.key + self.shared, "of q"

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.group

    def launches(self) -> tuple[AttentionKernel, ...]:
        """The kernels to launch, one after the other, with the same buffers and dims."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        kinds = (LatentQueryKernel, LatentAttendKernel, LatentValueKernel)
        return tuple(kind(**fields) for kind in kinds)

    def latent_scratch(self, rows: Dim, keys: Dim, workers: Dim) -> Dim:
        """Bytes of scratch for ``rows`` = B * H * Sq."""
        del keys
        parts = rows + PARTS * workers * self.block_rows
        return dim(SCRATCH_HEADER + 4 * (rows * self.query_row + parts * self.partial_row))

    @property
    def query_row(self) -> int:
        """Floats of a query in the latent space, padded for any vector width."""
        return -(-self.latent // 32) * 32

    @property
    def block_rows(self) -> int:
        """Rows that meet a block of keys: their queries and sums stay in the second-level cache."""
        return 48

    @property
    def block_keys(self) -> int:
        """Keys of a block: a multiple of 12 and of any vector's width."""
        return 48

    @property
    def grain(self) -> int:
        """Columns of a value that stay with one worker: whole cache lines of y."""
        return 16


class LatentQueryKernel(AbsorbedKernel, template="cpp/latent_query.cpp.jinja"):
    """Queries times the rows of the weight that make keys."""


class LatentAttendKernel(AbsorbedKernel, template="cpp/latent_attend.cpp.jinja"):
    """All heads over the latents."""


class LatentValueKernel(AbsorbedKernel, template="cpp/latent_value.cpp.jinja"):
    """Sums of latents times the rows of the weight that make values."""


@dataclass(frozen=True, kw_only=True)
class ExpandedKernel(LatentKernel, template="cpp/latent_expanded.cpp.jinja"):
    """Keys and values of a head are expanded before attention in blocks.

    ``group`` is 1, the dim Hk the number of heads, and ``value_width`` is ``value``.
    """

    all_heads: int

    varies = "it is for many queries; few attend in the latent space"

    def __post_init__(self) -> None:
        """State what the fields of the base mean here."""
        assert self.value_width == self.value, "of y"
        assert self.width == self.key + self.shared, "of q"
        assert (self.group, self.max_splits) == (1, 1), "a head has keys of its own"

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.all_heads

    def latent_scratch(self, rows: Dim, keys: Dim, workers: Dim) -> Dim:
        """Bytes of scratch for ``keys`` = Sk, one head's expansion for each worker."""
        del rows
        room = (keys + self.block_keys) * self.expanded_row
        return dim(4 * room * workers)

    @property
    def expanded_row(self) -> int:
        """Floats of an expanded key and value, padded for any vector width."""
        return self.width + -(-self.value // 32) * 32

    block_rows = BlockedAttentionKernel.block_rows
    block_keys = BlockedAttentionKernel.block_keys
