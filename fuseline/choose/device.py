"""The GPU at hand as a place to measure on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch

from fuseline import _version, errors
from fuseline.choose.cases import Case
from fuseline.choose.cuda_timer import CudaTimer
from fuseline.choose.decision import Table
from fuseline.choose.timing import Budget, Run, Timer
from fuseline.choose.trial import Trial
from fuseline.choose.tuner import Tuner, Way
from fuseline.codegen.targets import Target
from fuseline.config import Tune
from fuseline.ir.layout import LayoutMap
from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu import cuda_build, triton_build
from fuseline.runtime.gpu.binary import Binary
from fuseline.runtime.gpu.kernels import DeviceKernels, Launcher
from fuseline.runtime.graphs.recorder import first_line
from fuseline.runtime.kernels import Kernels
from fuseline.runtime.native import Runner
from fuseline.runtime.toolchain import Toolchain

log = logging.getLogger(__name__)

AUTO_SECONDS = 10.0
"""Seconds that measuring may take for one program, with ``tune="auto"``."""

ROOM = 0.25
"""The share of free memory that operands may take."""


class DeviceBench:
    """A `Bench` on one device.

    Args:
        device: with its number.
        timer: times work there.
        runner: runs plans.
        kernels: makes binaries, by symbol, launchable there.

    """

    def __init__(
        self,
        device: torch.device,
        timer: Timer,
        runner: Runner | None,
        kernels: Callable[[Mapping[str, Binary]], Kernels],
    ) -> None:
        self.device, self._timer, self._runner, self.kernels = device, timer, runner, kernels

    @property
    def timer(self) -> Timer:
        """As `Bench.timer`."""
        return self._timer

    def room(self) -> int:
        """As `Bench.room`."""
        free, _ = torch.cuda.mem_get_info(self.device)
        return int(ROOM * free)

    def nbytes(self, case: Case, layouts: LayoutMap, values: Mapping[str, int]) -> int:
        """As `Bench.nbytes`."""
        return Trial(case.item.op, layouts, values, self.device).nbytes

    def runs(
        self, case: Case, layouts: LayoutMap, values: Mapping[str, int], ways: Sequence[Way]
    ) -> dict[str, Run]:
        """As `Bench.runs`."""
        trial = Trial(case.item.op, layouts, values, self.device)
        trial.allocate()
        return {way.label: self._run(trial, way) for way in ways}

    def _run(self, trial: Trial, way: Way) -> Run:
        binaries = {made.binary.symbol: made.binary for made in way.kernels.values()}
        return trial.runnable(way.launches, self.kernels(binaries), self._runner)


def versions_of(capability: str, launching: Mapping[str, bool]) -> dict[str, str]:
    """What times depend on beside the device's name, for the key of a decision."""
    options = {name: "yes" if value else "no" for name, value in launching.items()}
    return {
        "fuseline": _version.__version__,
        "torch": torch.__version__,
        "compiler": triton_build.identity(),
        "nvrtc": cuda_build.identity() if cuda_build.has_nvrtc() else "none",
        "capability": capability,
        **options,
    }


def open_tuner(
    cache: Cache,
    toolchain: Toolchain | None,
    target: Target,
    device: torch.device,
    tune: Tune,
    *,
    measure: bool,
    launching: Mapping[str, bool],
) -> Tuner | None:
    """What measures on a device; None where nothing is to be measured, or can be.

    Without ``measure``, what was measured earlier is used, and nothing else. ``launching`` has the
    options by which the program's kernels will be launched.
    """
    if device.type != "cuda" or tune == "off":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    table = Table(cache, name, versions_of(f"{major}.{minor}", launching))
    if not measure:
        return Tuner(table, None, Budget())
    if toolchain is None:
        return Tuner(table, None, Budget(), idle="there is no compiler for what launches kernels")
    try:
        launcher, runner = Launcher.open(cache, toolchain), Runner.open(cache, toolchain)
    except errors.FuselineError as error:
        log.warning("nothing can be measured: %s", error)
        return Tuner(table, None, Budget(), idle=first_line(error))
    bench = DeviceBench(
        device,
        CudaTimer(device),
        runner,
        lambda binaries: DeviceKernels(
            *(binaries, launcher, device, target.name),
            branches=launching.get("side_stream", True),
            early=launching.get("early_launch", True),
        ),
    )
    if tune == "full":
        return Tuner(table, bench, Budget(), most=None)
    return Tuner(table, bench, Budget(AUTO_SECONDS))


__all__ = ["AUTO_SECONDS", "DeviceBench", "Tune", "open_tuner", "versions_of"]
