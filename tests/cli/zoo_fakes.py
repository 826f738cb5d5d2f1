"""Examinations that end in every way, for the tests of the census; nothing here needs torch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fuseline.cli.zoo.results import Miss, Mode, Result
from fuseline.config import Config

Keep = Callable[[Result], None]


def right() -> Mode:
    fused = {"moe": 2, "attention": 4}
    return Mode(graphs=2, fused=fused, error=2e-7, eager_error=2e-7, allowed=4e-7, native=9)


def examine(name: str, dtype: str, config: Config, keep: Keep) -> Result:
    """Do what the name says."""
    result = Result(name, dtype)
    keep(result)
    if name == "unknown":
        raise ValueError("no sizes fit\nand more that nobody reads")
    result = replace(result, structures=("moe",), stage="prefill")
    keep(result)
    if name == "crash":
        os.abort()
    if name == "leave":
        os._exit(3)
    if name == "hang":
        Path(config.cache_dir or ".", "child").write_text(str(_child()))
        time.sleep(600)
    if name == "eat":
        bytearray(64 * 2**30)
    if name == "raise":
        raise ValueError("wrapped") from RuntimeError("what was the matter")
    result = replace(result, prefill=right(), stage="done")
    if name == "wrong":
        return replace(result, prefill=replace(right(), error=5e-7))
    if name == "broken":
        return replace(result, prefill=replace(right(), breaks={"a call of print": 2}))
    if name == "missed":
        return replace(result, prefill=replace(right(), missed=(Miss("rope", "odd width", 2),)))
    return result


def _child() -> int:
    """A process that would outlive its parent, as a compiler that hangs does."""
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
        os._exit(0)
    return pid
