"""What a caller can see of memory: whose results are, their strides, arguments that overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import fuseline


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    torch.compiler.reset()
    with torch.no_grad():
        yield


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def copied(x: Tensor) -> Tensor:
    return x.clone()


def twice(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x + 1
    return y, y.clone()


def equal_ones(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.exp(), x.exp()


def made_contiguous(x: Tensor) -> Tensor:
    return (x + 1).t().contiguous()


def swapped(x: Tensor) -> Tensor:
    return (x + 1).t()


def parts(x: Tensor) -> tuple[Tensor, ...]:
    y = x * 2
    return y, y[1:], y.t()


def attended(x: Tensor) -> Tensor:
    q = x.reshape(1, 2, 3, -1)
    return torch.nn.functional.scaled_dot_product_attention(q, q, q)


def repeated(x: Tensor) -> Tensor:
    return x.sum(0).expand(4, -1)


PROGRAMS: tuple[Callable[[Tensor], Any], ...] = (
    copied, twice, equal_ones, made_contiguous, swapped, parts, attended, repeated,
)  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
@pytest.mark.parametrize("dynamic", [False, True])
def test_results_lie_in_memory_as_those_of_eager(program: Any, dynamic: bool) -> None:
    x = numbers(6, 10)
    compiled: Any = fuseline.compile(program, dynamic=dynamic)
    found, expected = compiled(x), program(x)
    found, expected = ((t,) if isinstance(t, Tensor) else t for t in (found, expected))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
        assert one.stride() == other.stride()
    every = [(x, *found), (x, *expected)]
    shared = [[storage(a) == storage(b) for a in group for b in group] for group in every]
    assert shared[0] == shared[1]


def test_a_snapshot_of_a_buffer_does_not_change_with_it() -> None:
    def step(cache: Tensor, x: Tensor) -> Tensor:
        cache[:, 0] = x
        return cache[:, :2].clone()

    compiled: Any = fuseline.compile(step)
    cache, kept = numbers(3, 5), list[Tensor]()
    for seed in (1, 2):
        kept.append(compiled(cache, numbers(3, seed=seed)))
    assert torch.equal(kept[0][:, 0], numbers(3, seed=1))
    assert torch.equal(kept[1][:, 0], numbers(3, seed=2))


def moved_on(k: Tensor) -> None:
    k[:, 1:] = k[:, :-1].clone()


def rolled(k: Tensor) -> None:
    k.copy_(k.roll(-1, 0))


def turned(k: Tensor) -> None:
    k.copy_(k.t().clone())


@pytest.mark.parametrize("program", [moved_on, rolled, turned])
def test_a_buffer_is_written_with_parts_of_itself(program: Callable[[Tensor], None]) -> None:
    compiled: Any = fuseline.compile(program)
    found, expected = numbers(7, 7), numbers(7, 7)
    for _ in range(3):
        compiled(found)
        program(expected)
        assert torch.equal(found, expected)


def test_arguments_that_overlap_only_later() -> None:
    def program(a: Tensor, b: Tensor) -> Tensor:
        a.add_(1)
        return b * 2

    compiled: Any = fuseline.compile(program)
    assert torch.equal(compiled(numbers(4), numbers(4, seed=1)), numbers(4, seed=1) * 2)
    for first, second in ((slice(0, 4), slice(2, 6)), (slice(2, 6), slice(0, 4))):
        mine, theirs = numbers(9), numbers(9)
        found = compiled(mine[first], mine[second])
        assert torch.equal(found, program(theirs[first], theirs[second]))
        assert torch.equal(mine, theirs)
    beside = numbers(9)
    assert torch.equal(compiled(beside[:4], beside[4:8]), numbers(9)[4:8] * 2)


def test_interpreted_programs_write_what_was_there_before() -> None:
    """A program with a type that the IR does not have runs through plain ATen."""

    def program(a: Tensor, b: Tensor, odd: Tensor) -> Tensor:
        a.copy_(b)
        b.zero_()
        return odd.float()

    odd = numbers(3).to(torch.float8_e4m3fn)
    compiled: Any = fuseline.compile(program)
    a, b = numbers(4), numbers(4, seed=1)
    compiled(a, b, odd)
    assert torch.equal(a, numbers(4, seed=1))
    assert not b.any()
    assert any(name.startswith("plain ATen") for name in compiled.report().stats)


def test_a_rotation_whose_result_has_its_heads_apart() -> None:
    """Eager keeps the strides of what is rotated; the kernel writes a head side by side."""

    def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        k = (x * 2).view(2, 3, 8, 5).transpose(2, 3)
        return k * cos + torch.cat((-k[..., 4:], k[..., :4]), -1) * sin

    given = numbers(2, 3, 40), numbers(5, 8, seed=1), numbers(5, 8, seed=2)
    compiled: Any = fuseline.compile(rotated)
    found, expected = compiled(*given), rotated(*given)
    torch.testing.assert_close(found, expected)
    assert found.stride() == expected.stride()


def test_floats_that_vary_in_a_program_that_writes() -> None:
    def program(x: Tensor, buffer: Tensor, scale: float) -> Tensor:
        buffer.copy_(x * scale)
        return buffer + 1

    compiled: Any = cast("Any", torch).compile(program, backend="fuseline", dynamic=True)
    for scale in (0.5, 1.5, 2.5):
        mine, theirs = numbers(4), numbers(4)
        found = compiled(numbers(4, seed=1), mine, scale)
        assert torch.equal(found, program(numbers(4, seed=1), theirs, scale))
        assert torch.equal(mine, theirs)
