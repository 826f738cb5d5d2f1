"""Code that looks like a known pattern and is not one, and odd spellings: eager's numbers.

Each program is compiled as a user would, and held to eager and to the float64 oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseline
from fuseline.debug.oracle import oracle, relative_error


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    torch.compiler.reset()
    with torch.no_grad():
        yield


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def check(program: Callable[..., Any], *args: Any, dynamic: bool | None = None) -> Any:
    """The compiled program, after its result was compared with eager's."""
    compiled: Any = fuseline.compile(program, dynamic=dynamic, verify=True)
    found, eager = compiled(*args), program(*args)
    assert found.shape == eager.shape
    assert found.dtype == eager.dtype
    if not eager.is_floating_point():
        assert torch.equal(found, eager)
        return compiled
    exact = oracle(program, *args)
    error, eagers = relative_error(found, exact), relative_error(eager, exact)
    assert error <= 1.5 * eagers + torch.finfo(eager.dtype).eps
    return compiled


# -- views ----------------------------------------------------------------------------------


def last_columns(x: Tensor, n: int) -> Tensor:
    return x[:, -n:] + 1


def one_column(x: Tensor, n: int) -> Tensor:
    return x[:, -n] + 1


def from_before_the_start(x: Tensor) -> Tensor:
    return x[-7:-2] + 1


@pytest.mark.parametrize("program", [last_columns, one_column])
def test_places_counted_from_the_end_by_a_variable(program: Any) -> None:
    compiled = check(program, numbers(3, 9), 3, dynamic=True)
    for width, n in ((9, 4), (11, 2)):
        assert torch.equal(compiled(numbers(3, width), n), program(numbers(3, width), n))


def test_a_slice_that_starts_before_the_tensor() -> None:
    check(from_before_the_start, numbers(5, 3))
    check(from_before_the_start, numbers(6, 3), dynamic=True)


def overwritten_in_part(x: Tensor) -> Tensor:
    out = torch.empty(6, 4)
    out[2:4], out[4:6], out[0:4], out[0:2] = x[0:2], x[2:4], x[1:5], x[3:5]
    return out


def test_slices_that_are_overwritten_in_part() -> None:
    check(overwritten_in_part, numbers(6, 4))


# -- norms and rotations --------------------------------------------------------------------


def heads_in_the_batch(x: Tensor, w: Tensor) -> Tensor:
    def fold(t: Tensor) -> Tensor:
        return F.rms_norm(t, (16,), w, 1e-6).transpose(1, 2).reshape(2, 2, 4, 16)

    q, k = fold(x), fold(x.flip(1))
    return F.scaled_dot_product_attention(q, k, x.transpose(1, 2).reshape(2, 2, 4, 16))


def test_heads_that_are_folded_into_the_batch() -> None:
    check(heads_in_the_batch, numbers(1, 4, 4, 16), 1 + numbers(16) / 10)


def interleaved_with_halves_of_tables(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x1, x2 = x[..., ::2], x[..., 1::2]
    (c1, c2), (s1, s2) = cos.chunk(2, -1), sin.chunk(2, -1)
    return torch.stack([x1 * c1 - x2 * s1, x2 * c2 + x1 * s2], -1).flatten(-2)


@pytest.mark.parametrize("doubled", [False, True])
def test_an_interleaved_rotation_by_halves_of_tables(doubled: bool) -> None:
    cos, sin = numbers(5, 12, seed=1), numbers(5, 12, seed=2)
    if doubled:
        cos, sin = (torch.cat((t[:, :6], t[:, :6]), -1) for t in (cos, sin))
    check(interleaved_with_halves_of_tables, numbers(2, 5, 12), cos, sin)


def rotated_in_float64(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide, c, s = x.double(), cos.double(), sin.double()
    half = torch.cat((-wide[..., 4:], wide[..., :4]), -1)
    return (wide * c + half * s).float()


def test_a_rotation_in_float64_stays_one() -> None:
    check(rotated_in_float64, numbers(2, 5, 8), numbers(5, 8, seed=1), numbers(5, 8, seed=2))


def centred_by_column(x: Tensor) -> Tensor:
    c = x - x.mean(-1)
    return c * torch.rsqrt(c.pow(2).mean(-1, keepdim=True) + 1e-5)


def test_a_mean_that_broadcasts_along_columns() -> None:
    compiled = check(centred_by_column, numbers(8, 8))
    assert compiled.report().count("layer_norm") == 0


# -- masks ----------------------------------------------------------------------------------


def filled(scores: Tensor, visible: Tensor, v: Tensor, fill: float) -> Tensor:
    q = scores.unsqueeze(0).unsqueeze(0)
    s = (q @ q.transpose(-1, -2)).masked_fill(~visible, fill)
    return s.softmax(-1) @ v


@pytest.mark.parametrize("fill", [-1e5, torch.finfo(torch.float32).min, float("-inf")])
def test_rows_without_a_visible_key(fill: float) -> None:
    visible = numbers(7, 7, seed=3) > 0
    visible[3] = fill == float("-inf")  # else a row that sees nothing

    def program(x: Tensor, m: Tensor, v: Tensor) -> Tensor:
        return filled(x, m, v, fill)

    check(program, numbers(7, 4), visible, numbers(1, 1, 7, 4))


def up_to_the_first(q: Tensor, k: Tensor, pos: Tensor) -> Tensor:
    mask = torch.arange(k.shape[2])[None] <= pos[0] + 3
    return F.scaled_dot_product_attention(q, k, k, attn_mask=mask)


def test_a_position_out_of_several() -> None:
    check(up_to_the_first, numbers(1, 2, 1, 8), numbers(1, 2, 9, 8), torch.arange(2, 7))


def padded(x: Tensor) -> Tensor:
    y = F.pad(x, (0, 0, 0, -x.shape[2] % 8))
    return F.scaled_dot_product_attention(y, y, y)


def test_a_length_that_is_rounded_up() -> None:
    compiled = check(padded, numbers(1, 2, 11, 8), dynamic=True)
    x = numbers(1, 2, 21, 8)
    torch.testing.assert_close(compiled(x), padded(x))


# -- arithmetic -----------------------------------------------------------------------------


def plus_negative(a: Tensor, b: Tensor) -> Tensor:
    return a + (-b)


def minus_negative(a: Tensor, b: Tensor) -> Tensor:
    return a - (-b)


def size_of_negative(a: Tensor, b: Tensor) -> Tensor:
    return a + (-b).abs()


@pytest.mark.parametrize("program", [plus_negative, minus_negative, size_of_negative])
def test_negatives_of_bytes_wrap_around(program: Any) -> None:
    for b in (torch.arange(1, 6, dtype=torch.uint8), torch.full((5,), -128, dtype=torch.int8)):
        check(program, torch.arange(5), b)


def test_constants_are_rounded_before_they_are_joined() -> None:
    def program(x: Tensor) -> Tensor:
        both = torch.cat([torch.full((2,), 0.1, dtype=torch.bfloat16), torch.full((2,), 0.1)])
        return x * both

    check(program, numbers(4))


@pytest.mark.parametrize("bounds", [(), (-1, 1), (-2, 1), (-1, 3)])
def test_hardtanh(bounds: tuple[int, ...]) -> None:
    given: Any = bounds
    check(nn.Hardtanh(*given), numbers(50) * 4)


def test_a_complex_number_of_python() -> None:
    def program(angles: Tensor) -> Tensor:
        return torch.view_as_real(torch.exp(1j * angles))

    check(program, numbers(4, 3))


# -- gated MLPs -----------------------------------------------------------------------------


class OneGate(nn.Module):
    """One gate for all columns."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 1), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class GateLast(nn.Module):
    """Gate and up out of one product, the gate behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.down = nn.Linear(8, 24), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        h, g = self.proj(x).chunk(2, -1)
        return self.down(h * F.gelu(g))


@pytest.mark.parametrize("kind", [OneGate, GateLast])
def test_unusual_gates(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    check(kind().eval(), numbers(3, 5, 8))


def test_a_gate_behind_the_other_half_costs_no_second_product() -> None:
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    compiled = check(GateLast().eval(), numbers(3, 5, 8))
    products = [k for k in compiled.report().kernels if k.family.startswith("linear")]
    assert sum(k.launches for k in products) == 2


def test_rows_that_repeat_in_a_product() -> None:
    """More rows than the library's threshold, all of them one row in memory."""
    weight = numbers(33, 24)

    def program(q: Tensor) -> Tensor:
        return F.linear(q.expand(256, 24), weight)

    check(program, numbers(1, 24))


def test_products_that_cancel() -> None:
    def program(a: Tensor, b: Tensor) -> Tensor:
        return torch.sqrt(a * a - b * b)

    a = torch.linspace(0.1, 7, 999)
    compiled: Any = fuseline.compile(program)
    assert torch.equal(compiled(a, a.clone()), torch.zeros(999))
