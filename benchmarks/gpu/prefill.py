"""Prompts through the models of `benchmarks.gpu.decode`, without a cache: seconds until the logits
are there.

Most of the time goes to large products, which all contenders leave to the same library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

import fuseline
from benchmarks.common import Json, by_turns, medians
from benchmarks.gpu.compare import first_calls
from benchmarks.gpu.decode import MOST_DIFFERENT, SUBJECTS
from benchmarks.gpu.device import Device


def measure(device: Device, name: str, tokens: int, without: Sequence[str]) -> Json:
    """Samples and figures of one model for a prompt of so many tokens."""
    model = SUBJECTS[name].build(device)
    own: Any = fuseline.compile(model, dynamic=False)
    calls: dict[str, Callable[..., Any]] = {
        "fuseline": own,  # first: it may move weights
        "torch.compile": cast("Any", torch.compile)(model, dynamic=False),
        "eager": model,
    }
    generator = torch.Generator(device.name).manual_seed(2)
    ids = torch.randint(3, 1024, (1, tokens), generator=generator, device=device.name)
    runs = {n: partial(_logits, call, ids) for n, call in calls.items() if n not in without}
    first = first_calls(device, runs, MOST_DIFFERENT)
    alive = {n: run for n, run in runs.items() if n not in first.errors}
    for run in alive.values():
        for _ in range(3):  # graphs are recorded in the second call
            run()

    samples = by_turns(
        {n: device.waited(run) for n, run in alive.items()},
        seconds=0.1 if device.quick else 1.5,
        least=3 if device.quick else 8,
        calls=2,
        untimed=1,
        before=lambda _: device.wait(),
    )
    return {
        "median_s": medians(samples),
        **first.facts(),
        "stats": dict(own.report().stats),
        "samples_s": samples,
    }


def _logits(call: Callable[..., Any], ids: Tensor) -> Tensor:
    return call(input_ids=ids, use_cache=False).logits
