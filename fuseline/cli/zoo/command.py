"""``fuseline explain --zoo``: the arguments of the census, its progress, and its answer."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from fuseline.cli.arguments import count, options, positive
from fuseline.cli.output import Output
from fuseline.cli.zoo import table
from fuseline.cli.zoo.census import Plan, census, chosen, resumed, versions
from fuseline.cli.zoo.results import Result, Results
from fuseline.cli.zoo.worker import GIB, Limits
from fuseline.config import Config
from fuseline.errors import BAD_ARGUMENT

SECONDS, MEMORY = 600.0, 8.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--zoo``, and what goes with it."""
    group = parser.add_argument_group("the census")
    group.add_argument(
        "--zoo",
        action="store_true",
        help="in place of MODEL: a tiny model of every causal-LM architecture of transformers, "
        "compiled and compared with eager",
    )
    group.add_argument(
        "--only", metavar="REGEX", help="the architectures whose whole name it matches"
    )
    group.add_argument("--jobs", type=count, default=1, help="how many at a time (default: 1)")
    group.add_argument(
        "--limit",
        metavar="SECONDS",
        type=positive,
        default=SECONDS,
        help=f"end an architecture that takes longer (default: {SECONDS:g})",
    )
    group.add_argument(
        "--memory",
        metavar="GIB",
        type=positive,
        default=MEMORY,
        help=f"... or uses more memory (default: {MEMORY:g})",
    )
    group.add_argument(
        "--results",
        metavar="FILE",
        type=Path,
        help="keep the results there as JSON, and go on where an earlier run stopped",
    )
    group.add_argument(
        "--page", metavar="FILE", type=Path, help="write the table there, as a page of the docs"
    )


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Examine architectures, and print one table; 1 if a model is wrong or does not compile."""
    config = Config.of(options(arguments))
    dtype = arguments.dtype or "float32"
    with out.step("looking for architectures"):
        from fuseline.cli.zoo.models import names

        every = names()
    wanted = _wanted(every, arguments.only)
    results = resumed(arguments.results, lambda: Results(versions(), every))
    done = {r.name for r in results.of(dtype)}
    limits = Limits(arguments.limit, int(arguments.memory * GIB))
    todo = tuple(name for name in wanted if name not in done)
    results = _examined(Plan(todo, dtype, config, arguments.jobs, limits), results, arguments, out)
    if arguments.page:
        arguments.page.write_text(table.page(results))
    found = [r for r in results.of(dtype) if r.name in wanted]
    data = [{**asdict(r), "status": r.status, "unexplained": r.unexplained} for r in found]
    numbers = asdict(table.Summary.of(found))
    out.result(
        {"versions": results.versions, "summary": numbers, "results": data}, table.text(found)
    )
    return 1 if any(r.status in ("wrong", "failed") for r in found) else 0


def _wanted(every: tuple[str, ...], pattern: str | None) -> tuple[str, ...]:
    try:
        wanted = chosen(every, pattern)
    except re.error as error:
        raise BAD_ARGUMENT.error("--only", found=str(error), expected="a regex") from None
    if not wanted:
        found, expected = f"{pattern}, which matches none", "a name such as llama, or a regex"
        raise BAD_ARGUMENT.error("--only", found=found, expected=expected)
    return wanted


def _examined(plan: Plan, results: Results, arguments: argparse.Namespace, out: Output) -> Results:
    from fuseline.cli.zoo.trial import examine

    with _progress(len(plan.names), out) as show:
        for result in census(plan, examine):
            results += result
            if arguments.results:
                results.save(arguments.results)
            show(result)
    return results


@contextmanager
def _progress(total: int, out: Output) -> Generator[Callable[[Result], None]]:
    """A bar on a terminal, a line for each architecture elsewhere."""
    if not sys.stderr.isatty():
        done = 0

        def line(result: Result) -> None:
            nonlocal done
            done += 1
            out.note(f"{done} of {total}: {result.name} {result.status}, {result.seconds:.0f} s")

        yield line
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(file=sys.stderr)) as bars:
        task = bars.add_task("architectures", total=total)

        def advance(result: Result) -> None:
            bars.update(task, advance=1, description=f"{result.name} {result.status}")

        yield advance
