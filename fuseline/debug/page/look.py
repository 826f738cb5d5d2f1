"""How a compilation tells the pages that it is to be on what it does.

Where nobody has asked for a page, nothing is kept, and nothing that makes one is imported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fuseline.config import Config
from fuseline.errors import FuselineError, InternalError, warn
from fuseline.ir.core import Func
from fuseline.passes.manager import Observer
from fuseline.runtime.plan import Step

if TYPE_CHECKING:
    from fuseline.debug.page.page import Page
    from fuseline.debug.page.program import Made, Program
    from fuseline.passes.record import Run
    from fuseline.runtime.executor import Program as Executable

Runnable = Callable[[Sequence[Any]], Sequence[Tensor]]


@dataclass(frozen=True)
class Look:
    """What is kept of one program, and the pages that show it; none: nothing is kept."""

    program: Program | None = None
    pages: tuple[Page, ...] = ()

    @classmethod
    def of(
        cls,
        config: Config,
        name: str,
        target: str,
        sizes: Callable[[], Mapping[str, int]],
        folder: Path | None = None,
    ) -> Look:
        """What the options ask for.

        Args:
            config: the options.
            name: of the program.
            target: what it is compiled for.
            sizes: gives what its symbols were in the example.
            folder: of its dump, where there is one: a page of its own lies there.

        """
        if config.html is None and folder is None:
            return cls()
        from fuseline.debug.case import given_options
        from fuseline.debug.page.page import Page, page_at
        from fuseline.debug.page.program import Program

        pages = [] if config.html is None else [page_at(config.html)]
        if folder is not None:
            pages.append(Page(folder / "index.html", alone=True))
        pages = [page for page in pages if page.has_room()]
        if not pages:
            return cls()
        options = {k: v for k, v in given_options(config).items() if k != "target"}
        options |= {"disable": ",".join(config.disable)} if config.disable else {}
        return cls(Program(name, target, sizes(), options), tuple(pages))

    @property
    def observers(self) -> list[Observer]:
        """What the pass manager is to tell."""
        return [] if self.program is None else [self.program.watch]

    def start(self, func: Func) -> None:
        """The func before all passes: from now on the program is on its pages."""
        if self.program is not None:
            self.program.start(func)
            for page in self.pages:
                page.add(self.program)

    def passed(self, run: Run) -> None:
        """All passes have run."""
        if self.program is not None:
            self.program.passed(run)

    def made(self, made: Callable[[], Made]) -> None:
        """The program can be run, also where its pages cannot be written any more."""
        if self.program is not None:
            self.program.made(made())
            for page in self.pages:
                _try_to_write(page)

    def write(self) -> None:
        """Have what is known in the files.

        Raises:
            UsageError: FL0101, if a page cannot be written.

        """
        for page in self.pages:
            page.write()

    @contextmanager
    def holding(self) -> Generator[None]:
        """What fails within is said on the pages, with all that was known before."""
        try:
            yield
        except Exception as error:
            if self.program is not None:
                self._failed(self.program, error)
            raise

    def _failed(self, program: Program, error: Exception) -> None:
        text = str(error)
        if not isinstance(error, (FuselineError, InternalError)):
            text = f"{type(error).__name__}: {error}"
            text = f"{program.watch.running}: {text}" if program.watch.running else text
        for page in self.pages:
            page.note(f"{program.name}: {text}")
            _try_to_write(page)  # the error itself matters more

    def sampled(self, executable: Executable, run: Runnable) -> Runnable:
        """A program whose steps are timed one by one while samples are taken."""
        program = self.program
        if program is None:
            return run

        def call(given: Sequence[Any]) -> Sequence[Tensor]:
            if not any(page.sampling for page in self.pages):
                return run(given)
            timer = _Timer(executable.device)
            results = executable.run_stepwise(given, timer)
            for step, seconds in timer.found():
                program.sampled(step, seconds)
            return results

        return call


def tell(config: Config, text: str) -> None:
    """Say something above the programs of the page that the options ask for, if they do."""
    if config.html is None:
        return
    from fuseline.debug.page.page import page_at

    page = page_at(config.html)
    if page.note(text):
        _try_to_write(page)


def _try_to_write(page: Page) -> None:
    try:
        page.write()
    except FuselineError as problem:
        warn(problem.diagnostic)


@dataclass
class _Timer:
    """Times steps: by the clock of the CPU, or by events on a GPU."""

    device: torch.device
    marks: list[tuple[Step, Any, Any]] = field(default_factory=list[tuple[Step, Any, Any]])

    @contextmanager
    def __call__(self, step: Step) -> Generator[None]:
        """Time what is done within."""
        start = self._now()
        yield
        self.marks.append((step, start, self._now()))

    def _now(self) -> Any:
        if self.device.type == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def found(self) -> list[tuple[Step, float]]:
        """The seconds of each step."""
        if self.device.type == "cpu":
            return [(step, end - start) for step, start, end in self.marks]
        torch.cuda.synchronize(self.device)
        return [(step, start.elapsed_time(end) / 1e3) for step, start, end in self.marks]


__all__ = ["Look", "tell"]
