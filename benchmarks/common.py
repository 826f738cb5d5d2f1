"""What every benchmark shares: the machine, the versions, samples taken by turns, files.

Contenders are always sampled by turns in one process, so that a ratio is one of neighbours in
time; every sample is kept.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

Json: TypeAlias = "dict[str, Any]"
Samples: TypeAlias = "dict[str, list[float]]"

_NUMBERS = re.compile(r"\[[-+.e\d\s,]*\]")
"""A list of numbers, which is written in one line."""

INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16")
"""What decides how fast a product is; the name of a virtual machine's processor may not tell it."""

AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "TORCHINDUCTOR_CPP_MARCH": "x86-64-v3",
    "CXX": "g++ -mno-avx512f",
}
"""What keeps torch, its libraries and compiler, and fuseline from using more than AVX2."""

PAUSE = 0.02
"""Seconds between contenders, in which the helper threads of the last one go to sleep: OpenMP's
spin for some milliseconds first."""


def limited() -> bool:
    """Whether no more than AVX2 is used, by all contenders."""
    return all(os.environ.get(name) == value for name, value in AVX2.items())


def machine() -> Json:
    """What the figures depend on, in words that name no host, user or directory."""
    able = [name for name in INSTRUCTIONS if name in _about_cpu("flags").split()]
    return {
        "cpu": _about_cpu("model name") or platform.processor() or platform.machine(),
        "instructions": ["avx2 (all that is used)"] if limited() else able,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "compiler": first_line(["g++", "--version"]),
    }


def versions() -> Json:
    """Versions of what runs, and the commit; ``+`` behind it where files differ from it."""
    packages = ("torch", "transformers", "numpy")
    found: Json = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found, "fuseline": commit()}


def commit() -> str:
    """The commit of the tree, ``unknown`` outside of a checkout."""
    head = first_line(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"])
    changed = first_line(["git", "-C", str(ROOT), "status", "--porcelain", "fuseline"])
    return f"{head}+" if changed else head or "unknown"


def load() -> float:
    """How many processes want a core, on average over the last minute."""
    return round(os.getloadavg()[0], 2)


def _about_cpu(name: str) -> str:
    """What Linux says of the first core; nothing elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")


def first_line(command: Sequence[str]) -> str:
    """The first line that a command prints; nothing where it fails, or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip().split("\n", 1)[0]


if limited():  # CXX is for fuseline; Inductor takes no options in a compiler's name
    importlib.import_module("torch._inductor.config").cpp.cxx = (None, "g++")


def by_turns(
    contenders: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    least: int = 5,
    most: int = 60,
    calls: int = 1,
    untimed: int = 0,
    before: Callable[[str], object] = lambda name: None,
) -> Samples:
    """Seconds of single calls of each contender; the order changes from round to round.

    Args:
        contenders: what to call, by name.
        seconds: about how long this may take; a first, untimed round tells how many rounds fit.
        least: rounds there are at least.
        most: rounds there are at most.
        calls: consecutive calls of a contender in a round that are timed.
        untimed: calls of it before those: helper threads that slept take a while to come.
        before: called with the contender's name before each call, outside of the time.
    """
    names = list(contenders)
    samples: Samples = {name: [] for name in names}

    def take_turns(order: Sequence[str], count: int, into: Samples) -> None:
        for name in order:
            time.sleep(PAUSE)
            for _ in range(untimed):
                before(name)
                contenders[name]()
            for _ in range(count):
                before(name)
                started = time.perf_counter()
                contenders[name]()
                into[name].append(time.perf_counter() - started)

    started = time.perf_counter()
    take_turns(names, 1, {name: [] for name in names})
    asleep = PAUSE * len(names)
    one = (time.perf_counter() - started - asleep) / (1 + untimed)
    rounds = int(seconds / (asleep + one * (calls + untimed)))
    for number in range(min(max(rounds, least), most)):
        first = number % len(names)
        take_turns(names[first:] + names[:first], calls, samples)
    return samples


def medians(samples: Samples) -> dict[str, float]:
    """The median of each contender."""
    return {name: statistics.median(values) for name, values in samples.items() if values}


def write_json(path: Path, content: Json) -> None:
    """Replace a file at once, so that it is whole whenever one stops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps(rounded(content), indent=1)
    staged.write_text(_NUMBERS.sub(lambda found: " ".join(found[0].split()), text) + "\n")
    staged.replace(path)


def read_json(path: Path) -> Json:
    """A file that `write_json` wrote."""
    return cast("Json", json.loads(path.read_text()))


def rounded(value: Any) -> Any:
    """The same nest with floats of six digits: no clock here tells more."""
    match value:
        case float():
            return float(f"{value:.6g}")
        case dict():
            return {k: rounded(v) for k, v in cast("Json", value).items()}
        case list() | tuple():
            return [rounded(v) for v in cast("list[Any]", value)]
        case _:
            return value


def say(text: str) -> None:
    """A line for whoever waits."""
    print(text, file=sys.stderr, flush=True)
