"""What the tools that look inside cost where none of them is asked for.

    python -m benchmarks.looking                  # writes benchmarks/results/looking.json
    python -m benchmarks.looking --samples 9 --only 'qwen3*'

Every compilation keeps the record of rewrites, names values and rewrites, and gives ops the places
that they come from, so that `opt`, `bisect`, remarks and pages can speak of them. A sample is a
process of its own: it compiles a small model first, so that all is imported, then a model of 30
layers, and measures the processor time within the functions that are there for these tools alone,
and that of the whole process. Kernels come from the cache, as building them would hide the rest;
with an empty cache the share is smaller still. The timers themselves count as the tools' time.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch

import fuseline
from benchmarks.common import RESULTS, ROOT, Json, load, machine, say, versions, write_json
from tests.e2e.families import Family, tokens
from tests.exporting.test_families import cases

DEFAULT = RESULTS / "looking.json"
LAYERS = 30
ALLOWED = 0.02
"""The share of a compilation that the tools may take."""

WATCHED = (
    "fuseline.passes.manager:settle",
    "fuseline.passes.manager:last_replaced",
    "fuseline.passes.manager:note_miss",
    "fuseline.passes.apply:note_applied",
    "fuseline.passes.apply:attribute",
    "fuseline.assemble:folded_places",
    "fuseline.passes.gate:Names.of",
    "fuseline.passes.gate:Names.applied",
    "fuseline.passes.gate:Gate.allows",
    "fuseline.passes.gate:Gate.closed",
    "fuseline.debug.remarks:wanted",
    "fuseline.debug.remarks:check",
)
"""The functions that are there for looking: module, and name in it."""

MODELS = ("qwen3", "deepseek_v3")
"""Names of families, as the tests that export them have them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Take all samples; 1 if the share of a model is above what is allowed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.looking",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of models")
    parser.add_argument("--samples", type=int, default=5, help="of each model (default: 5)")
    parser.add_argument("--output", type=Path, default=DEFAULT)
    parser.add_argument("--sample", nargs=2, metavar=("MODEL", "CACHE"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.sample:
        print(json.dumps(sample(*args.sample)))
        return 0
    chosen = [name for name in MODELS if fnmatch.fnmatch(name, args.only)]
    results: Json = {
        "schema": 1,
        "command": " ".join(["python -m benchmarks.looking", *(argv or sys.argv[1:])]),
        "machine": machine(),
        "versions": versions(),
        "watched": WATCHED,
        "layers": LAYERS,
        "models": {name: {"samples": []} for name in chosen},
    }
    with tempfile.TemporaryDirectory(prefix="fuseline-looking-") as folder:
        for name in chosen:
            _sampled(name, Path(folder) / "cache")  # which builds the kernels
        for number in range(args.samples):
            for name in chosen:
                found = results["models"][name]
                found["samples"].append(_sampled(name, Path(folder) / "cache"))
                shares = [s["tools_s"] / s["compile_s"] for s in found["samples"]]
                found["share"] = statistics.median(shares)
                say(f"{number + 1} of {args.samples} {name}: {100 * shares[-1]:.2f} %")
                write_json(args.output, results)
    return int(any(found["share"] > ALLOWED for found in results["models"].values()))


def _sampled(name: str, cache: Path) -> Json:
    command = [sys.executable, "-m", "benchmarks.looking", "--sample", name, str(cache)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return cast("Json", json.loads(done.stdout.splitlines()[-1]))


def sample(name: str, cache: str) -> Json:
    """Processor seconds of one compilation, and those within the watched functions."""
    torch.set_num_threads(1)
    family = next(cast("Family", case.values[0]) for case in cases() if case.id == name)
    _compiled(_with_layers(family, 2), cache)
    cast("Any", torch).compiler.reset()
    model = _with_layers(family, LAYERS)
    spent: dict[str, float] = {}
    calls: dict[str, int] = {}
    for place in WATCHED:
        _watch(place, spent, calls)
    started = time.process_time()
    rewrites = _compiled(model, cache)
    total = time.process_time() - started
    return {
        "compile_s": total,
        "tools_s": sum(spent.values()),
        "by_function_s": spent,
        "calls": calls,
        "rewrites": rewrites,
        "load": load(),
    }


def _with_layers(family: Family, layers: int) -> Any:
    return Family(family.model_type, {**family.settings, "num_hidden_layers": layers}).build(
        torch.float32
    )


def _compiled(model: Any, cache: str) -> int:
    """Compile a prompt; how many rewrites were applied."""
    if hasattr(model.config, "n_routed_experts"):
        model.set_experts_implementation("batched_mm")
    compiled = fuseline.compile(model, cache_dir=cache, reuse=False, dynamic=False, threads=1)
    with torch.no_grad():
        compiled(tokens(2, 7), use_cache=False)
    return int(compiled.report().stats["rewrites"])


def _watch(place: str, spent: dict[str, float], calls: dict[str, int]) -> None:
    """Put a function in the place of another that adds up its processor time."""
    module, _, path = place.partition(":")
    *outer, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in outer:
        owner = getattr(owner, part)
    original: Callable[..., Any] = getattr(owner, name)
    spent[place], calls[place] = 0.0, 0

    def watched(*args: Any, **kwargs: Any) -> Any:
        started = time.thread_time()
        try:
            return original(*args, **kwargs)
        finally:
            spent[place] += time.thread_time() - started
            calls[place] += 1

    setattr(owner, name, watched)


if __name__ == "__main__":
    sys.exit(main())
