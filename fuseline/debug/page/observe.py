"""What is kept of the passes as they run: an observer of the pass manager."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field

from fuseline.debug.page.data import Hunk, PassView
from fuseline.debug.page.diffs import hunks
from fuseline.debug.page.lineage import Lineage, Readings
from fuseline.debug.page.texts import Lines, lines_of
from fuseline.ir.core import Func, Op, Value
from fuseline.passes.record import Run
from fuseline.passes.rewrite import FuncPass, Pass
from fuseline.report import PassRecord


@dataclass
class Watch:
    """Keeps what each pass did: how long it took, what it rewrote, which lines it changed.

    Attributes:
        lines: of all texts.
        text: the func's, after the latest pass.
        passes: those that have run.
        lineage: what became of ops.
        running: the pass that runs, or that raised; empty between passes.
    """

    lines: Lines = field(default_factory=Lines)
    text: tuple[int, ...] = ()
    passes: list[PassView] = field(default_factory=list[PassView])
    lineage: Lineage = field(default_factory=Lineage)
    running: str = ""
    _applied: int = 0
    _before: int = 0
    _readings: Readings = field(default_factory=dict[Op, tuple[Value, ...]])

    def start(self, func: Func) -> None:
        """The func before all passes."""
        self.text = self.lines.of(lines_of(func))

    def before_pass(self, func: Func, pass_: Pass) -> None:
        """Note what a pass over the whole func may change without a record of it."""
        self._before, self.running = len(func), str(pass_)
        if isinstance(pass_, FuncPass):
            self._readings = {op: op.operands for op in func.ops}

    def after_pass(self, func: Func, pass_: Pass, record: PassRecord, run: Run) -> None:
        """Note what the pass did."""
        rewrites = run.applied[self._applied :]
        self._applied = len(run.applied)
        self.lineage.rewritten(rewrites)
        if isinstance(pass_, FuncPass) and record.changed:
            self.lineage.edited(self._readings, func)
        self._readings, self.running = {}, ""
        before = self.text
        if record.changed:
            self.text = self.lines.of(lines_of(func))
        self.passes.append(
            PassView(
                name=str(pass_),
                about=about(pass_),
                start=sum(each.seconds for each in self.passes),
                seconds=record.seconds,
                before=self._before,
                after=len(func),
                rewrites=tuple(str(each) for each in rewrites),
                hunks=self._hunks(before),
            )
        )

    def _hunks(self, before: Sequence[int]) -> tuple[Hunk, ...]:
        if before is self.text:
            return ()
        texts = self.lines.texts
        return hunks(before, self.text, lambda line: texts[line].partition(" = ")[0])


def about(pass_: Pass) -> str:
    """The first sentence of what a pass says of itself."""
    first = inspect.cleandoc(type(pass_).__doc__ or "").partition("\n\n")[0]
    return " ".join(first.split()).partition(". ")[0].rstrip(".").replace("`", "") + "."


__all__ = ["Watch", "about"]
