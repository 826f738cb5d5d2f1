"""What this machine has for GPUs: the devices, what drives them, and what can be built for them."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fuseline import errors

if TYPE_CHECKING:
    from fuseline.runtime.cache import Cache

ABSENT = "not installed"
DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Gpus:
    """What there is for GPUs; every field is for people, and printed as it is.

    Attributes:
        devices: name, compute capability and memory of each GPU that torch can use.
        about: the driver, the CUDA runtime of torch, Triton, cuda-bindings, and the launcher.
        targets: each target of the option, and whether it can be built and run here.
        auto: what the option ``target="auto"`` takes, by the device of a model's tensors.
        problems: what keeps a GPU that is here from being used.
        launches: whether there is a GPU, and what launches kernels on it.
    """

    devices: Mapping[str, str]
    about: Mapping[str, str]
    targets: Mapping[str, str]
    auto: Mapping[str, str]
    problems: tuple[str, ...]
    launches: bool


def look(cache: Cache, compiler: str) -> Gpus:
    """Look for all of it; nothing is built, and nothing that is wrong raises.

    ``compiler`` is the command of the C++ compiler, empty where there is none.
    """
    from fuseline.runtime.gpu.driver import supported_cuda

    driver = supported_cuda()
    devices, unusable = _devices(driver)
    auto = {"cpu": "cpu", **_targets_of(devices)}
    launcher, launches = _launcher(cache, compiler)
    about = {
        "GPU": unusable or (f"{len(devices)} found" if devices else _none_here()),
        "driver": _driver(driver),
        "CUDA of torch": _cuda_of_torch() or "none: this torch is built for CPUs only",
        "triton": _version("triton"),
        "cuda-bindings": _version("cuda-bindings"),
        "launcher": launcher,
    }
    problems = [unusable] if unusable else []
    if devices and not launches:
        problems.append(f"what launches kernels is {launcher}")
    if devices and about["triton"] == ABSENT:
        problems.append(str(errors.NO_TRITON.diagnostic()))
    if devices and about["cuda-bindings"] == ABSENT:
        problems.append(str(errors.NO_DRIVER.diagnostic(found="no package cuda-bindings")))
    targets = _targets(compiler, set(auto.values()) if devices else {"cpu"})
    return Gpus(devices, about, targets, auto, tuple(problems), bool(devices) and launches)


def _none_here() -> str:
    from fuseline.runtime.gpu.triton_build import has_triton

    able = "can be built here, and not run" if has_triton() else "cannot be built without Triton"
    return f"none: kernels for GPUs {able}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ABSENT


def _cuda_of_torch() -> str:
    import torch

    return torch.version.cuda or ""


def _driver(supports: tuple[int, int] | None) -> str:
    """The version of the display driver, and of the CUDA that it supports."""
    try:
        words = DRIVER.read_text().splitlines()[0].split()
        found = next((word for word in words if word[:1].isdigit() and "." in word), "")
    except (OSError, IndexError):
        found = ""
    if supports is None:
        return f"{found}, which cannot be asked what it supports" if found else "none"
    return f"{found or 'of unknown version'}, for CUDA {supports[0]}.{supports[1]}"


def _devices(driver: tuple[int, int] | None) -> tuple[dict[str, str], str]:
    """The GPUs that torch can use; or why it cannot use those that a driver is there for."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            return {f"cuda:{index}": _device(index) for index in range(count)}, _unusable(
                count, driver, [str(w.message) for w in said]
            )
        except RuntimeError as error:
            return {}, _unusable(0, driver, str(error).splitlines()[:1])


def _device(index: int) -> str:
    import torch

    major, minor = torch.cuda.get_device_capability(index)
    about = cast("Any", torch.cuda).get_device_properties(index)
    gibibytes = about.total_memory / 2**30
    return f"{torch.cuda.get_device_name(index)}, sm_{major}{minor}, {gibibytes:.0f} GiB"


def _unusable(count: int, driver: tuple[int, int] | None, said: list[str]) -> str:
    """Why torch cannot use a driver that is there; empty where it can, or there is none."""
    cuda = _cuda_of_torch()
    if count or driver is None or not cuda:
        return ""
    has = f"{driver[0]}.{driver[1]}"
    if driver < (int(cuda.split(".")[0]), 0):
        wanted = f"one for {cuda} or later, which torch is built with"
        return str(
            errors.NO_DRIVER.diagnostic(
                "that torch can use",
                found=f"one for CUDA {has}",
                expected=wanted,
                hint="update the driver, or install a torch for an older CUDA",
            )
        )
    return said[0] if said else ""


def _targets_of(devices: Mapping[str, str]) -> dict[str, str]:
    """The target that each device would have."""
    import torch

    from fuseline.placing import target_of

    found = {name: target_of(torch.device(name)) for name in devices}
    return {n: str(t) if isinstance(t, errors.Diagnostic) else t.name for n, t in found.items()}


def _targets(compiler: str, run: set[str]) -> dict[str, str]:
    """Each target, and what can be done for it here."""
    from fuseline.codegen.targets import TARGETS
    from fuseline.runtime.gpu.triton_build import has_triton

    found: dict[str, str] = {}
    for name, target in TARGETS.items():
        missing = "a C++ compiler" if target.backend == "cpu" else "Triton"
        able = compiler if target.backend == "cpu" else has_triton()
        does = "can be built and run" if name in run else "can be built, and not run"
        found[name] = does if able else f"cannot be built without {missing}"
    return found


def _launcher(cache: Cache, compiler: str) -> tuple[str, bool]:
    """What launches kernels here comes from, and whether there is something that does."""
    from fuseline.runtime.gpu.kernels import Launcher
    from fuseline.runtime.native import Runner
    from fuseline.runtime.toolchain import toolchains_of_others

    if compiler:
        return f"in the cache, or built by {compiler}", True
    try:
        for toolchain in toolchains_of_others(cache):
            if Runner.is_in(cache, toolchain) and Launcher.is_in(cache, toolchain):
                return "in the cache", True
    except errors.FuselineError as error:
        return str(error.diagnostic), False
    return "not in the cache, and there is no C++ compiler to build it", False
