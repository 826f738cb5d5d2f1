"""Five places that look like what is fused, each spoilt in its own way, and what is said of them.

    fuseline explain examples.misses:make_model --missed
    fuseline explain examples.misses:make_model --remarks-missed

Each block has one thing that keeps it from being fused. `make_model` mends those that it is given:
just that is changed then, and the block is fused.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FAULTS = ("qk_norm", "rope", "gated_mlp", "merged_linear", "add_rms_norm")
"""What would be fused, block by block."""

WIDTH, HEADS, HEAD = 48, 4, 12


class Attention(nn.Module):
    """Queries and keys are normed by modules with different epsilons."""

    def __init__(self, *, mended: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.q_norm = nn.RMSNorm(HEAD, eps=1e-6)
        self.k_norm = nn.RMSNorm(HEAD, eps=1e-6 if mended else 1e-5)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attention over normed queries and keys."""
        rows, length, _ = x.shape
        q, k, v = self.qkv(x).view(rows, length, 3, HEADS, HEAD).unbind(2)
        q, k = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True)
        return self.out(y.transpose(1, 2).reshape(rows, length, WIDTH))


class Turn(nn.Module):
    """One of the four products of a rotation has the wrong sign."""

    def __init__(self, *, mended: bool) -> None:
        super().__init__()
        self.sign = 1.0 if mended else -1.0

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """The rotation, or what is none."""
        a, b = x.chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        crossed = a * sin
        second = b * cos + crossed if self.sign > 0 else b * cos - crossed
        return torch.cat((a * cos - b * sin, second), -1)


class Mlp(nn.Module):
    """The activated gate is needed once more, behind the MLP."""

    def __init__(self, *, mended: bool) -> None:
        super().__init__()
        self.mended = mended
        self.gate, self.up = (nn.Linear(WIDTH, 80, bias=False) for _ in range(2))
        self.down = nn.Linear(80, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The MLP, and what the gate does to its result."""
        gate = F.silu(self.gate(x))
        y = self.down(gate * self.up(x))
        return y if self.mended else y * gate.amax(-1, keepdim=True)


class Pair(nn.Module):
    """Two products of one x, one of them by a weight that a third product reads as well."""

    def __init__(self, *, mended: bool) -> None:
        super().__init__()
        self.left, self.right = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.last = nn.Linear(WIDTH, WIDTH, bias=False)
        if not mended:
            self.last.weight = self.right.weight

    def forward(self, x: Tensor) -> Tensor:
        """Two products of x, and a third of both."""
        return self.last(torch.tanh(self.left(x) - self.right(x)))


class Norm(nn.Module):
    """The norm is over a sum, but one of a row that all tokens share."""

    def __init__(self, *, mended: bool) -> None:
        super().__init__()
        self.mended = mended
        self.shift = nn.Parameter(torch.linspace(-1, 1, WIDTH))
        self.norm = nn.RMSNorm(WIDTH, eps=1e-6)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """The norm of a sum."""
        return self.norm(residual + (x if self.mended else self.shift))


class Model(nn.Module):
    """All of them, one behind the other."""

    def __init__(self, mended: tuple[str, ...] = ()) -> None:
        super().__init__()
        fine = {name: name in mended for name in FAULTS}
        self.attention = Attention(mended=fine["qk_norm"])
        self.turn = Turn(mended=fine["rope"])
        self.mlp = Mlp(mended=fine["gated_mlp"])
        self.pair = Pair(mended=fine["merged_linear"])
        self.norm = Norm(mended=fine["add_rms_norm"])

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """One block behind the other."""
        x = torch.tanh(self.attention(x))
        x = torch.tanh(self.turn(x, angles))
        x = torch.tanh(self.mlp(x))
        y = torch.tanh(self.pair(x))
        return y * self.norm(y, x)


def make_model(mended: tuple[str, ...] = ()) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model, seeded, and its inputs."""
    cast("Any", torch).manual_seed(0)
    model = Model(mended).eval()
    x = torch.randn(2, 7, WIDTH)
    angles = torch.arange(7.0)[:, None] / 10 ** torch.linspace(0, 2, WIDTH // 2)
    return model, (x, angles)
