"""Row kernels: norms and rotations as model code spells them, compiled for one number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.common import Json
from benchmarks.gpu.compare import Inputs, in_graphs
from benchmarks.gpu.device import Device

MOST_DIFFERENT = 0.02
"""From eager: a few steps of bfloat16, the norm over all results."""


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """As models have it: normalised in float32, rounded, then multiplied by the weight."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return weight * wide.to(x.dtype)


def rotate_half(x: Tensor) -> Tensor:
    """The rotation's partner of each element."""
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)


def rotate_first(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The first elements of each head rotated, the others as they are."""
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    return torch.cat((turned * cos + rotate_half(turned) * sin, rest), -1)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The residual sum and the norm of it, [T, 4096]."""
    total = x + residual
    return total, rms_norm(total, weight)


def qk_norm_rope(
    x: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """As in Qwen3-8B: 32 and 8 heads of 128 out of a projection [1, T, 48 * 128] that has values
    as well; cos and sin are [1, T, 128].
    """
    q, k, _ = cast("Any", x).split((4096, 1024, 1024), -1)
    q = rms_norm(q.view(1, -1, 32, 128), q_weight).transpose(1, 2)
    k = rms_norm(k.view(1, -1, 8, 128), k_weight).transpose(1, 2)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin


def qk_norm_across(
    x: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """As in MiniMax-M2: one norm over 48 query heads of 128 and one over 8 key heads, out of a
    projection [1, T, 64 * 128] that has values as well; then the first 64 elements of each head are
    rotated: cos and sin are [1, T, 64].
    """
    q, k, _ = cast("Any", x).split((6144, 1024, 1024), -1)
    q = rms_norm(q, q_weight).view(1, -1, 48, 128).transpose(1, 2)
    k = rms_norm(k, k_weight).view(1, -1, 8, 128).transpose(1, 2)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return rotate_first(q, cos, sin), rotate_first(k, cos, sin)


def mla_prologue(
    q: Tensor, latent: Tensor, q_weight: Tensor, weight: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As in DeepSeek-V3: norms of the query's latent [1, T, 1536] and of the keys' and values',
    512 of [1, T, 576], whose last 64 are the shared key that is rotated; cos and sin [1, T, 64].
    """
    compressed, key = cast("Any", latent).split((512, 64), -1)
    key = key.view(1, 1, -1, 64)
    pairs = key.view(1, 1, -1, 32, 2).transpose(4, 3).reshape(1, 1, -1, 64)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    rotated = pairs * cos + rotate_half(pairs) * sin
    return rms_norm(q, q_weight), rms_norm(compressed, weight), rotated


@dataclass(frozen=True)
class Row:
    """A function of rows.

    Attributes:
        title: for the tables.
        function: takes ``rows`` tensors of so many tokens, then weights, then tables.
        rows: the last dims of those tensors.
        weights: the lengths of the weights.
        tables: the width of cosines and sines, 0 where there are none.
        elements: read and written for each token, tables included.
        flat: whether a tensor of tokens has no dim of 1 in front.
    """

    title: str
    function: Callable[..., Sequence[Tensor]]
    rows: tuple[int, ...]
    weights: tuple[int, ...]
    tables: int
    elements: int
    flat: bool = False

    def inputs(self, device: Device, tokens: int) -> list[Inputs]:
        """Sets of inputs that share their weights and tables."""
        lead = (tokens,) if self.flat else (1, tokens)
        weights = [1 + 0.1 * device.random(n, seed=i) for i, n in enumerate(self.weights)]
        fixed = [*weights, *self._tables(device, tokens)]
        return [
            (*(device.random(*lead, n, seed=100 * s + i) for i, n in enumerate(self.rows)), *fixed)
            for s in range(1, 1 + device.sets(self.nbytes(tokens)))
        ]

    def _tables(self, device: Device, tokens: int) -> list[Tensor]:
        if not self.tables:
            return []
        places = torch.arange(0, self.tables, 2, device=device.name)
        frequencies = 1e6 ** -(places / self.tables)
        angles = torch.arange(tokens, device=device.name)[None, :, None] * frequencies
        both = torch.cat((angles, angles), -1)
        return [both.cos().bfloat16(), both.sin().bfloat16()]

    def nbytes(self, tokens: int) -> int:
        """Bytes that a call must read and write: what it uses once, and its results once."""
        return 2 * (tokens * self.elements + sum(self.weights))


ROWS = {
    "add_rms_norm": Row(
        "residual add, RMS norm, 4096",
        add_rms_norm,
        rows=(4096, 4096),
        weights=(4096,),
        tables=0,
        elements=4 * 4096,
        flat=True,
    ),
    "qk_norm_rope": Row(
        "QK norm per head, RoPE, 32/8 heads of 128",
        qk_norm_rope,
        rows=(6144,),
        weights=(128, 128),
        tables=128,
        elements=2 * 5120 + 2 * 128,
    ),
    "qk_norm_across": Row(
        "QK norm across heads, partial RoPE, 48/8 heads of 128",
        qk_norm_across,
        rows=(8192,),
        weights=(6144, 1024),
        tables=64,
        elements=2 * 7168 + 2 * 64,
    ),
    "mla_prologue": Row(
        "MLA prologue, 1536 and 512 + 64",
        mla_prologue,
        rows=(1536, 576),
        weights=(1536, 512),
        tables=64,
        elements=2 * (1536 + 576) + 2 * 64,
    ),
}


def measure(device: Device, name: str, tokens: int, without: Sequence[str]) -> Json:
    """Samples and figures of one function at one number of tokens."""
    row = ROWS[name]
    inputs = row.inputs(device, tokens)
    found = in_graphs(device, row.function, inputs, MOST_DIFFERENT, without)
    return {"bytes": row.nbytes(tokens), **found}
