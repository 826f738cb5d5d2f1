"""Which kernel does which number of tokens."""

from __future__ import annotations

import pytest

from fuseline.codegen.cpu.linear import LinearLargeKernel, LinearSmallKernel
from fuseline.codegen.cpu.linear_choice import Choice, choose_linear, even_block, most_streamed
from tests.codegen.cpu.harness import build
from tests.codegen.cpu.linear_cases import Case, check, run


def ranges(low: int = 1, high: int | None = None) -> list[tuple[int, int | None, type]]:
    choices = choose_linear(k=1024, outputs=(64,), dtype="bf16", min_tokens=low, max_tokens=high)
    return [(first, last, type(kernel)) for first, last, kernel in choices]


def test_ranges_cover_every_number_of_tokens_once() -> None:
    assert ranges() == [
        (1, 1, LinearSmallKernel),
        (2, 32, LinearSmallKernel),
        (33, None, LinearLargeKernel),
    ]
    assert ranges(0, 20) == [
        (1, 1, LinearSmallKernel),
        (2, 20, LinearSmallKernel),
    ]
    assert ranges(100, 200) == [(100, 200, LinearLargeKernel)]
    assert ranges(1, 0) == [(1, 1, LinearSmallKernel)]


@pytest.mark.parametrize(("tokens", "sizes"), [(1, (1,)), (2, (2,)), (8, (4,)), (5, (2, 3))])
def test_a_fixed_number_of_tokens_builds_only_its_panels(
    tokens: int, sizes: tuple[int, ...]
) -> None:
    (choice,) = choose_linear(
        k=64, outputs=(64,), dtype="f32", min_tokens=tokens, max_tokens=tokens
    )
    assert choice.kernel.panel_sizes == sizes


def test_many_tokens_share_one_kernel_whatever_the_range() -> None:
    def last(low: int, high: int | None) -> Choice:
        return choose_linear(k=64, outputs=(64,), dtype="f32", min_tokens=low, max_tokens=high)[-1]

    assert last(1, None).kernel == last(128, 128).kernel
    assert last(128, 128).kernel.symbol == last(40, 4096).kernel.symbol


def test_wide_x_is_grouped_earlier() -> None:
    assert most_streamed(576) == 32
    assert most_streamed(3072) == 21
    assert most_streamed(50000) == 8


@pytest.mark.parametrize("k", [1, 31, 576, 1024, 1025, 3072, 12288])
def test_blocks_of_k_are_even(k: int) -> None:
    block = even_block(k, 1024)
    assert block % 32 == 0
    assert block <= 1024
    assert -(-k // block) == -(-k // 1024)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_every_choice_is_right_at_the_ends_of_its_range(dtype: str) -> None:
    choices = choose_linear(k=1100, outputs=(70, 30), dtype=dtype, bias=True, residual=True)
    for first, last, kernel in choices:
        built = build(kernel)
        for tokens in {first, first + 1 if last is None else last, 260 if last is None else first}:
            case = Case.make(kernel, tokens)
            check(kernel, case, run(kernel, case, built=built, nth=2))


def test_what_no_kernel_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="no linear kernel for i8"):
        choose_linear(k=8, outputs=(8,), dtype="i8")
