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
    latent: Tensor,
    shared: Tensor | None,
    weight: Tensor,
    value_weight: Tensor | None,
    *,
    key: int,
    value: int,
) -> tuple[Tensor, Tensor]:
    """Keys ``[B, G, S, key + R]`` and values ``[B, G, S, value]`` of a latent ``[B, 1, S, L]``."""
    batch, _, length, _ = latent.shape

    def heads(rows: Tensor, width: int) -> Tensor:
        return (
            F.linear(latent, rows).reshape(batch, length, len(rows) // width, width).transpose(1, 2)
        )

    if value_weight is None:
        both = heads(weight, key + value)
        keys, values = both[..., :key], both[..., key:]
    else:
        keys, values = heads(weight, key), heads(value_weight, value)
    if shared is not None:
        keys = torch.cat([keys, shared.expand(*keys.shape[:-1], shared.shape[-1])], -1)
    return keys, values


class LatentAttention(Op, name="latent_attention", traits={Trait.PURE}):
    """Attention of q ``[B, H, Sq, N + R]`` over what a latent ``[B, 1, Sk, L]`` expands to.

    weight ``[G * (N + V), L]`` has, for each of the G key heads, N rows that make a key of a latent
    (N is the attribute ``key``) and V (``value``) that make a value; with ``value_weight``
    ``[G * V, L]`` the rows of the values stand there, and weight is ``[G * N, L]``. H is a multiple
    of G. Behind a key stands the part ``shared`` ``[B, 1, Sk, R]`` that all heads have in common,
    absent where R is 0. Masks, positions and the other attributes are those of `Attention`.

    The meaning is the expanded form: keys and values rounded to their type. A kernel may attend in
    the latent space instead (``q_n @ W_key`` against the latents, the sums of latents
    ``@ W_value.T``): the same sums in another order, as in the weight absorption of DeepSeek-V2
    (arXiv 2405.04434).
    """

    q: Value = operand()
    latent: Value = operand()
    weight: Value = operand()
    shared: Value | None = optional_operand()
    mask: Value | None = optional_operand()
    positions: Value | None = optional_operand()
    sinks: Value | None = optional_operand()
    value_weight: Value | None = optional_operand()
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
        shared = 0 if self.shared is None else self.shared.shape[-1]
        if q.shape[-1] != self.key + shared:
            raise OpError(self, f"q {q} is not {self.key} + {shared} wide")
        heads, groups = q.shape[1], self.groups
        if not isinstance(heads, int) or not groups or heads % groups:
            raise OpError(self, f"weight {weight} does not expand {latent} for {heads} heads")
        for rows, each in self._expansions():
            if rows.shape != (groups * each, latent.shape[-1]):
                raise OpError(self, f"weight {rows.type} does not expand {latent}")
        return q.with_shape((*q.shape[:-1], self.value))

    @property
    def groups(self) -> int:
        """How many heads the keys have."""
        rows, each = self._expansions()[0]
        count = rows.shape[0]
        return count // each if isinstance(count, int) else 0

    def _expansions(self) -> list[tuple[Value, int]]:
        """The weights, and how many rows each has for a head."""
        if self.value_weight is None:
            return [(self.weight, self.key + self.value)]
        return [(self.weight, self.key), (self.value_weight, self.value)]

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
        value_weight: Tensor | None,
        *,
        key: int,
        value: int,
        scale: float,
        causal: bool,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        keys, values = expand_latent(latent, shared, weight, value_weight, key=key, value=value)
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
