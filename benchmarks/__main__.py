"""Time everything, print the tables, and write the results and the page about them.

    make bench                                    # all of it
    python -m benchmarks --only 'speed/qwen3/*'   # some parts anew, the others kept
    python -m benchmarks --avx2 --output FILE     # where there is more: torch and fuseline alike
    python -m benchmarks --quick --output /tmp/quick.json

Results are written after every part, so that what was measured stays if the run is stopped.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import page
from benchmarks.common import AVX2, RESULTS, Json, machine, read_json, say, versions, write_json
from benchmarks.parts import Part, parts, run

DEFAULT = RESULTS / "cpu.json"
WIDE = 200
"""Columns of the tables where no terminal says how many there are."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; 0 if all of them have ended well."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="of part names")
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it work at all?")
    parser.add_argument(
        "--avx2",
        action="store_true",
        help="let no contender use more than AVX2",
    )
    parser.add_argument("--list", action="store_true", help="print the names of the parts")
    parser.add_argument("--output", type=Path, default=DEFAULT)
    args = parser.parse_args(argv)
    if args.avx2:
        os.environ.update(AVX2)
    chosen = [
        part
        for part in parts(quick=args.quick)
        if any(fnmatch.fnmatch(part.name, pattern) for pattern in args.only)
    ]
    if args.list:
        print("\n".join(part.name for part in chosen))
        return 0
    earlier, now = kept(args.output, args.only), about(argv)
    if other := other_machine(earlier, now):
        parser.error(f"{args.output} has figures of {other}; give another file with --output")
    results = earlier | now
    try:
        failed = measure(chosen, results, args.output)
    except KeyboardInterrupt:
        say(f"stopped; what was measured is in {args.output}")
        return 130
    results["complete"] = {part.name for part in parts(quick=args.quick)} <= set(results["parts"])
    write_json(args.output, results)
    page.show(results, Console(width=None if sys.stdout.isatty() else WIDE))
    if args.output.resolve().parent == RESULTS:
        page.main()
    return 1 if failed else 0


def kept(path: Path, patterns: Sequence[str]) -> Json:
    """The results of an earlier run, where only some parts are measured anew."""
    everything = list(patterns) == ["*"]
    return {"parts": {}} if everything or not path.exists() else read_json(path)


def other_machine(earlier: Json, now: Json) -> str:
    """Where figures that are kept were measured on another kind of machine: on which."""
    was, here = earlier.get("machine", now["machine"]), now["machine"]
    alike = all(was.get(name) == here[name] for name in ("cpu", "instructions", "cores"))
    return "" if alike else f"another machine ({page.machine(was)}; this is {page.machine(here)})"


def about(argv: Sequence[str] | None) -> Json:
    """What the whole run has in common."""
    given = sys.argv[1:] if argv is None else argv
    return {
        "schema": 1,
        "command": " ".join(["python -m benchmarks", *given]),
        "machine": machine(),
        "versions": versions(),
        "complete": False,
    }


def measure(chosen: Sequence[Part], results: Json, output: Path) -> list[str]:
    """Run the parts one after the other; gives the names of those that failed."""
    console, failed = Console(stderr=True), list[str]()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
        tempfile.TemporaryDirectory(prefix="fuseline-bench-") as caches,
    ):
        task = progress.add_task("", total=len(chosen))
        for part in chosen:
            progress.update(task, description=part.name)
            progress.console.print(f"{time.strftime('%H:%M:%S')} {part.name}", highlight=False)
            try:
                found = run(part, Path(caches), lambda line: console.print(f"  {line}"))
                results["parts"][part.name] = found | {"versions": versions()}
            except RuntimeError as error:
                progress.console.print(f"{part.name} failed: {error}", markup=False)
                failed.append(part.name)
            write_json(output, results)
            progress.advance(task)
    return failed


if __name__ == "__main__":
    sys.exit(main())
