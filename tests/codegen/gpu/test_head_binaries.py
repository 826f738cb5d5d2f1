"""The kernels of heads at the sizes of released models: machine code for every target."""

from __future__ import annotations

from typing import cast

import pytest

from fuseline.codegen.gpu.qk_norm_rope import Heads
from fuseline.codegen.lower import emit
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.ir.types import substitute
from fuseline.runtime.cache import Cache
from tests.codegen.gpu.harness import binaries, in_language
from tests.codegen.gpu.head_models import RELEASED

FAST = ("Qwen3-8B", "OLMo2-7B", "DeepSeek-V3")
"""The others take as long again, and show the same."""


@pytest.mark.parametrize(
    "model", [pytest.param(m, marks=[] if m in FAST else pytest.mark.slow) for m in RELEASED]
)
def test_binaries_move_16_bytes_at_once_and_do_not_spill(model: str, binary_cache: Cache) -> None:
    found = binaries(RELEASED[model], binary_cache)
    assert found
    for target, made in found:
        resources = made.binary.resources
        position = 64 if cast("Heads", made.launch.kernel).cached else 128
        assert resources["widest_load"] == 128, target.name
        assert resources["narrowest_load"] == position, target.name
        assert resources["narrowest_store"] == 128, target.name
        assert made.resident >= 0.33, target.name


def blocks(model: str, batch: int, tokens: int) -> int:
    """Blocks of the launch that runs for so many tokens."""
    func = parse_func(RELEASED[model])
    (step,) = emit(func, LayoutMap(func), "cuda")
    binding = {"B": batch, "S": tokens}
    found: list[int] = []
    for each in step.launches:
        launch = in_language(each)
        value, low, high = launch.when or (0, 0, None)
        if low <= substitute(value, binding) and (
            high is None or substitute(value, binding) <= high
        ):
            found.append(substitute(launch.grid[0], binding))
    (count,) = found
    return count


def test_blocks_by_the_number_of_tokens() -> None:
    """A token of Qwen3-8B is 48 rows, four to a warp; one of OLMo2 a block for each of q and k."""
    assert blocks("Qwen3-8B", 1, 0) == 0
    assert blocks("Qwen3-8B", 1, 1) == 12
    assert blocks("Qwen3-8B", 16, 1) == 192
    assert blocks("Qwen3-8B", 1, 8192) == 8192 * 48 // 16
    assert blocks("OLMo2-7B", 1, 1) == 1 + 1 + 1
    assert blocks("DeepSeek-V3", 128, 1) == 32 + 4 + 128
