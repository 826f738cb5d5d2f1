"""Which of an artifact's binaries run here, and which of these is the best."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch

from fuseline import errors
from fuseline.artifact import machine
from fuseline.artifact.archive import Archive
from fuseline.artifact.manifest import Manifest, Target

_GPU = re.compile(r"sm_([0-9]+)([0-9])")


@dataclass(frozen=True)
class Choice:
    """What is run, where.

    Attributes:
        target: of the artifact.
        device: of the program's memory.
        ptx: whether the driver has to compile PTX, as there is no binary for this GPU.
    """

    target: Target
    device: torch.device
    ptx: bool = False

    def __str__(self) -> str:
        made = ", from PTX" if self.ptx else ""
        return f"{self.target.title} on {self.device}{made}"


def choose(
    archive: Archive, manifest: Manifest, wanted: str, device: torch.device | None
) -> Choice:
    """The best that runs here: on a GPU where there is one, unless something else is asked for.

    Args:
        archive: for messages.
        manifest: of it.
        wanted: ``auto``, or the name of a target, with its instruction set or without.
        device: where to run; None where that is left open.

    Raises:
        ArtifactError: FL1105, if nothing runs here.

    """
    named = [t for t in manifest.targets if wanted in ("auto", t.name, t.title)]
    refusals: list[str] = []
    if any(_GPU.fullmatch(t.name) for t in named) and not torch.cuda.is_available():
        refusals.append("torch sees no GPU")
    if device is None or device.type == "cuda":
        found = _for_gpu(named, device, refusals)
        if found is not None:
            return found
    if device is None or device.type == "cpu":
        reasons = {t.title: _lacking(t) for t in named if t.name == "cpu"}
        refusals += filter(None, reasons.values())
        able = [t for t in named if reasons.get(t.title) == ""]
        if able:
            best = max(able, key=lambda target: len(target.features))
            return Choice(best, torch.device("cpu"))
    has = ", ".join(t.title for t in manifest.targets)
    found_here = f"binaries for {has}"
    if wanted != "auto" and not named:
        found_here += f", none for {wanted}"
    if refusals:
        found_here += f" ({'; '.join(dict.fromkeys(refusals))})"
    raise errors.NO_BINARY.error(
        str(archive.path), found=found_here, expected=f"one for {_here(device)}"
    )


def _lacking(target: Target) -> str:
    """Why code for a CPU does not run here; empty where it does."""
    if target.machine != machine.machine():
        return f"{target.title} is for {target.machine}"
    missing = set(target.features) - machine.features()
    return f"{target.title} needs {', '.join(sorted(missing))}" if missing else ""


def _for_gpu(
    targets: list[Target], device: torch.device | None, refusals: list[str]
) -> Choice | None:
    """The best for the GPU at hand: code of its generation, else PTX of an earlier one."""
    if not torch.cuda.is_available():
        return None
    where = torch.device("cuda", 0 if device is None else device.index or 0)
    major, minor = torch.cuda.get_device_capability(where)
    fitting = list(_able(targets, major, minor))
    reasons = [_too_large(target, where) for _, _, target in fitting]
    refusals += filter(None, reasons)
    able = [each for each, reason in zip(fitting, reasons, strict=True) if not reason]
    if not able:
        refusals.append(f"the GPU is of sm_{major}{minor}")
        return None
    ptx, _, target = min(able, key=lambda each: (each[0], -each[1]))
    return Choice(target, where, ptx)


def _able(targets: list[Target], major: int, minor: int) -> Iterator[tuple[bool, int, Target]]:
    """Whether from PTX, the generation, and the target, of those that a GPU runs."""
    for target in targets:
        found = _GPU.fullmatch(target.name)
        if found is None:
            continue
        own = int(found.group(1)), int(found.group(2))
        here = major, minor
        later = own[0] == 8  # code for later generations has features of just one processor
        binary = all(k.cubin for k in target.kernels.values())
        if binary and (own == here or (later and own[0] == major and own[1] <= minor)):
            yield False, 10 * own[0] + own[1], target
        elif (own == here or (later and own <= here)) and all(
            k.ptx for k in target.kernels.values()
        ):
            yield True, 10 * own[0] + own[1], target


def _too_large(target: Target, device: torch.device) -> str:
    """Why a device of less memory in its processors cannot run the kernels; empty where it can."""
    properties = cast("Any", torch.cuda).get_device_properties(device)
    most: int = getattr(properties, "shared_memory_per_block_optin", 0)
    for symbol, kernel in target.kernels.items():
        if most and kernel.shared_memory > most:
            return (
                f"{symbol} of {target.name} needs {kernel.shared_memory} bytes shared, not {most}"
            )
    return ""


def _here(device: torch.device | None) -> str:
    """The machine at hand, in words."""
    if device is not None and device.type == "cuda" and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability(device)
        return f"sm_{major}{minor}"
    return f"{machine.machine()} with {' '.join(sorted(machine.features() & _SHOWN)) or 'nothing'}"


_SHOWN = {"avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16"}

__all__ = ["Choice", "choose"]
