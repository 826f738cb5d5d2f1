"""The resident memory of a process that runs a model: its high-water mark, and what it settles at.

    python -m benchmarks.memory --model smollm2 --contender fuseline

One contender a process. The mark is read from ``/proc`` and set back after the first calls, so
that the peak of compiling and the peak of running are told apart. Every process, eager's too, has
compiled a tiny model before: the modules of the compilers take some 80 MB, whatever the model.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import fuseline
from benchmarks.common import Json, say, write_json
from benchmarks.models import SUBJECTS, Work, weight_bytes, work
from benchmarks.models import load as load_model
from fuseline import _torch

CASES = ("decode-1", "prefill-128")
STATUS = Path("/proc/self/status")
STEPS = 5


def main(argv: Sequence[str]) -> None:
    """Run one contender and write what memory it had."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--model", choices=list(SUBJECTS), required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--contender", choices=["fuseline", "eager", "torch.compile"], required=True
    )
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    with torch.no_grad():
        import_everything()
        model = load_model(args.model, args.dtype)
        result = measure(model, args.contender)
    say(
        f"{args.contender} {args.model}: "
        + ", ".join(f"{k} {v >> 20} MiB" for k, v in result.items())
    )
    if args.output:
        write_json(args.output, result)


def import_everything() -> None:
    """Compile and run a tiny model, so that what is imported for that is there already."""
    model = load_model("tiny", "float32")
    run(work("decode-1", fuseline.compile(model), model))
    torch.compiler.reset()


def measure(model: Any, contender: str) -> Json:
    """Bytes: of the weights, resident when loaded, at the peak of all, at the peak of running."""
    gc.collect()
    loaded = resident()["VmRSS"]
    compiled: Any = model
    if contender == "fuseline":
        compiled = fuseline.compile(model, dynamic=False)
    elif contender == "torch.compile":
        compiled = _torch.optimize(model, "inductor", dynamic=False)
    works = [work(case, compiled, model) for case in CASES]
    for item in works:
        run(item)
    whole = resident()["VmHWM"]
    gc.collect()
    forget_peak()
    for item in works:
        for _ in range(STEPS):
            run(item)
    result = {
        "weights": weight_bytes(model),
        "loaded": loaded,
        "peak": whole,
        "running_peak": resident()["VmHWM"],
    }
    if contender == "fuseline":
        result["planned"] = int(compiled.report().stats["bytes of planned buffers"])
    return result


def run(item: Work) -> None:
    """One call of a piece of work."""
    item.rewind()
    item()


def resident() -> dict[str, int]:
    """The process's memory now (``VmRSS``) and at its peak (``VmHWM``), in bytes."""
    lines = [line.split() for line in STATUS.read_text().splitlines()]
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if line[-1] == "kB"}


def forget_peak() -> None:
    """Set the high-water mark to what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main(sys.argv[1:])
