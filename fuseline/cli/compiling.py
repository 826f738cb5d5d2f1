"""The one call of the compiler that the commands make, and the step that it is made in."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from fuseline.cli.models import Program
    from fuseline.cli.output import Output, Show
    from fuseline.config import Config
    from fuseline.report import Report
    from fuseline.runtime.build import Progress

logger = logging.getLogger(__name__)


class Compiled(Protocol):
    """What compiling gives: something to call like the model, that reports what was done."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it; the first call with inputs of a kind compiles."""
        ...

    def report(self) -> Report:
        """What was compiled so far."""
        ...


@contextmanager
def step(out: Output) -> Generator[Show]:
    """The step of a command that compiles and runs the first calls.

    What fails in it is reported by a diagnostic; what torch logs of it meanwhile is for those who
    look for bugs.
    """
    from fuseline._torch import tracing_errors_to

    with out.step("compiling") as show, tracing_errors_to(logger):
        yield show


def compile_program(program: Program, config: Config, show: Show) -> Compiled:
    """`fuseline.compile`; `show` is told of every kernel that is there."""
    import fuseline

    def progress(item: Progress) -> None:
        how = "built" if item.built else "found"
        show(f"{item.done} of {item.total}, {how} {item.name}")

    return cast("Compiled", fuseline.compile(program, config=config, progress=progress))
