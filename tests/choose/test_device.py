"""The GPU at hand as a bench: what it is opened with, on a device that is not there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from fuseline import errors
from fuseline.choose import device as device_module
from fuseline.choose.device import DeviceBench, open_tuner, versions_of
from fuseline.choose.tuner import Tuner
from fuseline.codegen.targets import TARGETS
from fuseline.config import Tune
from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu import cuda_build

H100 = TARGETS["sm_90"]


@dataclass
class Opened:
    """What a bench was made with."""

    branches: list[bool] = field(default_factory=list[bool])
    early: list[bool] = field(default_factory=list[bool])

    def kernels(self, *given: Any, branches: bool, early: bool) -> object:
        assert given[-1] == "sm_90"
        self.branches.append(branches)
        self.early.append(early)
        return object()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """A device by name alone."""

    def capability(_: object) -> tuple[int, int]:
        return 9, 0

    def name(_: object) -> str:
        return "NVIDIA Fake"

    def nothing(*_: object) -> None:
        return None

    found = Opened()
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", name)
    for each in ("Launcher", "Runner"):
        monkeypatch.setattr(getattr(device_module, each), "open", nothing)
    monkeypatch.setattr(device_module, "CudaTimer", nothing)
    monkeypatch.setattr(device_module, "DeviceKernels", found.kernels)
    return found


def tuner_of(folder: Path, tune: Tune = "auto", *, side_stream: bool = True) -> Tuner:
    toolchain, device = cast("Any", object()), torch.device("cuda", 0)
    cache = Cache(folder)
    launching = {"side_stream": side_stream, "early_launch": not side_stream}
    found = open_tuner(cache, toolchain, H100, device, tune, measure=True, launching=launching)
    assert found is not None
    return found


@pytest.mark.parametrize("side_stream", [False, True])
def test_branches_are_timed_as_the_program_runs_them(
    side_stream: bool, opened: Opened, tmp_path: Path
) -> None:
    bench = tuner_of(tmp_path, side_stream=side_stream).bench
    assert isinstance(bench, DeviceBench)
    bench.kernels({})
    assert opened.branches == [side_stream]
    assert opened.early == [not side_stream]


def test_the_key_tells_both_compilers_and_the_side_stream(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del opened
    found = [tuner_of(tmp_path, side_stream=on).table.versions for on in (False, True)]
    assert found[0] != found[1]
    keys: list[str] = []
    for state in ((object(), "12.8"), (object(), "13.0"), (None, "no package cuda-bindings")):
        monkeypatch.setattr(cuda_build, "_nvrtc", lambda state=state: state)
        keys.append(versions_of("9.0", {"side_stream": True})["nvrtc"])
    assert keys == ["nvrtc 12.8", "nvrtc 13.0", "none"]


def test_full_measures_all_without_an_end(opened: Opened, tmp_path: Path) -> None:
    del opened
    auto, full = tuner_of(tmp_path), tuner_of(tmp_path, "full")
    assert (full.most, full.budget.seconds) == (None, None)
    assert auto.most is not None
    assert auto.budget.seconds is not None


def test_without_a_launcher_the_choice_says_why(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del opened

    def fail(*_: object) -> None:
        raise errors.NO_NVRTC.error("a kernel")

    monkeypatch.setattr(device_module.Launcher, "open", fail)
    tuner = tuner_of(tmp_path)
    assert tuner.bench is None
    assert errors.NO_NVRTC.title in tuner.idle
