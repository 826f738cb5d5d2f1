"""The parts of a run, the most telling ones first, and about how long each takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.common import Json
from benchmarks.gpu import adapters, ceilings, decode, experts, launches, prefill, rows
from benchmarks.gpu.device import Device

TOKENS = (1, 8, 64, 512, 4096, 8192)
EXPERT_TOKENS = (1, 8, 64, 512)
BATCHES = (1, 8, 32)
ACTIVE = (1, 8, 64)
PROMPTS = (512, 4096)

SECONDS = {
    "ceilings": 5,
    "rows": 5,
    "experts": 12,
    "adapters": 4,
    "decode": 35,
    "prefill": 30,
    "launches": 20,
}
"""An estimate for an H100 with empty caches."""

MODES = {"reduce-overhead": 0, "max-autotune": 110}
"""Of torch.compile for decode steps, and what each adds to the estimate."""


@dataclass(frozen=True)
class Options:
    """What is measured of every part.

    Attributes:
        modes: of torch.compile for decode steps.
        without: contenders that are left out.
    """

    modes: tuple[str, ...] = ("reduce-overhead",)
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """One part: a kind, and for most a subject and its size (tokens, or sequences in a batch)."""

    kind: str
    subject: str = ""
    size: int = 0

    @property
    def name(self) -> str:
        """Its key in the results: unique, and the same in every run."""
        return "/".join([self.kind, self.subject, str(self.size or "")]).strip("/")

    def seconds(self, options: Options) -> float:
        """About how long it takes."""
        more = sum(MODES[mode] for mode in options.modes) if self.kind == "decode" else 0
        return SECONDS[self.kind] + more

    def run(self, device: Device, options: Options) -> Json:
        """Its results."""
        started = time.monotonic()
        try:
            with torch.no_grad():
                found = self._measure(device, options)
        finally:
            device.tidy()
        facts: Json = {"kind": self.kind, "subject": self.subject, "size": self.size}
        return facts | {"took_s": time.monotonic() - started} | found

    def _measure(self, device: Device, options: Options) -> Json:
        match self.kind:
            case "ceilings":
                return ceilings.measure(device)
            case "rows":
                return rows.measure(device, self.subject, self.size, options.without)
            case "experts":
                return experts.measure(device, self.size, options.without)
            case "adapters":
                return adapters.measure(device, self.size, options.without)
            case "decode":
                modes, without = options.modes, options.without
                return decode.measure(device, self.subject, self.size, modes, without)
            case "prefill":
                return prefill.measure(device, self.subject, self.size, options.without)
            case "launches":
                return launches.measure(device)
            case _:
                raise ValueError(self.kind)


def parts(*, quick: bool) -> list[Part]:
    """All parts; quick ones are few and tiny."""
    tokens, expert_tokens, batches, active = TOKENS, EXPERT_TOKENS, BATCHES, ACTIVE
    prompts = PROMPTS
    if quick:
        tokens, expert_tokens, batches, active, prompts = (3,), (3,), (2,), (2,), (7,)
    steps = {n: [Part("decode", name, n) for name in decode.SUBJECTS] for n in batches}
    first, *others = batches
    return [
        Part("ceilings"),
        *steps[first],
        *(Part("rows", name, n) for name in rows.ROWS for n in tokens),
        *(Part("experts", "qwen3_moe", n) for n in expert_tokens),
        *(Part("adapters", "linear", n) for n in active),
        Part("launches"),
        *(Part("prefill", name, n) for n in prompts for name in decode.SUBJECTS),
        *(part for n in others for part in steps[n]),
    ]


def left_out(results: Json, expected: Sequence[Part]) -> list[str]:
    """The names of parts that there is nothing of."""
    return [part.name for part in expected if part.name not in results["parts"]]
