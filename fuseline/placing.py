"""Where a program runs: the target that it is compiled for, and the device of its tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fuseline import errors
from fuseline.codegen.targets import GPU_TARGETS, SMALLER_AMPERE, TARGETS, Target
from fuseline.frontend.captured import Captured


@dataclass(frozen=True)
class Placed:
    """What a program is compiled for, and where its tensors are."""

    target: Target
    device: torch.device


ON_CPU = Placed(TARGETS["cpu"], torch.device("cpu"))


def place(captured: Captured, wanted: str) -> Placed | str:
    """The target of a program, of which ``auto`` leaves the choice to its tensors; or why it has
    none. For a GPU, tensors on the CPU will do: then it is built there, and cannot run natively.
    """
    devices: dict[torch.device, str] = {}
    for item in captured.inputs:
        if isinstance(item.value, Tensor):
            devices.setdefault(item.value.device, item.name)
    (device, first), *others = [*devices.items()] or [(ON_CPU.device, "")]
    if others:
        return f"{first} is on {device}, {others[0][1]} on {others[0][0]}"
    if device.type not in ("cpu", "cuda"):
        return f"{first} is on {device}; fuseline compiles for the CPU and for NVIDIA GPUs"
    found = target_of(device) if wanted == "auto" else TARGETS[wanted]
    if isinstance(found, errors.Diagnostic):
        return str(found)
    target = found
    if device.type == "cuda" and target.backend == "cpu":
        return f"{first} is on {device}, the target is {target.name}"
    return Placed(target, device)


def target_of(device: torch.device) -> Target | errors.Diagnostic:
    """The target whose binaries a device runs, or what to say where there is none."""
    if device.type == "cpu":
        return TARGETS["cpu"]
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) in ((8, 6), (8, 9)):
        return SMALLER_AMPERE
    name = {8: "sm_80", 9: "sm_90"}.get(major, f"sm_{major}{minor}")
    if name in TARGETS:
        return TARGETS[name]
    known = ", ".join(target.name for target in GPU_TARGETS)
    return errors.UNKNOWN_GPU.diagnostic(
        torch.cuda.get_device_name(device), found=f"sm_{major}{minor}", expected=f"one of {known}"
    )


__all__ = ["ON_CPU", "Placed", "place", "target_of"]
