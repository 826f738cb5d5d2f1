"""The sections of `docs/benchmarks.md` about GPUs, a section for each that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.common import RESULTS, Json, read_json
from benchmarks.gpu.decode import SUBJECTS
from benchmarks.gpu.rows import ROWS
from benchmarks.tables import Table, of_kind, paragraphs

HEAD = """\
`make bench-gpu` measures what stands here, and writes it with every sample to
`benchmarks/results/<GPU>/results.json`; parts of several runs name their commits, and versions and
command are those of the last one. All is bfloat16, on random weights, and compiled for static
shapes; contenders run by turns in one process. Device time is that of calls in one CUDA graph. A
number below 1 under another contender's name says that fuseline was slower there."""


def found() -> list[Json]:
    """The results of all GPUs that are in the tree."""
    return [read_json(path) for path in sorted(RESULTS.glob("*/results.json"))]


def section(results: Json) -> str:
    """All about one GPU."""
    about = paragraphs(
        [f"## On {results['machine']['gpu']}", HEAD, _run(results), *_ceilings(results)]
    )
    return "\n".join([about + "\n", *(table.markdown(level=3) for table in tables(results))])


def tables(results: Json) -> list[Table]:
    """All tables that there are results for."""
    makers = (_rows, _experts, _adapters, _decode, _prefill, _launches, _failures)
    return [table for make in makers if (table := make(results)).rows]


def _run(results: Json) -> str:
    about = results["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    text = f"Machine: {about['gpu']}"
    if "multiprocessors" in about:
        text += f", {about['multiprocessors']} multiprocessors"
        text += f", {about['memory_bytes'] / 2**30:.0f} GiB, driver {about['driver']}"
    text += f". Versions: {packages}. Command: `{results['command']}`."
    left_out: Sequence[str] = results.get("left out", ())
    return f"{text} Left out for want of time: {', '.join(left_out)}." if left_out else text


def _ceilings(results: Json) -> list[str]:
    ceilings = _ceiling(results)
    if not ceilings:
        return []
    copy, read = ceilings["copy_bytes_per_s"] / 1e9, ceilings["read_bytes_per_s"] / 1e9
    rate = ceilings["matmul_flops_per_s"] / 1e12
    text = f"Ceilings: a large copy moves {copy:.0f} GB/s (read and written), a large sum reads "
    return [f"{text}{read:.0f} GB/s, a large product does {rate:.0f} TFLOP/s."]


def _ceiling(results: Json) -> Json:
    """What the device can do; empty where that was not measured, or failed."""
    measured = (part for part in of_kind(results, "ceilings") if "error" not in part)
    return next(measured, dict[str, Any]())


def _of_kind(results: Json, kind: str) -> list[Json]:
    """The parts of a kind that did not fail, by subject and size."""
    order = {name: number for number, name in enumerate([*ROWS, *SUBJECTS])}
    alive = (part for part in of_kind(results, kind) if "error" not in part)
    return sorted(alive, key=lambda part: (order.get(part["subject"], 0), part["size"]))


def _moved(results: Json, part: Json) -> list[str]:
    """Cells: fuseline's bytes a second, and the share of a copy's."""
    own, copy = part["median_s"].get("fuseline"), _ceiling(results).get("copy_bytes_per_s")
    if own is None:
        return ["", ""]
    rate = part["bytes"] / own
    return [f"{rate / 1e9:.0f}", f"{rate / copy:.0%}" if copy else ""]


def _compared(part: Json, others: Sequence[str], unit: float) -> list[str]:
    """Cells: the time of each contender, and how many times fuseline's the others' are."""
    middle = part["median_s"]
    own = middle.get("fuseline")
    times = [_cell(middle.get(n), unit) for n in ("fuseline", *others)]
    return times + [_cell(middle.get(n) if own else None, own) for n in others]


def _cell(value: float | None, unit: float | None) -> str:
    return "" if value is None or unit is None else f"{value / unit:.2f}"


def _by_torch(part: Json) -> str:
    """How many steps of fuseline's plan torch does."""
    return str(part["stats"].get("host steps", ""))


def _commit(results: Json, part: Json) -> str:
    """The commit that a part was measured at: runs go on where others have stopped."""
    return str(part.get("commit", results["versions"].get("fuseline", "")))


_BLOCKS = ("fuseline", "torch.compile", "eager", "x torch.compile", "x eager", "GB/s", "of a copy")

_ABOUT_BLOCKS = (
    "Microseconds of device time of a call, the median; how many times as long the others take; "
    "and fuseline's gigabytes a second of the bytes that must move, with the share of a copy's. "
    "Inputs take turns: from some megabytes on, they come from memory."
)


def _rows(results: Json) -> Table:
    rows: list[tuple[str, ...]] = []
    for part in _of_kind(results, "rows"):
        cells = _compared(part, ("torch.compile", "eager"), 1e-6)
        what = f"{ROWS[part['subject']].title}, {part['size']} tokens"
        rows.append((what, *cells, *_moved(results, part), _by_torch(part), _commit(results, part)))
    header = ("", *_BLOCKS, "steps by torch", "commit")
    return Table("Rows", _ABOUT_BLOCKS, header, tuple(rows))


def _experts(results: Json) -> Table:
    rows: list[tuple[str, ...]] = []
    for part in _of_kind(results, "experts"):
        cells = _compared(part, ("torch.compile", "eager"), 1e-6)
        rows.append(
            (
                f"{part['size']} tokens",
                *cells,
                *_moved(results, part),
                _by_torch(part),
                _commit(results, part),
            )
        )
    about = (
        "A block of Qwen3-30B-A3B: a router, 128 experts of 768, 8 for a token, hidden 2048. The "
        f"others use grouped products. {_ABOUT_BLOCKS}"
    )
    return Table("Experts", about, ("", *_BLOCKS, "steps by torch", "commit"), tuple(rows))


def _adapters(results: Json) -> Table:
    rows: list[tuple[str, ...]] = []
    for part in _of_kind(results, "adapters"):
        cells = _compared(part, ("torch.compile", "eager"), 1e-6)
        rows.append((f"{part['size']} in use", *cells, *_moved(results, part), _by_torch(part)))
    about = (
        "A linear of 4096 to 4096 with low-rank adapters, for 64 requests of one token for some of "
        f"64 adapters of rank 16. The others gather the matrices of each request. {_ABOUT_BLOCKS}"
    )
    return Table("Adapters", about, ("", *_BLOCKS, "steps by torch"), tuple(rows))


def _decode(results: Json) -> Table:
    measured = _of_kind(results, "decode")
    names = dict.fromkeys(n for part in measured for n in part["median_s"] if n != "fuseline")
    others = [n for n in names if n != "eager"] + ["eager"] * ("eager" in names)
    read = _ceiling(results).get("read_bytes_per_s")
    rows = tuple(
        (
            f"{SUBJECTS[part['subject']].title}, batch {part['size']}",
            *_compared(part, others, 1e-3),
            f"{part['weight_bytes'] / 1e9:.2f}",
            f"{1e3 * part['weight_bytes'] / read:.2f}" if read else "",
            _by_torch(part),
            _commit(results, part),
        )
        for part in measured
    )
    about = (
        "Milliseconds of a step, the median, until its logits are there, over a static cache of "
        "1024 tokens; and how many times as long the others take. Weights: gigabytes that the step "
        "reads, of experts those that have tokens; floor: milliseconds that reading them takes."
    )
    ratios = [f"x {name}" for name in others]
    header = ("", "fuseline", *others, *ratios, "weights", "floor", "steps by torch", "commit")
    return Table("Decode steps", about, header, rows)


def _prefill(results: Json) -> Table:
    others = ("torch.compile", "eager")
    rows = tuple(
        (
            f"{SUBJECTS[part['subject']].title}, {part['size']} tokens",
            *_compared(part, others, 1e-3),
            _by_torch(part),
            _commit(results, part),
        )
        for part in _of_kind(results, "prefill")
    )
    about = (
        "Milliseconds of a prompt, the median, until its logits are there, without a cache; and "
        "how many times as long the others take. Most of it is large products, by one library for "
        "all."
    )
    ratios = [f"x {name}" for name in others]
    header = ("", "fuseline", *others, *ratios, "steps by torch", "commit")
    return Table("Prompts", about, header, rows)


def _launches(results: Json) -> Table:
    rows = tuple(
        (
            "decode step of 32 layers",
            str(part["launches"]),
            _cell(part["ns_per_launch"], 1),
            _cell(part["median_s"]["step"], 1e-6),
            _commit(results, part),
        )
        for part in _of_kind(results, "launches")
    )
    about = "What the host does outside of graphs: the step's time has the guards of torch in it."
    header = ("", "native launches", "ns each", "us of the step", "commit")
    return Table("Launching", about, header, rows)


def _failures(results: Json) -> Table:
    rows: list[tuple[str, ...]] = []
    for name, part in results["parts"].items():
        errors = {"": part["error"]} if "error" in part else part.get("errors", {})
        rows += [(f"{name} {who}".strip(), text.replace("|", "/")) for who, text in errors.items()]
    return Table("Failures", "What was not measured, and why.", ("", "error"), tuple(rows))
