"""What a launch costs the host outside of graphs: a decode step of many narrow layers.

The device is idle when a step begins and is not waited for, so that only the host's work counts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

from torch import Tensor

import fuseline
from benchmarks.common import Json, Samples, medians
from benchmarks.gpu.decode import Step, Subject
from benchmarks.gpu.device import Device, Run
from fuseline.runtime.native import Piece

NARROW = Subject(
    "Qwen3, 32 layers, hidden 1024",
    "qwen3",
    {
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "num_hidden_layers": 32,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 128,
    },
    {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16},
)
"""Its step is some hundred launches, fewer than a stream holds before it makes the host wait."""


def pieces_of(run: Run) -> list[tuple[Piece, Sequence[Tensor | None]]]:
    """What a run launches natively, with the memory of that run."""
    found: list[tuple[Piece, Sequence[Tensor | None]]] = []
    original = Piece.__call__

    def record(piece: Piece, tensors: Sequence[Tensor | None]) -> None:
        found.append((piece, list(tensors)))
        original(piece, tensors)

    with mock.patch.object(Piece, "__call__", record):
        run()
    return found


def measure(device: Device) -> Json:
    """Seconds of the host: of a whole step, with the guards of torch, and of its native launches
    alone.
    """
    model = NARROW.build(device)
    own: Any = fuseline.compile(model, dynamic=False, graphs="none")
    step = Step.of(own, model, device, 1)
    for _ in range(3):
        step.rewound()
    pieces = pieces_of(step.rewound)

    def launch() -> None:
        for piece, tensors in pieces:
            piece(tensors)

    samples: Samples = {"step": [], "launches": []}
    runs: dict[str, Run] = {"step": step, "launches": launch}
    for _ in range(4 * device.rounds):
        for name, run in runs.items():
            step.rewind()
            device.wait()
            started = time.perf_counter()
            run()
            samples[name].append(time.perf_counter() - started)
    device.wait()
    launches = sum(len(piece.launches) for piece, _ in pieces)
    middle = medians(samples)
    return {
        "launches": launches,
        "ns_per_launch": 1e9 * middle["launches"] / launches if launches else None,
        "median_s": middle,
        "stats": dict(own.report().stats),
        "samples_s": samples,
    }
