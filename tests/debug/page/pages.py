"""Programs for the tests of pages, and what is read off them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from fuseline.assemble import Assembled, assemble
from fuseline.codegen import lowerings
from fuseline.codegen.lower import emit
from fuseline.debug.page.data import Hunk, ProgramView
from fuseline.debug.page.plans import Planned
from fuseline.debug.page.program import Made, Program
from fuseline.ir.core import Func
from fuseline.ir.layout import LayoutMap, dense
from fuseline.ir.types import IntType
from fuseline.passes.manager import PassManager
from fuseline.passes.pipeline import default_pipeline
from fuseline.passes.record import Run

assert lowerings.__all__, "importing the module registers the lowerings"


@dataclass(frozen=True)
class Shown:
    """A program, what a page shows of it, and what that was made from."""

    program: Program
    view: ProgramView
    run: Run
    assembled: Assembled


def shown(func: Func, sizes: Mapping[str, int] | None = None) -> Shown:
    """A func through the pipeline and the planner, without any kernel being built."""
    program = Program(func.name, "cpu", sizes or {})
    program.start(func)
    run = PassManager(default_pipeline(), check=True, observers=[program.watch]).run(func)
    program.passed(run)
    tensors = [a for a in func.args if not isinstance(a.type, IntType)]
    layouts = LayoutMap(func, {a: dense(a.shape) for a in tensors})
    done = assemble(func, layouts, emit(func, layouts))
    planned = Planned(func, done.plan, done.owners, done.lives, done.buffers)
    made = Made(planned, done.records, {}, {}, run.sites(), {"build": 1.0}, torch.get_num_threads())
    program.made(made)
    return Shown(program, program.view(), run, done)


def applied(before: Sequence[int], found: Sequence[Hunk]) -> list[int]:
    """A text with what hunks tell of it; what they show of it must be there."""
    after: list[int] = []
    place = 0
    for hunk in found:
        start = hunk.before - 1
        after += before[place:start]
        assert hunk.after == len(after) + 1
        old = [line for line, _ in hunk.rows if line >= 0]
        assert old == list(before[start : start + len(old)])
        after += [line for _, line in hunk.rows if line >= 0]
        place = start + len(old)
    return [*after, *before[place:]]
