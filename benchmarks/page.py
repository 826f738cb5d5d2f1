"""Writes `docs/benchmarks.md` and its plot from a file of results; every number is from there.

python -m benchmarks.page     # from cpu.json, cpu_*.json and */results.json in benchmarks/results
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from benchmarks import plot
from benchmarks.common import RESULTS, ROOT, Json, read_json
from benchmarks.gpu import page as gpu
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


def page(results: Json, others: Sequence[Json] = (), gpus: Sequence[Json] = ()) -> str:
    """The text of the page; behind the rest, what was measured on other machines and on GPUs."""
    intro = paragraphs([HEAD, *_models(results), _run(results), "![](benchmarks.svg)"])
    parts = [intro + "\n", *(table.markdown() for table in tables(results))]
    for other in others:
        parts.append(paragraphs([f"## On {machine(other['machine'])}", _run(other)]) + "\n")
        parts += [table.markdown(level=3) for table in tables(other)]
    parts += map(gpu.section, gpus)
    return "\n".join(parts)


def elsewhere() -> list[Json]:
    """The results of other machines that are in the tree."""
    return [read_json(path) for path in sorted(RESULTS.glob("cpu_*.json"))]


def show(results: Json, console: Console) -> None:
    """Print the tables."""
    for table in tables(results):
        console.print(table.rich())
        console.print()


def write(results: Json) -> None:
    """Write the page and the plot."""
    PAGE.write_text(page(results, elsewhere(), gpu.found()))
    plot.draw(results, PLOT)


def write_text() -> None:
    """Write the page from the results in the tree, and leave the plot, which shows the CPU only."""
    PAGE.write_text(page(read_json(RESULTS / "cpu.json"), elsewhere(), gpu.found()))


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


def machine(about: Json) -> str:
    """A machine's processor, what it can do, and how many cores of it there are."""
    able = f" with {', '.join(about['instructions'])}" if about.get("instructions") else ""
    return f"{about['cpu']}{able}, {about['cores']} cores"


def _run(results: Json) -> str:
    about = results["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in _versions(results).items())
    text = (
        f"Machine: {machine(about)}, "
        f"{about['memory_bytes'] / 2**30:.0f} GiB, {about['system']}, {about['compiler']}. "
        f"Versions: {packages}. Command: `{results['command']}`."
    )
    return text if results["complete"] else f"{text} This run was not complete."


def main() -> None:
    """Write the page from the results in the tree."""
    write(read_json(RESULTS / "cpu.json"))


if __name__ == "__main__":
    main()
