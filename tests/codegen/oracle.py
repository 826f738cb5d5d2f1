"""The numbers rule for one kernel: no further from the float64 oracle than 1.5 times eager."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import Tensor

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
TOLERANCE = {  # absolute and relative, per element against eager
    torch.float32: (1e-5, 1.3e-6),
    torch.float16: (1e-3, 1e-3),
    torch.bfloat16: (1e-3, 1.6e-2),
}


def seeded(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal numbers of a fixed seed."""
    generator = torch.Generator().manual_seed(seed * 7919 + sum(shape))
    return (torch.randn(*shape, generator=generator) * scale).to(dtype)


def broadcast_masks(dtype: str, queries: int, keys: int) -> Iterator[tuple[str, Tensor]]:
    """Bool and additive masks that broadcast over batch (2), heads (4), queries or keys."""
    generator = torch.Generator().manual_seed(1)
    for shape in (
        (1, 1, queries, keys),
        (2, 1, 1, keys),
        (1, 4, queries, 1),
        (2, 4, queries, keys),
    ):
        yield "bool", torch.rand(shape, generator=generator) < 0.6
        yield dtype, seeded(*shape, dtype=DTYPES[dtype], seed=6)


def distance(value: Tensor, oracle: Tensor) -> float:
    """The norm of the difference over the norm of the oracle."""
    error = (value.double() - oracle.double()).square().sum().sqrt()
    return float(error / oracle.double().square().sum().sqrt().clamp_min(1e-300))


def assert_numbers(got: Tensor, eager: Tensor, oracle: Tensor, *, like_eager: bool = True) -> None:
    """Hold ``got`` to the numbers rule and, with ``like_eager``, to eager element by element."""
    assert got.shape == eager.shape
    assert got.dtype == eager.dtype
    if got.numel() == 0:
        return
    ulp = torch.finfo(got.dtype).eps
    if os.environ.get("FL_TEST_DEVICE") == "cuda":
        ulp *= 4  # eager is the CPU's here, whose sums are of blocks: a thread of a GPU has one
    error, eager_error = distance(got, oracle), distance(eager, oracle)
    assert error <= 1.5 * eager_error + ulp, f"{error} from the oracle, eager {eager_error}"
    if not like_eager:
        return
    atol, rtol = TOLERANCE[got.dtype]
    torch.testing.assert_close(got, eager, atol=atol * max(1, float(oracle.abs().max())), rtol=rtol)
