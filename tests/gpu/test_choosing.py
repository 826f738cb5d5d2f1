"""Measuring on a GPU: the timer by itself, and programs whose kernels were chosen by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import fuseline
from fuseline.choose.cuda_timer import CudaTimer, cache_bytes
from fuseline.choose.decision import FILE
from fuseline.choose.timing import Budget, fastest, measure
from fuseline.report import Choice, Report

MB = 1 << 20


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def timer() -> CudaTimer:
    return CudaTimer(device())


def copy_of(nbytes: int) -> Callable[[], object]:
    source = torch.ones(nbytes // 4, device="cuda")
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def test_more_bytes_take_longer() -> None:
    ways = {f"{n}": copy_of(n * MB) for n in (512, 128, 256)}
    found = measure(timer(), ways, Budget(60.0))
    assert found is not None
    assert fastest(found) == "128"
    small, large = (found[name].median for name in ("128", "512"))
    assert large > 2 * small
    assert 2 * 128 * MB / small < 20e12, "no device moves more than 20 TB/s"


def test_every_sample_finds_a_cold_cache() -> None:
    """What fits the cache would be read from it, in a fraction of the time, after one sample."""
    run = copy_of(cache_bytes(device()) // 4)
    sample = timer().prepare(run)
    cold = sorted(sample() for _ in range(9))[4]
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):
        run()
    begin.record()
    for _ in range(50):
        run()
    end.record()
    end.synchronize()
    assert cold > begin.elapsed_time(end) * 1e-3 / 50


def test_what_cannot_be_recorded_is_not_offered() -> None:
    x, shared = torch.ones(1 << 20, device="cuda"), timer()
    with pytest.raises(RuntimeError, match="not recordable"):
        shared.prepare(lambda: x.sum().item())
    assert shared.prepare(copy_of(MB))() > 0


def test_timing_leaves_no_capture_behind() -> None:
    timer().prepare(copy_of(MB))()
    assert not torch.cuda.is_current_stream_capturing()


def step(x: Tensor, weight: Tensor, cache: Tensor, at: Tensor) -> Tensor:
    y = torch.nn.functional.rms_norm(x, weight.shape, weight)
    cache.index_copy_(0, at, y)
    return torch.nn.functional.silu(y) + cache.sum(0)


def arguments() -> list[Tensor]:
    numbers = torch.Generator().manual_seed(3)
    x, weight = torch.randn(4, 512, generator=numbers), torch.rand(512, generator=numbers)
    return [t.cuda() for t in (x, weight + 0.5, torch.zeros(16, 512), torch.tensor([3, 0, 7, 15]))]


def choices(report: Report) -> list[Choice]:
    return [choice for kernel in report.kernels for choice in kernel.choices]


def compiled(folder: Path, **options: object) -> tuple[Tensor, Tensor, Report]:
    """Result, state and report of one call of a program that is compiled anew."""
    torch.compiler.reset()
    config = fuseline.Config.of({"cache_dir": folder, "reuse": False, **options})
    function = fuseline.compile(step, config=config)
    given = arguments()
    with torch.no_grad():
        y = function(*given)
    return y, given[2], cast("Any", function).report()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.mark.parametrize("tune", ["off", "auto", "full"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_tuned_program_gives_what_eager_gives(tune: str, dynamic: bool, folder: Path) -> None:
    y, state, report = compiled(folder, tune=tune, dynamic=dynamic)
    plain = arguments()
    with torch.no_grad():
        torch.testing.assert_close(y, step(*plain))
    torch.testing.assert_close(state, plain[2])
    by = {choice.by for choice in choices(report) if len(choice.options) > 1}
    assert by <= ({"model"} if tune == "off" else {"measurement", "model"})
    if tune == "full":
        assert by == {"measurement"}, [c.note for c in choices(report)]


def test_measuring_touches_nothing_of_the_users(folder: Path) -> None:
    """State is written by the call alone: once, and only where it says."""
    _, state, _ = compiled(folder, tune="full")
    untouched = [row for row in range(16) if row not in (3, 0, 7, 15)]
    assert not state[untouched].any()


def test_a_second_compilation_measures_nothing(folder: Path) -> None:
    _, _, first = compiled(folder, tune="full")
    _, _, second = compiled(folder, tune="full")
    assert {c.by for c in choices(second)} == {"table"}
    assert [c.chosen for c in choices(first)] == [c.chosen for c in choices(second)]
    read = [json.loads(file.read_text()) for file in folder.glob(f"**/{FILE}")]
    assert read
    assert all(o["microseconds"] or o["note"] for each in read for o in each["options"])


def test_plain_torch_is_among_what_was_timed(folder: Path) -> None:
    _, _, report = compiled(folder, tune="full")
    labels = {o.label for choice in choices(report) for o in choice.options}
    assert "plain torch" in labels
