"""Writes `docs/benchmarks.md` and its plot from a file of results; every number is from there.

python -m benchmarks.page            # from benchmarks/results/cpu.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from benchmarks import plot
from benchmarks.common import RESULTS, ROOT, Json, read_json
from benchmarks.models import SUBJECTS
from benchmarks.tables import paragraphs, tables

PAGE = ROOT / "docs" / "benchmarks.md"
PLOT = ROOT / "docs" / "benchmarks.svg"

HEAD = """\
# Benchmarks

`make bench` measures what stands here, writes it to `benchmarks/results/cpu.json` with every single
sample, and makes this page of it. Contenders run by turns in one process for each model, dtype and
number of threads, all compiled for the same static shape, on the same weights, each with a cache of
its own; a decode step is always the one behind 128 tokens in a cache of 256."""


def page(results: Json) -> str:
    """The text of the page."""
    intro = paragraphs([HEAD, *_models(results), _machine(results), "![](benchmarks.svg)"])
    return "\n".join([intro + "\n", *(table.markdown() for table in tables(results))])


def show(results: Json, console: Console) -> None:
    """Print the tables."""
    for table in tables(results):
        console.print(table.rich())
        console.print()


def write(results: Json) -> None:
    """Write the page and the plot."""
    PAGE.write_text(page(results))
    plot.draw(results, PLOT)


def _models(results: Json) -> list[str]:
    names = dict.fromkeys(part["model"] for part in results["parts"].values())
    said = [f"* {SUBJECTS[name]}" for name in names if name in SUBJECTS]  # others: by their table
    return ["\n".join(said)] if said else []


def _versions(results: Json) -> dict[str, str]:
    """The version of each package; all that there were, where parts were measured at several."""
    found: dict[str, dict[str, None]] = {name: {} for name in results["versions"]}
    for part in results["parts"].values():
        for name, version in part.get("versions", results["versions"]).items():
            found.setdefault(name, {})[version] = None
    return {
        name: " and ".join(versions or [results["versions"][name]])
        for name, versions in found.items()
    }


def _machine(results: Json) -> str:
    machine = results["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in _versions(results).items())
    text = (
        f"Machine: {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {machine['system']}, {machine['compiler']}. "
        f"Versions: {packages}. Command: `{results['command']}`."
    )
    return text if results["complete"] else f"{text} This run was not complete."


def main(path: Path = RESULTS / "cpu.json") -> None:
    """Write the page from a file."""
    write(read_json(path))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
