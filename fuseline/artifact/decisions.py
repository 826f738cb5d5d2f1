"""The decision tables of a program: which kernels run for which sizes, and why these."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from fuseline.artifact.program import HostOp, PlanFile, ProgramFile
from fuseline.report import Choice, KernelRecord
from fuseline.runtime.plan import LibraryStep, NativeStep

Facts = dict[str, Any]

_SIZES = re.compile(r"(?:.*: )?([0-9]{1,18})(?: to ([0-9]{1,18})| (and up))?", re.DOTALL)
"""A range as `Choice.sizes` has it."""

Step = NativeStep | LibraryStep | HostOp


def decisions(file: ProgramFile) -> list[Facts]:
    """A table for each op of a program that has one; ops that are decided alike share it.

    A table has the op, its first place in the model, the number of such ops, and a row for each
    range of sizes. A row has the size that is counted, its least and its greatest value (None where
    there is none), and what runs there, in order. Each of these has its ``kind`` (``native``,
    ``library`` or ``torch``), and ``by``: what it was chosen by, ``model`` or ``measurement``, with
    what it was chosen from; ``rule``, where fuseline's own rules tell; or None, for a library next
    to kernels that were measured: the file does not tell which of the two it was.
    """
    records = {record.symbol: record for record in file.kernels}
    found: dict[str, Facts] = {}
    for _, group in groupby(zip(file.owners, file.plan.steps, strict=True), lambda each: each[0]):
        steps = [step for _, step in group]
        rows = [row for size in _sizes(steps) for row in _rows(size, steps, file.plan, records)]
        if len(rows) < 2 and not any(run["choices"] for row in rows for run in row["runs"]):
            continue
        _forget_rules(rows)
        op = steps[0].label
        alike = found.setdefault(repr((op, rows)), {"op": op, "where": "", "ops": 0, "rows": rows})
        alike["where"] = alike["where"] or _place(steps, records)
        alike["ops"] += 1
    return list(found.values())


def _sizes(steps: Iterable[Step]) -> list[object]:
    """What is counted to choose among an op's steps; None, where they run for all sizes."""
    counted = dict.fromkeys(step.when[0] for step in steps if step.when is not None)
    return list(counted) or [None]


def _rows(
    size: object, steps: Sequence[Step], plan: PlanFile, records: dict[str, KernelRecord]
) -> list[Facts]:
    """The ranges of a size, and the steps that run in each."""
    if size is None:
        return [_row(None, 0, None, steps, records)]
    bounds = [step.when[1:] for step in steps if step.when is not None and step.when[0] == size]
    begins = sorted({b for b, _ in bounds} | {e + 1 for _, e in bounds if e is not None})
    _, most = plan.ranges.get(str(size), (0, None))
    rows: list[Facts] = []
    for begin, after in zip(begins, [*begins[1:], None], strict=True):
        end = most if after is None else after - 1
        here = [step for step in steps if _runs(step, size, begin)]
        if any(step.when is not None for step in here):
            rows.append(_row(size, begin, end, here, records))
    return rows


def _runs(step: Step, size: object, value: int) -> bool:
    if step.when is None:
        return True
    counted, least, most = step.when
    return counted == size and least <= value and (most is None or value <= most)


def _row(
    size: object,
    least: int,
    most: int | None,
    steps: Iterable[Step],
    records: dict[str, KernelRecord],
) -> Facts:
    runs = [_run(step, least, most, records) for step in steps]
    return {"size": size, "least": least, "most": most, "runs": runs}


def _run(step: Step, least: int, most: int | None, records: dict[str, KernelRecord]) -> Facts:
    """One step of a row, and what it was chosen from for these sizes."""
    name, kind = _called(step)
    record = records.get(name) if kind == "native" else None
    choices = [c for c in record.choices if _meet(c, least, most)] if record else []
    by = dict.fromkeys(choice.by for choice in choices)
    return {
        "kernel": name,
        "kind": kind,
        "by": ", ".join(by) or "rule",
        "choices": [asdict(choice) for choice in choices],
    }


def _forget_rules(rows: Iterable[Facts]) -> None:
    """Where kernels of an op were measured, so may have been what runs in their place elsewhere."""
    runs = [run for row in rows for run in row["runs"]]
    if any(choice["by"] != "model" for run in runs for choice in run["choices"]):
        for run in runs:
            run["by"] = None if run["kind"] != "native" else run["by"]


def _called(step: Step) -> tuple[str, str]:
    match step:
        case NativeStep():
            return step.symbol, "native"
        case LibraryStep():
            return step.name, "library"
        case HostOp():
            return step.label, "torch"


def _meet(choice: Choice, least: int, most: int | None) -> bool:
    """Whether a choice is for some of these sizes; one for sizes that are not told, is for all."""
    found = _SIZES.fullmatch(choice.sizes)
    if found is None:
        return True
    first = int(found[1])
    last = None if found[3] else int(found[2] or first)
    return (most is None or first <= most) and (last is None or least <= last)


def _place(steps: Iterable[Step], records: dict[str, KernelRecord]) -> str:
    for step in steps:
        if isinstance(step, NativeStep) and step.where:
            return step.where
    origins = [records[name].origin for name, _ in map(_called, steps) if name in records]
    return next(filter(None, origins), "")


__all__ = ["decisions"]
