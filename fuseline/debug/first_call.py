"""The first call of a program under `check_numerics`: its passes are checked on the real arguments.

The passes run once more for that, on a func of their own, so that what is built is what is built
without the check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from fuseline.debug.numerics import Numerics
from fuseline.frontend.captured import Argument
from fuseline.frontend.execute import Compiled
from fuseline.report import NumericsRecord


@dataclass
class CheckedAtFirst:
    """A compiled program that is checked when it is first called.

    Attributes:
        run: the program.
        check: runs the passes on these arguments, with the observer that it gives.
        note: told of what was found, where nothing ended the run.
    """

    run: Compiled
    check: Callable[[Sequence[Argument]], Numerics]
    note: Callable[[Sequence[NumericsRecord]], None]
    _done: bool = False

    def __call__(self, arguments: Sequence[Argument]) -> Sequence[Tensor]:
        """Run the program; the first time, after its passes were checked, and then its kernels are.

        Raises:
            PassError: FL0410, at every call while a rewrite breaks the numbers rule.
        """
        if self._done:
            return self.run(arguments)
        numerics = self.check(arguments)
        results = self.run(arguments)
        numerics.kernels(results, arguments)
        self.note(numerics.records)
        self._done = True
        return results


__all__ = ["CheckedAtFirst"]
