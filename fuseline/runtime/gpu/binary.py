"""What a cubin needs of the device, read from its machine code.

Whatever made the cubin, an entry of the cache holds it as ``kernel.cubin``, beside ``kernel.json``:
what `describe` writes and `Binary.of` reads. The tools that read machine code come with Triton.
"""

from __future__ import annotations

import errno
import importlib
import json
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuseline import errors
from fuseline.runtime.cache import Entry

Tool = Callable[..., str]

PARKED = 16
"""Bytes of a thread that may wait in local memory: little, beside what a block reads."""

DESCRIBED = 2
"""The version of `describe`, in the keys of binaries: those of another one are made anew."""

_ACCESS = re.compile(r"\b(LDG|STG)(?:STS)?((?:\.[A-Z0-9]+)*)")
_SPILL = re.compile(r"\b(LDL|STL)\b")
_LABEL = re.compile(r"^([\w.$]+):", re.MULTILINE)
_BRANCH = re.compile(r"\b(?:BRA|JMP)\b.*`\(([\w.$]+)\)")
_ELSEWHERE = re.compile(r"\b(?:BRX|BRXU|JMX|JMXU|CALL)\b")
_ARRAY = re.compile(r"^\s*\.local\s+\.align\s+\d+\s+\.b8\s+\S+\[(\d+)\];", re.MULTILINE)
_WIDTHS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}


def inspect(cubin: Path, cuobjdump: Tool, nvdisasm: Tool) -> dict[str, int]:
    """Registers, stack, static shared memory, spills and widest accesses of a cubin's kernel.

    Sizes are in bytes, accesses in bits; ``spills`` counts instructions that go to local memory,
    ``loop_spills`` those of them in loops.
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
        "loop_spills": loop_spills(code),
        "widest_load": max(widths["LDG"]),
        "widest_store": max(widths["STG"]),
        "narrowest_load": min(widths["LDG"][1:], default=0),
        "narrowest_store": min(widths["STG"][1:], default=0),
        "instructions": len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", code, re.MULTILINE)),
        "bytes": cubin.stat().st_size,
    }


def loop_spills(code: str) -> int:
    """Instructions that go to local memory between a label and a branch back to it.

    All of them, where calls and jumps may lead anywhere.

    Args:
        code: as nvdisasm prints it.

    """
    spills = [found.start() for found in _SPILL.finditer(code)]
    labels = {found.group(1): found.end() for found in _LABEL.finditer(code)}
    branches = [(found.group(1), found.start()) for found in _BRANCH.finditer(code)]
    if _ELSEWHERE.search(code) or any(label not in labels for label, _ in branches):
        return len(spills)
    loops = [(labels[label], end) for label, end in branches]
    return sum(any(begin < at < end for begin, end in loops) for at in spills)


def most_registers(warps: int) -> int:
    """The registers that a thread can have, in blocks of so many warps.

    A multiprocessor has 16384 in each of four parts, warps go to these in turns, and each is given
    a multiple of 256.
    """
    of_a_part = -(-warps // 4)
    return min(255, 16384 // (32 * of_a_part) // 8 * 8)


def arrays(ptx: str) -> int:
    """Bytes of a thread's stack that a kernel asks for itself, in units of 8: arrays with an index.

    That of a sine is one, into which CUDA's reduction of large angles writes.
    """
    return sum(-(-int(size) // 8) * 8 for size in _ARRAY.findall(ptx))


def describe(
    folder: Path,
    *,
    symbol: str,
    parameters: Sequence[str],
    warps: int,
    shared_memory: int = 0,
    scratch: Sequence[int] = (),
    waits: bool = False,
) -> None:
    """Write ``kernel.json`` beside a cubin: how to launch it, and what its machine code needs.

    A stack that the PTX asks for itself holds no spills.

    Args:
        folder: of ``kernel.cubin`` and ``kernel.ptx``.
        symbol: see `Binary`.
        parameters: see `Binary`.
        warps: see `Binary`.
        shared_memory: see `Binary`.
        scratch: for each pointer at the end of the parameters that is not ours, the bytes of memory
            that are wanted there.
        waits: see `Binary`.

    """
    found = inspect(folder / "kernel.cubin", tool("cuobjdump"), tool("nvdisasm"))
    if found["stack"] <= arrays((folder / "kernel.ptx").read_text()):
        found["spills"] = found["loop_spills"] = 0
    described = {
        "symbol": symbol,
        "parameters": list(parameters),
        "warps": warps,
        "dynamic_shared_memory": shared_memory,
        "scratch": list(scratch),
        "waits": waits,
        "resources": found,
    }
    (folder / "kernel.json").write_text(json.dumps(described, indent=1, sort_keys=True))


TRIES = 5
"""How often a tool is started: beside threads that map memory of a GPU, a system may not find the
memory with its name, now and then."""

EARLY = 90
"""The first target whose kernels can be launched before the one ahead of them has ended."""


def tool(name: str) -> Tool:
    """One of the binary tools that come with Triton, as a function of its arguments."""
    nvidia: Any = importlib.import_module("triton.knobs").nvidia
    path: str = getattr(nvidia, name).path

    def run(*arguments: str) -> str:
        for _ in range(TRIES - 1):
            try:
                return _output([path, *arguments])
            except OSError as error:
                if error.errno != errno.EFAULT:
                    raise
        return _output([path, *arguments])

    return run


TOOL_SECONDS = 120.0
"""That a tool may take for one kernel; it takes a tenth of one."""

AGAIN = "try again when less is running: memory, room on a disk or time was lacking"


def _output(command: Sequence[str]) -> str:
    """What a tool prints.

    Raises:
        BuildError: FL0702, if it does not come to an end.

    """
    run: Any = subprocess.run
    try:
        return run(command, capture_output=True, text=True, check=True, timeout=TOOL_SECONDS).stdout
    except subprocess.TimeoutExpired as error:
        found = f"no answer in {TOOL_SECONDS:.0f} s"
        name = Path(command[0]).name
        raise errors.COMPILER_UNUSABLE.error(name, found=found, hint=AGAIN) from error


_SAID = 400
"""Characters of a compiler's words that a message repeats."""


def last_words(said: str) -> str:
    """The line of a compiler's message that tells most; empty where it says nothing."""
    lines = [" ".join(line.split()) for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if "fatal" in line]
    telling = telling or [line for line in lines if "rror" in line]
    return (telling or lines or [""])[-1][:_SAID]


@dataclass(frozen=True)
class Binary:
    """A kernel that was compiled for one target.

    Attributes:
        symbol: its name in the cubin.
        cubin: machine code.
        parameters: the type of each argument, scratch pointers of Triton's own at the end included.
        warps: of a block.
        shared_memory: bytes of dynamic shared memory to ask for.
        resources: see `inspect`.
        scratch: bytes of memory that Triton wants beside the arguments.
        scratch_pointers: how many of the parameters are Triton's own.
        waits: whether it waits for the kernel ahead of it, before it touches memory that programs
            write, and so may be launched while that one still runs.
        folder: of ``kernel.ptx``; None where it was not kept.
    """

    symbol: str
    cubin: bytes
    parameters: tuple[str, ...]
    warps: int
    shared_memory: int
    resources: dict[str, int]
    scratch: int = 0
    scratch_pointers: int = 2
    waits: bool = False
    folder: Path | None = None

    @property
    def ptx(self) -> str:
        """The PTX that the machine code was made from; empty where it was not kept."""
        return "" if self.folder is None else (self.folder / "kernel.ptx").read_text()

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
            scratch_pointers=len(found["scratch"]),
            waits=found["waits"],
            folder=entry.path,
        )

    @property
    def needs(self) -> str:
        """What it needs, in words."""
        shared = self.shared_memory + self.resources["static_shared_memory"]
        warps = f"{self.warps} warp{'s' if self.warps > 1 else ''}"
        return f"{self.resources['registers']} registers, {shared} bytes shared, {warps}"

    @property
    def spills(self) -> bool:
        """Whether threads go to local memory so that it costs time.

        Up to `PARKED` bytes outside of loops do not, where a thread could have more registers than
        it has: so that more blocks fit, ptxas puts away what a loop does not need.
        """
        found = self.resources
        scarce = found["registers"] >= most_registers(self.warps)
        dear = scarce or found["stack"] > PARKED
        return found["loop_spills"] > 0 or (found["spills"] > 0 and dear)
