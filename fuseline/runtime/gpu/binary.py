"""What a cubin needs of the device, read from its machine code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuseline.runtime.cache import Entry

Tool = Callable[..., str]

_ACCESS = re.compile(r"\b(LDG|STG)(?:STS)?((?:\.[A-Z0-9]+)*)")
_SPILL = re.compile(r"\b(LDL|STL)\b")
_WIDTHS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}


def inspect(cubin: Path, cuobjdump: Tool, nvdisasm: Tool) -> dict[str, int]:
    """Registers, stack, static shared memory, spills and widest accesses of a cubin's kernel.

    Sizes are in bytes, accesses in bits; ``spills`` counts instructions that go to local memory.
    """
    usage = cuobjdump("-res-usage", str(cubin))
    code = nvdisasm("-c", str(cubin))

    def used(word: str) -> int:
        found = re.search(rf"\b{word}:(\d+)", usage)
        return int(found.group(1)) if found else 0

    widths: dict[str, list[int]] = {"LDG": [0], "STG": [0]}
    for kind, suffixes in _ACCESS.findall(code):
        bits = [_WIDTHS[s] for s in suffixes.split(".") if s in _WIDTHS]
        widths[kind].append(bits[0] if bits else 32)
    return {
        "registers": used("REG"),
        "stack": used("STACK"),
        "static_shared_memory": used("SHARED"),
        "spills": len(_SPILL.findall(code)),
        "widest_load": max(widths["LDG"]),
        "widest_store": max(widths["STG"]),
        "narrowest_load": min(widths["LDG"][1:], default=0),
        "narrowest_store": min(widths["STG"][1:], default=0),
        "instructions": len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", code, re.MULTILINE)),
        "bytes": cubin.stat().st_size,
    }


@dataclass(frozen=True)
class Binary:
    """A kernel that was compiled for one target.

    Attributes:
        symbol: its name in the cubin.
        cubin: machine code.
        parameters: the type of each argument, Triton's own scratch pointers included.
        warps: of a block.
        shared_memory: bytes of dynamic shared memory to ask for.
        resources: see `inspect`.
        scratch: bytes of memory that Triton wants beside the arguments.
    """

    symbol: str
    cubin: bytes
    parameters: tuple[str, ...]
    warps: int
    shared_memory: int
    resources: dict[str, int]
    scratch: int = 0

    @classmethod
    def of(cls, entry: Entry) -> Binary:
        """The binary that a cache entry holds."""
        found: Any = json.loads(entry.file("kernel.json").read_text())
        return cls(
            symbol=found["symbol"],
            cubin=entry.file("kernel.cubin").read_bytes(),
            parameters=tuple(found["parameters"]),
            warps=found["warps"],
            shared_memory=found["dynamic_shared_memory"],
            resources=found["resources"],
            scratch=sum(found["scratch"]),
        )

    @property
    def needs(self) -> str:
        """What it needs, in words."""
        shared = self.shared_memory + self.resources["static_shared_memory"]
        warps = f"{self.warps} warp{'s' if self.warps > 1 else ''}"
        return f"{self.resources['registers']} registers, {shared} bytes shared, {warps}"

    @property
    def spills(self) -> bool:
        """Whether a thread keeps values in local memory."""
        return bool(self.resources["spills"] or self.resources["stack"])
