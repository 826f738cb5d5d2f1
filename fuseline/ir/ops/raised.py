"""Raised ops: what a model author would name.

Statistics are in float32; rounding points are attributes.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

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
from fuseline.ir.types import Dim, TensorType, dim, product, promote

CastPoint: TypeAlias = Literal["before_weight", "last"]
RopeStyle: TypeAlias = Literal["half", "interleaved", "deinterleave"]
RopeTable: TypeAlias = Literal["full", "half"]
Activation: TypeAlias = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]


def accumulate(x: Tensor) -> Tensor:
    """The operand in the type of statistics: float32, or float64 if it is that."""
    return x if x.dtype == torch.float64 else x.float()


def rms_norm_reference(
    x: Tensor, weight: Tensor | None, *, eps: float, offset: float, cast: str
) -> Tensor:
    """``x * rsqrt(mean(x**2) + eps)`` times ``offset + weight``, rounded where ``cast`` says."""
    wide = accumulate(x)
    normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if weight is None:
        return normal.to(x.dtype)
    if cast == "before_weight":
        return (offset + weight if offset else weight) * normal.to(x.dtype)
    scale = accumulate(weight)
    return (normal * (offset + scale if offset else scale)).to(x.dtype)


def layer_norm_reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float, cast: str
) -> Tensor:
    """``(x - mean) * rsqrt(var + eps) * weight + bias`` over the last dim."""
    wide = accumulate(x)
    centred = wide - wide.mean(-1, keepdim=True)
    normal = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps)
    if cast == "before_weight":
        normal = normal.to(x.dtype)
        normal = normal if weight is None else weight * normal
        return normal if bias is None else normal + bias
    normal = normal if weight is None else normal * accumulate(weight)
    return (normal if bias is None else normal + accumulate(bias)).to(x.dtype)


def activation_reference(x: Tensor, activation: str) -> Tensor:
    """One of the activations of gated MLPs, rounded once."""
    match activation:
        case "silu":
            return F.silu(x)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "relu":
            return F.relu(x)
        case "relu2":
            return F.relu(x).square()
        case _:
            raise ValueError(f"unknown activation {activation!r}")


class RmsNorm(Op, name="rms_norm", traits={Trait.PURE}):
    """RMS norm over the last dim: x ``[..., D]``, weight ``[D]``.

    ``cast="before_weight"`` rounds the normalised row to x's type, then multiplies (the result has
    the promoted type); ``"last"`` multiplies by ``offset + weight`` in float32 and rounds once.
    """

    x: Value = operand()
    weight: Value | None = optional_operand()
    eps: float = attribute(default=1e-6)
    offset: float = attribute(default=0.0)
    cast: CastPoint = attribute(default="before_weight")
    y: Value = result()

    def infer(self) -> TensorType:
        kind = self.x.tensor
        if self.weight is None:
            return kind
        if self.weight.shape != kind.shape[-1:]:
            raise OpError(self, f"weight {self.weight.type} does not fit x {kind}")
        if self.cast == "last":
            return kind
        return kind.with_dtype(promote([self.weight.tensor, kind]))

    def cost(self) -> Cost:
        return Cost(super().cost().bytes, dim(4 * self.x.tensor.numel))

    reference = staticmethod(rms_norm_reference)


class LayerNorm(Op, name="layer_norm", traits={Trait.PURE}):
    """Layer norm over the last dim of x ``[..., D]``; weight, bias ``[D]``, or ``[H, D]``."""

    x: Value = operand()
    weight: Value | None = optional_operand()
    bias: Value | None = optional_operand()
    eps: float = attribute(default=1e-5)
    cast: CastPoint = attribute(default="last")
    y: Value = result()

    def infer(self) -> TensorType:
        kind = self.x.tensor
        present = [v for v in (self.weight, self.bias) if v is not None]
        for value in present:
            if value.shape != kind.shape[kind.rank - len(value.shape) :]:
                raise OpError(self, f"{value.type} does not fit x {kind}")
        if self.cast == "last":
            return kind
        return kind.with_dtype(promote([kind, *(v.tensor for v in present)]))

    def cost(self) -> Cost:
        return Cost(super().cost().bytes, dim(7 * self.x.tensor.numel))

    reference = staticmethod(layer_norm_reference)


def rope_reference(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    style: str,
    table: str,
    start: int,
    width: int,
    sign: int,
    round: bool,
) -> Tensor:
    """Rotate elements ``start .. start + width`` of the last dim; the others are copied."""
    part = x[..., start : start + width]
    if style == "deinterleave":
        part = part.reshape(*part.shape[:-1], width // 2, 2).transpose(-1, -2).flatten(-2)
    if table == "half":
        spread = style == "interleaved"
        cos, sin = (
            t.repeat_interleave(2, -1) if spread else torch.cat([t, t], -1) for t in (cos, sin)
        )
    if not round:
        part, cos, sin = accumulate(part), accumulate(cos), accumulate(sin)
    if style == "interleaved":
        turned = torch.stack([-part[..., 1::2], part[..., 0::2]], -1).flatten(-2)
    else:
        turned = torch.cat([-part[..., width // 2 :], part[..., : width // 2]], -1)
    rotated = part * cos + turned * (sin if sign > 0 else -sin)
    pieces = [x[..., :start], rotated.to(x.dtype), x[..., start + width :]]
    return torch.cat([p for p in pieces if p.shape[-1]], -1)


class Rope(Op, name="rope", traits={Trait.PURE}):
    """Rotary position embedding of x ``[..., D]`` by tables that broadcast against it.

    Styles: ``half`` pairs element i with i + width/2; ``interleaved`` pairs 2i with 2i + 1;
    ``deinterleave`` reads pairs 2i, 2i + 1 and writes them width/2 apart. ``table="half"`` holds
    one column a pair, ``"full"`` one an element of the result. ``sign=-1`` turns the other way.
    ``round`` rounds both products to x's type before they are added.
    """

    x: Value = operand()
    cos: Value = operand()
    sin: Value = operand()
    style: RopeStyle = attribute(default="half")
    table: RopeTable = attribute(default="full")
    start: int = attribute(default=0)
    width: int = attribute()
    sign: int = attribute(default=1)
    round: bool = attribute(default=True)
    y: Value = result()

    def infer(self) -> TensorType:
        kind = self.x.tensor
        columns = self.width if self.table == "full" else self.width // 2
        for value in (self.cos, self.sin):
            if value.shape[-1] != columns:
                raise OpError(self, f"table {value.type} does not have {columns} columns")
        if isinstance(kind.shape[-1], int) and self.start + self.width > kind.shape[-1]:
            raise OpError(self, f"{self.start}..{self.start + self.width} of x {kind}")
        return kind

    def cost(self) -> Cost:
        return Cost(super().cost().bytes, dim(3 * product(self.x.shape)))

    reference = staticmethod(rope_reference)


def attention_mask(
    scores: Tensor,
    mask: Tensor | None,
    positions: Tensor | None,
    *,
    causal: bool,
    window: int | None,
) -> Tensor:
    """Apply the mask operand and the causal and window attributes to scores ``[B, H, Sq, Sk]``."""
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        )
    if not causal and window is None:
        return scores
    sq, sk = scores.shape[-2:]
    rows = torch.arange(sq) if positions is None else positions
    rows = rows.reshape((rows.numel() // sq if sq else 1, 1, sq, 1))
    keys = torch.arange(sk)
    if causal:
        scores = scores.masked_fill(keys > rows, -torch.inf)
    if window is not None:
        scores = scores.masked_fill(keys <= rows - window, -torch.inf)
    return scores


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    positions: Tensor | None,
    sinks: Tensor | None,
    *,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Grouped attention with float32 scores; a row that sees no key gives zeros."""
    group = q.shape[1] // k.shape[1]
    keys, values = (accumulate(t).repeat_interleave(group, 1) for t in (k, v))
    scores = accumulate(q) @ keys.transpose(-1, -2) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = attention_mask(scores, mask, positions, causal=causal, window=window)
    if sinks is not None:
        column = accumulate(sinks).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], -1)
    empty = scores.isneginf().all(-1, keepdim=True)
    weights = torch.softmax(scores, -1).masked_fill(empty, 0.0)
    if sinks is not None:
        weights = weights[..., :-1]
    return (weights @ values).to(q.dtype)


class Attention(Op, name="attention", traits={Trait.PURE}):
    """Grouped attention: q ``[B, H, Sq, D]``, k ``[B, Hk, Sk, D]``, v ``[B, Hk, Sk, Dv]``.

    H is a multiple of Hk. The mask (bool, or added to the scores) broadcasts to ``[B, H, Sq, Sk]``.
    ``causal``: key j is seen by query i if ``j <= positions[i]``; ``window``: only if also
    ``j > positions[i] - window``. positions: i64 ``[Sq]`` or ``[B, Sq]``, 0, 1, ... where absent.
    Sinks ``[H]`` are one more logit a head without a value. Scores and softmax are in float32.
    """

    q: Value = operand()
    k: Value = operand()
    v: Value = operand()
    mask: Value | None = optional_operand()
    positions: Value | None = optional_operand()
    sinks: Value | None = optional_operand()
    scale: float = attribute()
    causal: bool = attribute(default=False)
    window: int | None = attribute(default=None)
    softcap: float | None = attribute(default=None)
    y: Value = result()

    def infer(self) -> TensorType:
        q, k, v = self.q.tensor, self.k.tensor, self.v.tensor
        if q.rank != 4 or k.rank != 4 or v.rank != 4 or q.shape[-1] != k.shape[-1]:
            raise OpError(self, f"q {q}, k {k}, v {v}")
        heads, groups = q.shape[1], k.shape[1]
        if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
            raise OpError(self, f"{heads} query heads over {groups} key heads")
        return q.with_shape((*q.shape[:-1], v.shape[-1]))

    def cost(self) -> Cost:
        pairs = product((*self.q.shape[:-1], self.k.shape[-2]))
        width: Dim = self.q.shape[-1] + self.v.shape[-1]
        return Cost(super().cost().bytes, dim(2 * pairs * width))

    reference = staticmethod(attention_reference)


class GatedMlp(Op, name="gated_mlp", traits={Trait.PURE}):
    """``(act(x @ gate.T) * (x @ up.T)) @ down.T``, rounded after each step."""

    x: Value = operand()
    gate: Value = operand()
    up: Value = operand()
    down: Value = operand()
    gate_bias: Value | None = optional_operand()
    up_bias: Value | None = optional_operand()
    down_bias: Value | None = optional_operand()
    activation: Activation = attribute(default="silu")
    y: Value = result()

    def infer(self) -> TensorType:
        if self.gate.shape != self.up.shape or self.gate.shape[1:] != self.x.shape[-1:]:
            raise OpError(self, f"gate {self.gate.type} and up {self.up.type}, x {self.x.type}")
        return self.x.tensor.with_shape((*self.x.shape[:-1], self.down.shape[0]))

    def cost(self) -> Cost:
        rows = product(self.x.shape[:-1])
        weights = self.gate.tensor.numel * 2 + self.down.tensor.numel
        return Cost(super().cost().bytes, dim(2 * rows * weights))

    @staticmethod
    def reference(
        x: Tensor,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        gate_bias: Tensor | None,
        up_bias: Tensor | None,
        down_bias: Tensor | None,
        *,
        activation: str,
    ) -> Tensor:
        hidden = activation_reference(F.linear(x, gate, gate_bias), activation)
        return F.linear(hidden * F.linear(x, up, up_bias), down, down_bias)
