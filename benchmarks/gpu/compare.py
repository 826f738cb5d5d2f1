"""Contenders against one another: each is called once and checked, and then all take turns."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

import fuseline
from benchmarks.common import Json, Samples, medians
from benchmarks.gpu.device import Device, Run
from fuseline.debug.oracle import relative_error

CALLS = 32
"""Calls in one graph: its start is short against them."""

Function = Callable[..., object]
Inputs = tuple[Tensor, ...]


@dataclass
class First:
    """What came of the first calls of contenders: how long they took, and who has failed."""

    seconds: dict[str, float] = field(default_factory=dict[str, float])
    differences: dict[str, float] = field(default_factory=dict[str, float])
    errors: dict[str, str] = field(default_factory=dict[str, str])

    def facts(self) -> Json:
        """For the results."""
        found: Json = {"first_call_s": self.seconds, "difference_to_eager": self.differences}
        return found | {"errors": self.errors} if self.errors else found


def first_calls(device: Device, runs: Mapping[str, Run], most_different: float) -> First:
    """Call everything once, so that it is compiled, and compare it with ``eager``.

    Whoever raises something, or differs from eager by more than is allowed, is noted as failed.
    """
    expected = _copied(runs["eager"]())
    first = First()
    for name, run in runs.items():
        started = time.perf_counter()
        try:
            found = run()
            device.wait()
            first.seconds[name] = time.perf_counter() - started
            if name != "eager":
                _check(first.differences, name, relative_error(found, expected), most_different)
        except Exception as error:
            first.errors[name] = failure(error)
    return first


def _check(differences: dict[str, float], name: str, found: float, most: float) -> None:
    differences[name] = found
    if not found <= most:
        raise ValueError(f"{name} differs from eager by {found:.3g}, more than {most}")


def _copied(result: object) -> list[Tensor]:
    """The tensors of a result, in memory of their own."""
    items = cast("Sequence[Tensor]", result if isinstance(result, tuple) else (result,))
    return [item.clone() for item in items]


def failure(error: Exception) -> str:
    """An error in one line; all of it goes to standard error."""
    traceback.print_exception(error)
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:400]


def in_graphs(
    device: Device,
    target: Any,
    inputs: Sequence[Inputs],
    most_different: float,
    without: Sequence[str],
) -> Json:
    """Device time of single calls of a function or module: as it is, and by both compilers.

    Args:
        device: where.
        target: what is compiled, and called with one of the inputs.
        inputs: all of one form; calls take turns with them.
        most_different: see `first_calls`.
        without: contenders to leave out.
    """
    own = fuseline.compile(target, dynamic=False, graphs="none")
    functions: dict[str, Function] = {
        "fuseline": own,
        "torch.compile": cast("Any", torch.compile)(target, dynamic=False),
        "eager": target,
    }
    functions = {name: f for name, f in functions.items() if name not in without}
    runs = {name: partial(function, *inputs[0]) for name, function in functions.items()}
    first = first_calls(device, runs, most_different)
    alive = {name: f for name, f in functions.items() if name not in first.errors}
    samples = _samples(device, alive, inputs, first)
    return {
        "input_sets": len(inputs),
        "median_s": medians(samples),
        **first.facts(),
        "stats": dict(own.report().stats),
        "samples_s": samples,
    }


def _samples(
    device: Device, functions: Mapping[str, Function], inputs: Sequence[Inputs], first: First
) -> Samples:
    """Samples of all that can be captured; who cannot is noted as failed."""
    calls = 2 if device.quick else -(-CALLS // len(inputs)) * len(inputs)
    runs: dict[str, Run] = {}
    for name, function in functions.items():
        each = [partial(function, *inputs[i % len(inputs)]) for i in range(calls)]
        try:
            runs[name] = device.captured(each, keep=len(inputs))
        except Exception as error:
            first.errors[name] = failure(error)
    return device.samples(runs, calls)
