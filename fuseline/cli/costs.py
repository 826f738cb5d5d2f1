"""The account of a model, layer by layer: ops, bytes and operations in eager and as compiled,
and the least time that they take.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from fuseline.cli.output import columns
from fuseline.cli.timing import in_turns
from fuseline.cli.units import bytes_text
from fuseline.debug.machine import Machine, machine_of
from fuseline.errors import BAD_ARGUMENT
from fuseline.report import OP_BY_OP, layer_of
from fuseline.report_tables import digits, large

if TYPE_CHECKING:
    from fuseline.cli.compiling import Compiled
    from fuseline.cli.models import LoadedModel
    from fuseline.cli.output import Output
    from fuseline.report import CostRecord, Report

_FORMS = ("eager", "compiled")
_RUNS = 10
"""Calls that are timed."""


@dataclass(frozen=True)
class Layer:
    """What one layer costs in one form: ``ops`` counts those that move or compute anything, each a
    kernel in eager, and one or more as compiled.
    """

    ops: int
    bytes: int
    flops: int
    seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is about costs."""
    parser.add_argument(
        "--cost",
        action="store_true",
        help="only the account: ops, bytes and flops of each layer, in eager and as compiled, "
        "the least time that they take, and where the model runs here, what it took",
    )
    parser.add_argument(
        "--bandwidth", type=_positive, help="GB/s of --cost (default: measured; of a GPU, known)"
    )
    parser.add_argument(
        "--rate", type=_positive, help="TFlop/s of --cost (default: measured; of a GPU, known)"
    )


def _positive(words: str) -> float:
    try:
        value = float(words)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{words!r} is not a number above 0")
    return value


def check(arguments: argparse.Namespace) -> None:
    """Refuse figures for an account that is not asked for.

    Raises:
        UsageError: FL0103.

    """
    for name in ("bandwidth", "rate"):
        if getattr(arguments, name) is not None and not arguments.cost:
            raise BAD_ARGUMENT.error(f"--{name}", found="one without --cost", expected="both")


def run(
    arguments: argparse.Namespace,
    loaded: LoadedModel,
    compiled: Compiled,
    report: Report,
    out: Output,
) -> None:
    """Print the account of a model that was compiled with ``Config(cost=True)``."""
    target = next((k.target for k in report.kernels if k.target), "cpu")
    bandwidth = None if arguments.bandwidth is None else arguments.bandwidth * 1e9
    rate = None if arguments.rate is None else arguments.rate * 1e12
    machine = machine_of(target, bandwidth, rate)
    found = layers(report.costs, machine)
    measured: dict[str, float] = {}
    if not any(name.startswith(OP_BY_OP) for name in report.stats):
        with out.step("timing"), _without_gradients():
            times = in_turns(loaded.model, compiled, loaded, _RUNS)
        measured = dict(zip(_FORMS, times, strict=True))
    outside = report.outside()
    data: dict[str, object] = {
        "machine": asdict(machine),
        "layers": {n: {f: asdict(c) for f, c in forms.items()} for n, forms in found.items()},
        "total": {form: asdict(cost) for form, cost in totals(found.values()).items()},
        "measured_s": measured,
        "not_counted": outside,
        "ops": [asdict(record) for record in report.costs],
    }
    out.result(data, text(found, machine, measured, outside))


def _without_gradients() -> AbstractContextManager[object]:
    import torch

    return torch.no_grad()


def layers(records: Iterable[CostRecord], machine: Machine) -> dict[str, dict[str, Layer]]:
    """The cost of each layer in each form, in the order of the program."""
    found: dict[str, dict[str, list[CostRecord]]] = {}
    for record in records:
        forms = found.setdefault(layer_of(record.module), {form: [] for form in _FORMS})
        forms[record.form].append(record)
    return {
        name: {form: _sum(items, machine) for form, items in forms.items()}
        for name, forms in found.items()
    }


def totals(found: Iterable[dict[str, Layer]]) -> dict[str, Layer]:
    """All layers together."""
    items = list(found)
    return {form: _added([item[form] for item in items]) for form in _FORMS}


def text(
    found: dict[str, dict[str, Layer]],
    machine: Machine,
    measured: Mapping[str, float],
    outside: Sequence[str] = (),
) -> str:
    """A table: like layers that follow one another share a row; and what calls took.

    What is ``outside`` of the account is told, and then times are compared with nothing: they are
    those of the whole model.
    """
    cells = [cell for form in _FORMS for cell in (f"{form}: ops", "bytes", "flops", "at least")]
    rows = [["layer", "", *cells]]
    for _, group in groupby(found.items(), key=lambda item: (_kind(item[0]), *_row(item[1]))):
        names = [name for name, _ in group]
        first, last = names[0], names[-1]
        many = f"x{len(names)}" if len(names) > 1 else ""
        span = first if first == last else f"{first}..{last.rpartition('.')[2]}"
        rows.append([span or "(no layer)", many, *_row(found[first])])
    rows.append(["all", "", *_row(totals(found.values()))])
    lines = [columns(rows, indent=""), "", f"at least: by {machine}"]
    lines += [f"not in the account: {line}" for line in outside]
    if outside:
        lines.append("each graph counts once, however often it runs in a call")
    least = totals(found.values())
    for form, seconds in measured.items():
        told = f"{form}: {time_text(seconds)} measured"
        if outside:
            told += ", of the whole model"
        elif floor := least[form].seconds:
            told += f", {digits(seconds / floor)} times that"
        lines.append(told)
    if not measured:
        lines.append("not timed: the kernels do not run here")
    return "\n".join(lines)


def _kind(layer: str) -> str:
    head, _, last = layer.rpartition(".")
    return head if last.isdigit() else layer


def _row(forms: dict[str, Layer]) -> list[str]:
    return [
        cell
        for form in _FORMS
        for cell in (
            str(forms[form].ops),
            bytes_text(forms[form].bytes),
            large(forms[form].flops),
            time_text(forms[form].seconds),
        )
    ]


def time_text(seconds: float) -> str:
    """A short time for people."""
    for factor, unit in ((1e6, "us"), (1e3, "ms")):
        if float(told := digits(seconds * factor)) < 1000:
            return f"{told} {unit}"
    return f"{digits(seconds)} s"


def _sum(records: Sequence[CostRecord], machine: Machine) -> Layer:
    return Layer(
        len(records),
        sum(r.bytes for r in records),
        sum(r.flops for r in records),
        sum(map(machine.seconds, records)),
    )


def _added(items: Sequence[Layer]) -> Layer:
    return Layer(
        sum(i.ops for i in items),
        sum(i.bytes for i in items),
        sum(i.flops for i in items),
        sum(i.seconds for i in items),
    )


__all__ = ["Layer", "add_arguments", "check", "layers", "run"]
