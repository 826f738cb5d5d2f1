"""What is kept of one compiled func, and what the report says of it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from fuseline.build import Built
from fuseline.debug.page.look import Look
from fuseline.ir.core import Func, Op, Value
from fuseline.ir.layout import Layout
from fuseline.report import (
    FROM_CACHE,
    OP_BY_OP,
    CostRecord,
    GraphRecord,
    PassRecord,
    Report,
    Site,
    Stat,
)
from fuseline.runtime.executor import Program
from fuseline.runtime.graphs import Graphed
from fuseline.runtime.native import MOST_SHARES
from fuseline.runtime.plan import LibraryStep, NativeStep

if TYPE_CHECKING:
    from fuseline.debug.page.program import Made


@dataclass(frozen=True)
class Outcome:
    """What is kept of what the passes did to a func: their run holds every op that there was."""

    sites: tuple[Site, ...]
    rewrites: int = 0
    passes: tuple[PassRecord, ...] = ()
    places: tuple[int, ...] = ()
    """Where in the func the op is that does the work of each site; -1 where none does."""
    costs: tuple[CostRecord, ...] = ()

    def with_kernels(self, ops: Sequence[Op], built: Built) -> Outcome:
        """The outcome with the kernels of its sites and what these choose, or why there is none.

        ``ops`` are the func's after all passes.
        """
        done = built.assembled
        sites: list[Site] = []
        for site, place in zip(self.sites, self.places, strict=True):
            op = ops[place] if place >= 0 else None
            if op is None:
                sites.append(replace(site, kernel=""))
                continue
            refusal = done.refusals.get(op, "")
            details = dict(site.details) | dict(done.forms.get(op, {}))
            details |= {"no kernel": refusal} if refusal else {}
            kernel = done.symbols.get(op, "")
            sites.append(replace(site, kernel=kernel, details=details))
        return replace(self, sites=tuple(sites))


@dataclass
class Compilation:
    """One compiled func, and what the report says of it; `restored` if it is from the cache."""

    name: str
    outcome: Outcome
    built: Built
    seconds: dict[str, float]
    func: Func
    layouts: Mapping[Value, Layout]
    device: torch.device = torch.device("cpu")
    restored: bool = False
    program: weakref.ref[Program] | None = None
    graphed: weakref.ref[Graphed] | None = None
    op_by_op: str = ""
    """Why it runs op by op, by torch, where it does."""
    look: Look = field(default_factory=Look)
    """What is kept of it for pages."""

    @property
    def waits(self) -> bool:
        """Whether it is from the cache, and not in use: not called for yet, or given up since."""
        if not self.restored or self.program is None:
            return False
        program = self.program()
        return program is None or not program.used

    def made(self, threads: int) -> Made:
        """What pages show of it; ``threads`` are those that steps may use."""
        from fuseline.debug.page.plans import Planned
        from fuseline.debug.page.program import Made

        built, done = self.built, self.built.assembled
        return Made(
            planned=Planned(self.func, done.plan, done.owners, done.lives, done.buffers),
            records=done.records,
            sources=built.shown(),
            ptx={symbol: binary.ptx for symbol, binary in built.binaries.items() if binary.ptx},
            sites=self.outcome.sites,
            seconds=dict(self.seconds),
            threads=min(threads, MOST_SHARES) if self.device.type == "cpu" else 1,
        )

    def report(self) -> Report:
        """Sites, kernels, passes and numbers."""
        steps = self.built.assembled.plan.steps
        native = sum(isinstance(step, NativeStep) for step in steps)
        libraries = sum(isinstance(step, LibraryStep) for step in steps)
        program = self.program() if self.program else None
        stats: dict[str, Stat] = {
            "programs": 1,
            "native steps": native,
            "host steps": len(steps) - native - libraries,
        }
        if program is not None:  # it may run op by op, or be done with
            stats["bytes of planned buffers"] = program.arena_bytes
        stats |= {"library steps": libraries} if libraries else {}
        stats |= {f"{OP_BY_OP}{self.op_by_op}": 1} if self.op_by_op else {}
        stats |= self._recorded()
        if self.built.target.backend == "cuda":
            padded = self.built.assembled.plan.unpadded
            stats |= {f"size {n} is not rounded up for graphs: {r}": 1 for n, r in padded.items()}
        stats |= {FROM_CACHE: 1} if self.restored else {"rewrites": self.outcome.rewrites}
        stats |= {f"seconds to {stage}": value for stage, value in self.seconds.items()}
        records = self.built.assembled.records
        graphs = tuple(self._graphs())
        found = self.outcome
        return Report(found.sites, records, found.passes, stats, graphs, found.costs)

    def _graphs(self) -> Iterator[GraphRecord]:
        """What there is for each set of sizes."""
        graphed = self.graphed() if self.graphed else None
        if graphed is None:
            return
        counts = {v.symbol: f"{v.name} ({v.symbol})" for v in graphed.program.plan.variants}
        for r in graphed.sizes:
            sizes = {counts.get(symbol, symbol): value for symbol, value in r.sizes.items()}
            yield GraphRecord(
                *(self.name, sizes, r.kind, r.calls, r.replays, r.graphs, r.nbytes, r.seconds),
                reason=r.reason,
            )

    def _recorded(self) -> dict[str, Stat]:
        """What graphs there are, what they hold and took; and why sizes have none."""
        graphed = self.graphed() if self.graphed else None
        if graphed is None:
            return {}
        stats: dict[str, Stat] = {
            "graphs recorded": graphed.recorded,
            "bytes of graphs": graphed.nbytes,
            "seconds to record": graphed.seconds,
        }
        return stats | {f"sizes without a graph: {r}": n for r, n in graphed.reasons.items()}


__all__ = ["Compilation", "Outcome"]
