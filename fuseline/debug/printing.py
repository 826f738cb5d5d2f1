"""Printing the IR around passes, as it runs: an observer of the pass manager.

What is printed is valid input again: the lines that say which pass it was are comments.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field

from fuseline.ir.core import Func
from fuseline.ir.text import print_func
from fuseline.passes.record import Run
from fuseline.passes.rewrite import Pass
from fuseline.report import PassRecord

Selection = Callable[[str], bool]
"""Whether the pass of a name is one to print around."""


def nothing(name: str) -> bool:
    """The selection of no pass."""
    del name
    return False


@dataclass
class Printer:
    """Prints the func before and after passes, or what passes changed.

    Attributes:
        show: takes what is printed.
        before: passes before which the func is printed.
        after: passes after which it is printed.
        only_changed: leave out the passes that changed nothing, of those in ``after``.
        diff: print a unified diff of each pass that changed something.
        locations: print where in the model each op comes from.
    """

    show: Callable[[str], None]
    before: Selection = nothing
    after: Selection = nothing
    only_changed: bool = False
    diff: bool = False
    locations: bool = True
    _text: str | None = field(default=None, init=False)

    def before_pass(self, func: Func, pass_: Pass) -> None:
        """Print the func as the pass will get it, if asked."""
        if self.diff and self._text is None:
            self._text = print_func(func, locations=self.locations)
        if self.before(pass_.name):
            self._print(f"IR before {pass_}", print_func(func, locations=self.locations))

    def after_pass(self, func: Func, pass_: Pass, record: PassRecord, run: Run) -> None:
        """Print the func as the pass left it, or what it changed, if asked."""
        del run
        if self.after(pass_.name) and (record.changed or not self.only_changed):
            self._print(f"IR after {pass_}", print_func(func, locations=self.locations))
        if self.diff and record.changed:
            before, self._text = self._text or "", print_func(func, locations=self.locations)
            self._print(f"Change by {pass_}", unified(before, self._text, pass_.name))

    def _print(self, title: str, text: str) -> None:
        self.show(f"// -----// {title} //----- //\n{text}")


def unified(before: str, after: str, name: str) -> str:
    """The unified diff of two texts, before and after what has this name."""
    lines = difflib.unified_diff(
        *(before.splitlines(), after.splitlines(), f"before {name}", f"after {name}"),
        lineterm="",
        n=2,
    )
    return "".join(f"{line}\n" for line in lines)


__all__ = ["Printer", "Selection", "nothing", "unified"]
