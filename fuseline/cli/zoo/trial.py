"""The trial of one model: compiled, and compared with eager and with the float64 oracle."""

from __future__ import annotations

import copy
import importlib
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

import fuseline
from fuseline.cli.zoo.models import Built, build, logits, tokens
from fuseline.cli.zoo.results import Miss, Mode, Result
from fuseline.cli.zoo.worker import one_line
from fuseline.config import Config
from fuseline.debug.oracle import oracle, relative_error
from fuseline.report import BREAK, PLAIN, Report

for _slow in ("torch._dynamo", "transformers.generation", "fuseline.compiler"):
    importlib.import_module(_slow)  # here, once for all workers

Keep: TypeAlias = Callable[[Result], None]
Run: TypeAlias = Callable[[Any, int], list[Tensor]]
"""Runs a model, or what was compiled of it, on the tokens of a seed; gives the logits."""

SHAPES = ((2, 7), (3, 13), (1, 1))
"""Batch and length of the prefills."""

STEPS = 3
CONTEXT = 24
AGREES = 1e-2
"""How far the logits through a static cache may be off those without, relative to them."""

SEEDS = 10
"""Of a model that breaks the rule at the first one: see `measure`."""


@dataclass(frozen=True)
class Errors:
    """Of one output, relative to the float64 oracle: ours, eager's own, the largest that is right,
    and the largest that were right for eager beside ours.
    """

    ours: float
    eager: float
    allowed: float
    eager_allowed: float

    @property
    def excess(self) -> float:
        """Above 1 where the numbers rule is broken."""
        return self.ours / self.allowed


def examine(name: str, dtype: str, config: Config, keep: Keep) -> Result:
    """Compile a tiny model of an architecture, and compare its numbers.

    Args:
        name: of the architecture.
        dtype: of the weights.
        config: the options of the compilation.
        keep: called with what is known so far, before each stage.
    """
    torch.set_num_threads(1)
    result = Result(name, dtype)
    keep(result)
    built = build(name)
    result = replace(result, structures=built.structures, stage="choosing a cache")
    keep(result)
    kind, why_not = _cache_kind(built)
    result = replace(result, cache=kind, why_not_static=why_not, stage="prefill")
    keep(result)
    built.model.to(getattr(torch, dtype))
    result = replace(result, prefill=_mode(built, _prefill(built), config.replace(dynamic=True)))
    if kind != "none":
        result = replace(result, stage="decode")
        keep(result)
        result = replace(result, decode=_mode(built, _decode(built, kind), config))
    return replace(result, stage="done")


def _prefill(built: Built) -> Run:
    def run(program: Any, seed: int) -> list[Tensor]:
        return [built(program, tokens(*shape, seed=seed + sum(shape))) for shape in SHAPES]

    return run


def _decode(built: Built, kind: str) -> Run:
    def run(program: Any, seed: int) -> list[Tensor]:
        state = _static_cache(built.model) if kind == "static" else None
        found: list[Tensor] = []
        for step in range(STEPS + 1):
            ids = tokens(2, 1 if step else 7, seed=seed + step)
            extra = {} if state is None else {built.state: state}
            out = program(input_ids=ids, use_cache=True, **extra)
            state = getattr(out, built.state, state)
            found.append(logits(out))
        return found

    return run


def _mode(built: Built, run: Run, config: Config) -> Mode:
    """Compile a model, run it and compare."""
    cast("Any", torch).compiler.reset()
    compiled = fuseline.compile(built.model, config=config.replace(reuse=False))
    try:
        with torch.no_grad():
            errors = measure(built.model, compiled, run, config.tolerance)
    except Exception as error:  # of any part of the compiler, or of what it made
        return Mode(failure=one_line(error))
    return noted(cast("Any", compiled).report(), errors)


def measure(model: nn.Module, compiled: Any, run: Run, tolerance: float) -> list[list[Errors]]:
    """The errors of each output, for each seed: several if one of the first is too large."""
    found = [measured(model, compiled, run, 0, tolerance)]
    if any(errors.excess > 1 for errors in found[0]):
        found += [measured(model, compiled, run, 100 * n, tolerance) for n in range(1, SEEDS)]
    return found


def measured(
    model: nn.Module, compiled: Any, run: Run, seed: int, tolerance: float
) -> list[Errors]:
    """The errors of each output with the tokens of one seed."""
    eager = run(model, seed)
    ours = run(compiled, seed)
    wide = copy.deepcopy(model).double()
    exact = oracle(lambda: run(wide, seed))
    triples = zip(ours, eager, exact, strict=True)
    return [_compared(*triple, tolerance) for triple in triples]


def _compared(ours: Tensor, eager: Tensor, exact: Tensor, tolerance: float) -> Errors:
    own, theirs = relative_error(ours, exact), relative_error(eager, exact)
    unit = torch.finfo(eager.dtype).eps
    return Errors(own, theirs, tolerance * theirs + unit, tolerance * own + unit)


def _cache_kind(built: Built) -> tuple[str, str]:
    """``static``, ``default`` or ``none``: what a model's decoding keeps, and why not a static one.

    A static cache counts where the logits through it are those of a prefill without.
    """
    if not built.state:
        return "none", "the model takes no cache"
    why_not = "it is not called past_key_values"
    if built.state == "past_key_values":
        why_not = _why_not(built, "static")
        if not why_not:
            return "static", ""
    default = _why_not(built, "default")
    return ("default", why_not) if not default else ("none", f"{why_not}; its own: {default}")


def _why_not(built: Built, kind: str) -> str:
    """Why a model does not decode with a cache; empty where it does."""
    with torch.no_grad():
        try:
            steps = _decode(built, kind)(built.model, 0)
            ids = torch.cat([tokens(2, 1 if s else 7, seed=s) for s in range(STEPS + 1)], 1)
            whole = built(built.model, ids)[:, -1:]
        except Exception as error:  # whatever the model's code trips over
            return one_line(error)
    gap = relative_error(steps[-1][:, -1:], whole)
    return "" if gap <= AGREES else f"its logits are off by {gap:.1g}"


def _static_cache(model: nn.Module) -> Any:
    from transformers import StaticCache

    return StaticCache(config=cast("Any", model).config, max_cache_len=CONTEXT)


def noted(report: Report, seeds: list[list[Errors]]) -> Mode:
    """What a report says, and the errors: of the worst output, or in the middle of many."""
    outputs = [errors for seed in seeds for errors in seed]
    worst = max(outputs, key=lambda errors: errors.excess)
    error, eager_error = worst.ours, worst.eager
    if len(seeds) > 1:
        error = statistics.median(e.ours for e in outputs)
        eager_error = statistics.median(e.eager for e in outputs)
    counts = report.stats
    breaks = {n.removeprefix(BREAK): int(c) for n, c in counts.items() if n.startswith(BREAK)}
    host = Counter[str]()
    for kernel in report.kernels:
        if kernel.status == "reference":
            host[kernel.symbol] += kernel.launches
    missed = Counter((s.pattern, s.reason) for s in report.sites if s.status == "missed")
    return Mode(
        graphs=int(counts.get("graphs", 0)),
        breaks=breaks,
        plain=tuple(dict.fromkeys(str(c) for n, c in counts.items() if n.startswith(PLAIN))),
        fused=dict(Counter(s.pattern for s in report.sites if s.status == "fused")),
        missed=tuple(Miss(*key, count) for key, count in missed.items()),
        error=error,
        eager_error=eager_error,
        allowed=worst.allowed,
        seeds=len(seeds),
        outputs=len(outputs),
        outside=sum(e.excess > 1 for e in outputs),
        eager_outside=sum(e.eager > e.eager_allowed for e in outputs),
        native=int(counts.get("native steps", 0)),
        host=dict(host),
    )
