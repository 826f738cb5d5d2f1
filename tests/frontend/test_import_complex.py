"""Complex tensors inside a program are imported as pairs of real ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.frontend.helpers import calls, randn, record


def turn(x: Tensor, angles: Tensor) -> Tensor:
    """As llama4 and deepseek_v2 rotate queries and keys."""
    turns = torch.polar(torch.ones_like(angles), angles) * 0.5
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns[:, None]).flatten(-2).type_as(x)


def back(x: Tensor, angles: Tensor) -> Tensor:
    turns = torch.complex(angles.cos(), angles.sin())[:, None]
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    turned = pairs * turns.conj()
    return torch.cat([turned.real, turned.imag], -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("program", [turn, back])
def test_rotation(program: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> None:
    run, recording = record(program)
    for count in (5, 3):
        x, angles = randn(count, 4, 6, dtype=dtype), randn(count, 3)
        want = program(x, angles)
        # torch rounds a complex product once, where float32 and the model's type round further
        tolerance = 2e-6 if want.dtype == torch.float32 else 8e-3
        torch.testing.assert_close(run(x, angles), want, atol=tolerance, rtol=tolerance)
    assert recording.funcs, "the program was imported"
    assert not [c for func in recording.funcs for c in calls(func)]


def test_other_complex_calls_run_as_they_are() -> None:
    def spectrum(x: Tensor) -> Tensor:
        return torch.complex(x, x).log().real

    run, recording = record(spectrum)
    x = randn(3, 8)
    torch.testing.assert_close(run(x), spectrum(x))
    assert not recording.funcs
