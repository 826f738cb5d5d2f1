"""How commands load a model and compile it: the steps that this is done in, and a count."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from fuseline.cli.models import LoadedModel, Program
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


@dataclass
class Tally:
    """The kernels that were needed, by name: those that were built, and those that were there."""

    built: set[str] = field(default_factory=set[str])
    found: set[str] = field(default_factory=set[str])

    def add(self, item: Progress) -> None:
        """Count a kernel once, however many programs call it: the others find what one built."""
        if item.built:
            self.built.add(item.name)
            self.found.discard(item.name)
        elif item.name not in self.built:
            self.found.add(item.name)

    def __str__(self) -> str:
        built, found = len(self.built), len(self.found)
        kernels = f"{built + found} {'kernel' if built + found == 1 else 'kernels'}"
        if not built:
            return f"{kernels} from the cache, none built"
        return (
            f"{kernels} built" if not found else f"{kernels}: {built} built, {found} from the cache"
        )


def loaded(arguments: argparse.Namespace, config: Config, out: Output) -> LoadedModel:
    """The model that a command was given, with inputs of the shape that it was given.

    Raises:
        LoadError: for a model that cannot be read.

    """
    with out.step(f"loading {arguments.model}"):
        from fuseline.cli import models

        return models.load(
            arguments.model,
            config,
            dtype=arguments.dtype,
            batch=arguments.batch,
            length=arguments.length,
        )


@contextmanager
def step(out: Output) -> Generator[Show]:
    """The step of a command that compiles and runs the first calls.

    What fails in it is reported by a diagnostic; what torch logs of it meanwhile is for those who
    look for bugs.
    """
    from fuseline._torch import tracing_errors_to

    with out.step("compiling") as show, tracing_errors_to(logger):
        yield show


def compile_program(
    program: Program, config: Config, show: Show, tally: Tally | None = None
) -> Compiled:
    """`fuseline.compile`; `show` is told of every kernel that is there, and `tally` counts them."""
    import fuseline

    def progress(item: Progress) -> None:
        if tally is not None:
            tally.add(item)
        how = "built" if item.built else "found"
        show(f"{item.done} of {item.total}, {how} {item.name}")

    own = getattr(program, "compile_for", None)  # of an ONNX model
    if own is not None:
        return cast("Compiled", own(config, progress))
    return cast("Compiled", fuseline.compile(program, config=config, progress=progress))
