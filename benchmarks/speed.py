"""Times one model at one dtype and number of threads: eager, torch.compile and fuseline by turns.

    OMP_NUM_THREADS=2 python -m benchmarks.speed --model qwen3 --dtype bfloat16 --threads 2

`python -m benchmarks` starts this once for each combination, so that no contender meets the
caches, threads or allocations of another combination. Each case is compiled anew for its one
static shape. Beside them, a plain loop reads as many bytes as the model has weights: nothing that
reads every weight can be faster.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import fuseline
from benchmarks import bandwidth
from benchmarks.common import Json, by_turns, load, medians, say, write_json
from benchmarks.models import SUBJECTS, Work, weight_bytes, work
from benchmarks.models import load as load_model
from fuseline import _torch
from fuseline.debug.oracle import relative_error

CASES = ("decode-1", "decode-8", "prefill-128")
CALLS = {"decode": 4, "prefill": 1}
SETTLING = 8


def contenders(names: Sequence[str], model: Any) -> dict[str, Callable[..., Any]]:
    """What runs the model, by name, nothing compiled yet."""
    makers: dict[str, Callable[[], Any]] = {
        "fuseline": lambda: fuseline.compile(model, dynamic=False),
        "eager": lambda: model,
        "torch.compile": lambda: _torch.optimize(model, "inductor", dynamic=False),
    }
    return {name: makers[name]() for name in names}


def measure(model: Any, case: str, names: Sequence[str], seconds: float) -> Json:
    """Samples and figures of one case."""
    torch.compiler.reset()
    calls = contenders(names, model)
    works = {name: work(case, call, model) for name, call in calls.items()}
    first = {name: first_call(item) for name, item in works.items()}
    others = [name for name in works if name != "eager"]
    differences = {name: difference(works["eager"], works[name]) for name in others}
    kind = case.split("-")[0]
    for item in works.values():
        settle(item)
    turns: dict[str, Callable[[], object]] = dict(works)
    if kind == "decode":
        turns["read"] = bandwidth.Reader(weight_bytes(model), torch.get_num_threads())
    samples = by_turns(
        turns,
        seconds=seconds,
        calls=CALLS[kind],
        before=lambda name: works[name].rewind() if name in works else None,
    )
    middle = medians(samples)
    report = calls["fuseline"].report()  # pyright: ignore[reportFunctionMemberAccess]
    return {
        "median_s": middle,
        "speedup": {n: middle[n] / middle["fuseline"] for n in names if n != "fuseline"},
        "first_call_s": first,
        "difference_to_eager": differences,
        "weight_bytes": weight_bytes(model),
        "load": load(),
        "stats": dict(report.stats),
        "samples_s": samples,
    }


def first_call(item: Work) -> float:
    """Seconds of the first call, in which code is compiled or found in a cache."""
    item.rewind()
    started = time.perf_counter()
    item()
    return time.perf_counter() - started


def settle(item: Work) -> None:
    """Some calls more: a compiler may still look for something better in the first ones."""
    for _ in range(SETTLING):
        item.rewind()
        item()


def difference(eager: Work, other: Work) -> float:
    """The norm of the difference of the logits over the norm of eager's."""
    eager.rewind()
    other.rewind()
    return relative_error(other(), eager())


def main(argv: Sequence[str]) -> None:
    """Measure the cases, print a line for each, and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--model", choices=list(SUBJECTS), required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--without", nargs="+", default=[], help="contenders to leave out")
    parser.add_argument("--seconds", type=float, default=15, help="of sampling for each case")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    names = [n for n in ("fuseline", "eager", "torch.compile") if n not in args.without]
    result: Json = {}
    with torch.no_grad():
        model = load_model(args.model, args.dtype)
        for case in args.cases:
            result[case] = measure(model, case, names, args.seconds)
            gc.collect()
            show(case, result[case])
            if args.output:
                write_json(args.output, result)


def show(case: str, result: Json) -> None:
    """One line for a case."""
    parts = [f"{name} {1e3 * value:.2f} ms" for name, value in result["median_s"].items()]
    parts += [f"{value:.2f} x {name}" for name, value in result["speedup"].items()]
    say(f"{case}: {', '.join(parts)}")


if __name__ == "__main__":
    main(sys.argv[1:])
