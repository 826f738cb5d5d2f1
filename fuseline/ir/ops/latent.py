"""Multi-head latent attention (MLA): keys and values that are expansions of a narrow latent."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fuseline.ir.core import (
    Cost,
    Op,
    OpError,
    Trait,
    Value,
    attribute,
    operand,
    optional_operand,
    result,
)
from fuseline.ir.ops.raised import attention_reference
from fuseline.ir.types import TensorType, dim, product


def expand_latent(
    latent: Tensor, shared: Tensor | None, weight: Tensor, *, heads: int, key: int, value: int
) -> tuple[Tensor, Tensor]:
    """Keys ``[B, H, S, key + R]`` and values ``[B, H, S, value]`` of a latent ``[B, 1, S, L]``."""
    batch, _, length, _ = latent.shape
    both = F.linear(latent, weight).reshape(batch, length, heads, key + value).transpose(1, 2)
    keys, values = both[..., :key], both[..., key:]
    if shared is not None:
        keys = torch.cat([keys, shared.expand(batch, heads, length, shared.shape[-1])], -1)
    return keys, values


class LatentAttention(Op, name="latent_attention", traits={Trait.PURE}):
    """Attention of q ``[B, H, Sq, N + R]`` over what a latent ``[B, 1, Sk, L]`` expands to.

    weight ``[H * (N + V), L]`` has, head by head, N rows that make a key of a latent (N is the
    attribute ``key``) and V (``value``) that make a value; behind a key stands the part ``shared``
    ``[B, 1, Sk, R]`` that all heads have in common, absent where R is 0. Masks, positions and the
    other attributes are those of `Attention`. The meaning is the expanded form: keys and values
    rounded to their type. A kernel may attend in the latent space instead (``q_n @ W_key`` against
    the latents, the sums of latents ``@ W_value.T``): the same sums in another order, as in the
    weight absorption of DeepSeek-V2 (arXiv 2405.04434).
    """

    q: Value = operand()
    latent: Value = operand()
    weight: Value = operand()
    shared: Value | None = optional_operand()
    mask: Value | None = optional_operand()
    positions: Value | None = optional_operand()
    sinks: Value | None = optional_operand()
    key: int = attribute()
    value: int = attribute()
    scale: float = attribute()
    causal: bool = attribute(default=False)
    window: int | None = attribute(default=None)
    softcap: float | None = attribute(default=None)
    y: Value = result()

    def infer(self) -> TensorType:
        q, latent, weight = self.q.tensor, self.latent.tensor, self.weight.tensor
        if q.rank != 4 or latent.rank != 4 or latent.shape[1] != 1:
            raise OpError(self, f"q {q}, latent {latent}")
        heads, shared = q.shape[1], 0 if self.shared is None else self.shared.shape[-1]
        if q.shape[-1] != self.key + shared:
            raise OpError(self, f"q {q} is not {self.key} + {shared} wide")
        if weight.shape != (dim(heads * (self.key + self.value)), latent.shape[-1]):
            raise OpError(self, f"weight {weight} does not expand {latent} for {heads} heads")
        return q.with_shape((*q.shape[:-1], self.value))

    def cost(self) -> Cost:
        """Of attending in the latent space."""
        width = self.latent.shape[-1] + self.latent.shape[-1] + self.q.shape[-1] - self.key
        rows = product(self.q.shape[:-1])
        pairs = rows * self.latent.shape[-2]
        per_row = (self.key + self.value) * self.latent.shape[-1]
        return Cost(super().cost().bytes, dim(2 * pairs * width + 2 * rows * per_row))

    @staticmethod
    def reference(
        q: Tensor,
        latent: Tensor,
        weight: Tensor,
        shared: Tensor | None,
        mask: Tensor | None,
        positions: Tensor | None,
        sinks: Tensor | None,
        *,
        key: int,
        value: int,
        scale: float,
        causal: bool,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        keys, values = expand_latent(latent, shared, weight, heads=q.shape[1], key=key, value=value)
        return attention_reference(
            q,
            keys,
            values,
            mask,
            positions,
            sinks,
            scale=scale,
            causal=causal,
            window=window,
            softcap=softcap,
        )
