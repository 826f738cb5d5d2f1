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


def by_table(x: Tensor, turns: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns[:, None]).flatten(-2).type_as(x)


def table(count: int) -> Tensor:
    angles = randn(count, 3)
    return torch.polar(torch.ones_like(angles), angles)


def test_complex_inputs_come_as_their_real_views() -> None:
    run, recording = record(by_table)
    for count in (5, 3):
        x, turns = randn(count, 4, 6), table(2 * count)[::2]
        torch.testing.assert_close(run(x, turns), by_table(x, turns), atol=2e-6, rtol=2e-6)
    assert recording.funcs
    assert all("f32[" in str(func.args[-1].type) for func in recording.funcs)
    assert not [c for func in recording.funcs for c in calls(func)]


def whole(turns: Tensor) -> Tensor:
    return turns


def part(turns: Tensor) -> Tensor:
    return turns[1:]


@pytest.mark.parametrize("seen", [whole, part, torch.view_as_real])
def test_complex_inputs_that_are_returned(seen: Callable[[Tensor], Tensor]) -> None:
    """They are the caller's own; views of them are no business of compiled code."""

    def program(x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
        return by_table(x, turns), seen(turns)

    run, _ = record(program)
    x, turns = randn(5, 4, 6), table(6)[1:]
    (got, own), (want, other) = run(x, turns), program(x, turns)
    torch.testing.assert_close(got, want, atol=2e-6, rtol=2e-6)
    assert (own.dtype, own.data_ptr()) == (other.dtype, other.data_ptr())
    assert torch.equal(own, other)


def test_a_view_of_other_elements_is_returned_as_such() -> None:
    run, _ = record(torch.view_as_complex)
    x = randn(4, 2)
    assert torch.equal(run(x), torch.view_as_complex(x))
    assert run(x).data_ptr() == x.data_ptr()


def test_complex_inputs_that_are_written() -> None:
    def program(x: Tensor, turns: Tensor) -> Tensor:
        turns[1:].mul_(0.5)
        return by_table(x, turns)

    run, _ = record(program)
    x, turns, same = randn(5, 4, 6), table(5), table(5)
    torch.testing.assert_close(run(x, turns), program(x, same), atol=2e-6, rtol=2e-6)
    assert torch.equal(turns, same)


def test_conjugated_inputs_run_as_they_are() -> None:
    run, recording = record(by_table)
    x, turns = randn(5, 4, 6), table(5).conj()
    torch.testing.assert_close(run(x, turns), by_table(x, turns))
    assert not recording.funcs


def test_negated_inputs_run_as_they_are() -> None:
    """Their memory holds the opposite of what they are."""

    def twice(x: Tensor) -> Tensor:
        return x * 2

    run, recording = record(twice)
    x = torch.randn(5, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    torch.testing.assert_close(run(x), x * 2)
    assert not recording.funcs


def test_a_table_that_is_assigned_again_is_the_callers_own() -> None:
    """As the reference code of Llama moves its table to the device of the input, in every call."""

    class Moved(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turns = table(8)[2:]

        def forward(self, x: Tensor) -> Tensor:
            self.turns = self.turns.to(x.device)
            return by_table(x, self.turns[: x.shape[0]])

    model = Moved()
    before = model.turns
    run, recording = record(model)
    for count in (5, 3):
        x = randn(count, 4, 6)
        torch.testing.assert_close(run(x), by_table(x, before[:count]), atol=2e-6, rtol=2e-6)
        assert (model.turns.data_ptr(), model.turns.dtype) == (before.data_ptr(), before.dtype)
        assert torch.equal(model.turns, before)
    assert recording.funcs
