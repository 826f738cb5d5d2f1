"""Time kernels and decode steps on an NVIDIA GPU beside eager and torch.compile.

    make bench-gpu                                        # all of it, in less than twelve minutes
    python -m benchmarks.gpu --only 'rows/*' ceilings     # some parts anew, the others kept
    python -m benchmarks.gpu --only 'decode/*' --modes reduce-overhead max-autotune --budget 1800
    python -m benchmarks.gpu --device cpu --quick --output /tmp/quick    # does it work at all?

Results are written after every part. No part is begun that would not end within the budget, by its
estimate; the parts that there is nothing of are listed in the results. The exit code is 0 where
all went well, 1 where something failed, and 2 without a GPU.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import platform
import re
import sys
import time
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import page
from benchmarks.common import RESULTS, Json, commit, read_json, say, write_json
from benchmarks.gpu.compare import failure
from benchmarks.gpu.device import Device
from benchmarks.gpu.page import tables
from benchmarks.gpu.parts import MODES, Options, Part, left_out, parts

BUDGET = 720.0
WIDE = 160
"""Columns of the tables where no terminal says how many there are."""

NO_GPU = """\
torch {torch} sees no GPU, and these benchmarks need one. Run them on a machine that has one, or \
try them out with --device cpu --quick."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; see above for the exit code."""
    started = time.monotonic()
    given = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    args = parser.parse_args(given)
    wanted = [p for p in parts(quick=args.quick) if _matches(p, args.only)]
    if unknown := [p for p in args.only if not any(_matches(part, [p]) for part in wanted)]:
        parser.error(
            f"--only {' '.join(unknown)} names no part: see --list{' --quick' * args.quick}"
        )
    options = Options(tuple(args.modes), tuple(args.without))
    if args.list:
        for part in wanted:
            print(f"{part.name}  {part.seconds(options):.0f} s")
        return 0
    if args.device == "cuda" and not torch.cuda.is_available():
        say(NO_GPU.format(torch=torch.__version__))
        return 2
    if args.device == "cpu" and not (args.quick and args.output):
        parser.error("--device cpu is for --quick, with an --output of its own")
    device = Device(args.device, quick=args.quick)
    machine = device.machine()
    output: Path = (args.output or RESULTS / slug(machine["gpu"])) / "results.json"
    results: Json = {
        "schema": 1,
        "command": " ".join(["python -m benchmarks.gpu", *given]),
        "machine": machine,
        "versions": versions(),
        "parts": {},
    }
    if output.exists() and (args.proceed or args.only != ["*"]):
        earlier = read_json(output)
        if earlier["machine"]["gpu"] != machine["gpu"]:
            say(f"{output} has figures of {earlier['machine']['gpu']}; give another --output")
            return 2
        results["parts"] = earlier["parts"]
        results["command"] = earlier["command"] if args.proceed else results["command"]
    if args.proceed:
        wanted = [part for part in wanted if part.name not in results["parts"]]
    run = Session(device, options, results, output, started + args.budget)
    for part in wanted:
        run.part(part)
        if not device.works():
            again = [*given, "--proceed", "--budget", f"{max(run.left(), 0):.0f}"]
            say("the device does nothing any more: the rest runs in a new process")
            os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu", *again])
    results["left out"] = left_out(results, parts(quick=args.quick))
    write_json(output, results)
    show(results, output)
    return 1 if any(failed(part) for part in results["parts"].values()) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        *("--only",),
        nargs="+",
        default=["*"],
        metavar="PATTERN",
        help="of the names that --list prints, as 'rows/*/64'; default: all",
    )
    add("--without", nargs="+", default=[], choices=["fuseline", "torch.compile"])
    add("--modes", nargs="+", default=["reduce-overhead"], choices=list(MODES), help="for decode")
    add(
        *("--budget",),
        type=float,
        default=BUDGET,
        metavar="SECONDS",
        help="no part is begun that would end later, by its estimate; default: %(default)s",
    )
    add("--proceed", action="store_true", help="run only the parts that the output lacks")
    add("--device", choices=["cuda", "cpu"], default="cuda")
    add("--quick", action="store_true", help="tiny sizes: does it work at all?")
    add("--list", action="store_true", help="print the names of the parts, and estimates")
    add("--output", type=Path, metavar="DIR", help="default: benchmarks/results/<name of the GPU>")
    return parser


def _matches(part: Part, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(part.name, pattern) for pattern in patterns)


def slug(name: str) -> str:
    """A GPU's name as that of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("nvidia ")).strip("-")


def versions() -> Json:
    """Versions of what runs."""
    found: Json = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("triton", "transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "none"
    return found | {"cuda": torch.version.cuda or "none", "fuseline": commit()}


class Session:
    """Runs parts one after the other, and keeps what comes of them."""

    def __init__(
        self, device: Device, options: Options, results: Json, output: Path, end: float
    ) -> None:
        self.device = device
        self.options = options
        self.results = results
        self.output = output
        self.end = end

    def left(self) -> float:
        """Seconds of the budget."""
        return self.end - time.monotonic()

    def part(self, part: Part) -> None:
        """Run one part, unless there is no time for it, and write the results."""
        if part.seconds(self.options) > self.left():
            say(f"{part.name}: left out, {self.left():.0f} s are left")
            return
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Dynamo detected a call")  # once a model
                found = part.run(self.device, self.options)
        except Exception as error:
            facts = {"kind": part.kind, "subject": part.subject, "size": part.size}
            found = facts | {"error": failure(error)}
        say(f"{part.name}: {line(found)}")
        self.results["parts"][part.name] = found | {"commit": self.results["versions"]["fuseline"]}
        write_json(self.output, self.results)


def failed(part: Json) -> bool:
    """Whether all of a part failed, or a contender in it."""
    return "error" in part or "errors" in part


def line(found: Json) -> str:
    """What came of a part, for whoever waits."""
    if "error" in found:
        return f"failed: {found['error']}"
    middle = [f"{name} {1e6 * value:.1f} us" for name, value in found["median_s"].items()]
    wrong = [f"{name} FAILED: {text}" for name, text in found.get("errors", {}).items()]
    return f"{', '.join([*middle, *wrong])} (took {found['took_s']:.1f} s)"


def show(results: Json, output: Path) -> None:
    """Print the tables, and rewrite the page where the results are in the tree."""
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    for table in tables(results):
        console.print(table.rich())
    if results["left out"]:
        say(f"left out: {', '.join(results['left out'])}")
    say(f"written to {output}")
    if output.resolve().parent.parent == RESULTS:
        page.write_text()


if __name__ == "__main__":
    sys.exit(main())
