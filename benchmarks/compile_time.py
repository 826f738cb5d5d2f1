"""Times the first call of a model in a fresh process, less a later one.

    python -m benchmarks.compile_time --model smollm2 --contender fuseline --cache DIR

With an empty directory that is a cold compilation; once more with the same directory, a warm one.
`python -m benchmarks` does both.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import fuseline
from benchmarks.common import Json, load, say, write_json
from benchmarks.models import SUBJECTS, Step
from benchmarks.models import load as load_model
from fuseline import _torch

LATER = 5


def main(argv: Sequence[str]) -> None:
    """Time one first call and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile_time", description=__doc__)
    parser.add_argument("--model", choices=list(SUBJECTS), required=True)
    parser.add_argument("--layers", type=int, help="only so many layers of the model")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--contender", choices=["fuseline", "torch.compile"], required=True)
    parser.add_argument("--cache", type=Path, required=True, help="where compiled code is kept")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    cache = args.cache.absolute()
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    with torch.no_grad():
        model = load_model(args.model, args.dtype, args.layers)
        if args.contender == "fuseline":
            compiled: Any = fuseline.compile(model, dynamic=False, cache_dir=cache)
        else:
            compiled = _torch.optimize(model, "inductor", dynamic=False)
        result = measure(Step.of(compiled, model, 1))
    if args.contender == "fuseline":
        result["stages_s"] = stages(compiled.report(), result["seconds"])
    say(f"{args.contender} {args.model} {args.layers or ''}: {result['seconds']:.2f} s")
    if args.output:
        write_json(args.output, result)


def measure(step: Step) -> Json:
    """Seconds of the first call less a later one, and the processor time of all processes."""
    processor = _processor_seconds()
    first = _timed(step)
    processor = _processor_seconds() - processor
    later = statistics.median(_timed(step) for _ in range(LATER))
    return {"seconds": first - later, "processor_s": processor, "later_s": later, "load": load()}


def stages(report: fuseline.Report, seconds: float) -> dict[str, float]:
    """How the seconds are spent: the stages that the report names, and tracing, which is what is
    left. Kernels are built beside the rest of the trace, and are not taken off it.
    """
    prefix = "seconds to "
    known = {
        name.removeprefix(prefix): float(value)
        for name, value in report.stats.items()
        if name.startswith(prefix)
    }
    alone = sum(value for stage, value in known.items() if stage != "build")
    return {"trace": seconds - alone, **known}


def _timed(step: Step) -> float:
    step.rewind()
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def _processor_seconds() -> float:
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


if __name__ == "__main__":
    main(sys.argv[1:])
