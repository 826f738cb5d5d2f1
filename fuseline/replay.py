"""Does with a reproducer what a compilation does, whole or in part, and checks what comes out.

The passes are checked by the references of ops, which needs no compiler; the kernels by running
them on a CPU.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from fuseline.compiler import Compiler
from fuseline.config import PREFIX, Config
from fuseline.debug.case import Case
from fuseline.debug.numbers import Found, Measure, outcome_of_program
from fuseline.debug.trial import Kernel, Trial, Verdict
from fuseline.errors import BAD_ARGUMENT, UsageError
from fuseline.frontend.execute import Compiled
from fuseline.ir.core import Func
from fuseline.ir.evaluate import Argument
from fuseline.ir.layout import dense
from fuseline.ir.types import IntType
from fuseline.passes.gate import NONE
from fuseline.passes.known_sizes import UnknownSizeError
from fuseline.passes.manager import PassManager
from fuseline.passes.pipeline import default_pipeline
from fuseline.passes.pipeline_text import parse_pipeline
from fuseline.passes.plan import Owed, own_results
from fuseline.passes.record import Run
from fuseline.passes.rewrite import Pass
from fuseline.saved import SavedProgram

Level: TypeAlias = Literal["passes", "kernels"]

SKIP = 125
"""With this exit status a command says that it cannot tell, as with ``git bisect run``."""


class PassFailed(Exception):
    """A pass raised; what it was given is saved by whoever asked."""

    def __init__(self, name: str, cause: Exception, run: Run) -> None:
        super().__init__(f"{name}: {type(cause).__name__}: {cause}")
        self.name = name
        self.kind = type(cause).__name__
        self.run = run


@dataclass
class Replay:
    """A reproducer, ready to be compiled and run.

    Attributes:
        case: the reproducer.
        config: options of compilations.
        arguments: what it is run on.
    """

    case: Case
    config: Config
    arguments: Sequence[Argument] = field(default_factory=list[Argument])
    _measure: Measure | None = None

    @classmethod
    def of(cls, case: Case, config: Config, folder: Path | None = None) -> Replay:
        """One with the arguments that the reproducer says."""
        return cls(case, config, case.arguments(folder))

    @property
    def passes(self) -> list[Pass]:
        """The pipeline."""
        if self.case.pipeline is not None:
            found = parse_pipeline(self.case.pipeline)
        else:
            found = default_pipeline(cache_latents=self.config.cache == "latent")
        return [p for p in found if p.name not in self.config.disable]

    @property
    def measure(self) -> Measure:
        """What is right, found out when first asked for."""
        if self._measure is None:
            self._measure = Measure(self.case.func, self.arguments, self.config.tolerance)
        return self._measure

    def run_passes(self, trial: Trial) -> Run:
        """The record of the passes over a clone of the func, which it holds.

        Raises:
            PassFailed: one raised, or left what is no valid func.
            UnknownSizeError: a size is left that only the data tells.

        """
        manager = self._manager(trial)
        try:
            return manager.run(self.case.func.clone())
        except UnknownSizeError:
            raise
        except Exception as error:
            assert manager.current is not None, "only a pass can raise here"
            assert manager.latest is not None, "a run has begun"
            raise PassFailed(manager.current.name, error, manager.latest) from error

    def record(self, trial: Trial) -> Run:
        """The record of the passes, also where one of them raises."""
        manager = self._manager(trial)
        try:
            return manager.run(self.case.func.clone())
        except Exception:  # what it says was said before
            assert manager.latest is not None, "a run has begun"
            return manager.latest

    def _manager(self, trial: Trial) -> PassManager:
        """What the options leave out is left out of every trial."""
        config = self.config
        limits = [n for n in (trial.limit, config.fuse_limit) if n is not None]
        only = config.only_rewrites if trial.only is None else (*trial.only, NONE)
        return PassManager(
            self.passes[: trial.passes],
            check=True,
            limit=min(limits, default=None),
            skip=(*config.skip_rewrites, *trial.skip),
            only=only,
        )

    def program(self, func: Func, plain: Sequence[str] = ()) -> tuple[Compiled, Compiler]:
        """A func that passes have left as code for the CPU, and the compiler that knows about it.

        Raises:
            BuildError: under ``strict``, for a kernel that cannot be built.

        """
        unwanted = (*self.config.plain_kernels, *plain)
        compiler = Compiler(self.config.replace(target="cpu", plain_kernels=unwanted))
        known = self.case.layouts()
        tensors = [a for a in func.args if not isinstance(a.type, IntType)]
        layouts = {
            a: known.get(a.hint) or dense([1 if e == 0 else e for e in a.shape]) for a in tensors
        }
        owed = [Owed(i, dense(v.shape).strides) for i, v in enumerate(func.returns)]
        layouts |= own_results(func, layouts, owed)
        return compiler.restore(SavedProgram(func.name, func, layouts, (), ()).to_text()), compiler

    def kernels(self) -> list[Kernel]:
        """The kernels that a whole compilation generates; none where it fails."""
        try:
            _, compiler = self.program(self.run_passes(Trial()).func)
        except Exception:  # whoever checks finds out
            return []
        return list(_kernels(compiler).values())


@dataclass
class Numbers:
    """Checks the numbers, and that nothing raises: of the passes alone, or of kernels as well.

    Attributes:
        replay: what is compiled.
        level: how far.
        raising: only what raises is bad, whatever the numbers.
    """

    replay: Replay
    level: Level
    raising: bool = False

    def __call__(self, trial: Trial) -> Verdict:
        """Compile as the trial says, and look at what comes out."""
        try:
            run = self.replay.run_passes(trial)
        except UnknownSizeError as error:
            return Verdict(False, f"run by torch as a whole: {error}")
        except PassFailed as error:
            return Verdict(True, str(error), error.name, error.kind, run=error.run)
        kernels: dict[str, Kernel] = {}
        found: Found | None = None
        measured = run.func
        try:
            if self.level == "kernels":
                measured = run.func.clone()
                program, compiler = self.replay.program(measured, trial.plain)
                kernels = _kernels(compiler)
                if self.raising:
                    outcome_of_program(self.replay.case.func, self.replay.arguments, program)
                else:
                    found = self.replay.measure.of_program(program, measured)
            elif not self.raising:
                found = self.replay.measure.of_references(measured)
        except UsageError:
            raise  # a wrong option is no verdict
        except Exception as error:
            kind = type(error).__name__
            said = f"{kind}: {error}"
            return Verdict(True, said, raised=kind, run=run, kernels=kernels)
        if found is None:
            return Verdict(False, "nothing raises", run=run, kernels=kernels)
        return Verdict(not found.good, str(found), excess=found.excess, run=run, kernels=kernels)


@dataclass
class Command:
    """Checks by the exit status of a command, which sees the trial as variables of fuseline's.

    Attributes:
        replay: what tells the rewrites that there are.
        command: for the shell; ``{}`` stands for the reproducer's file.
        file: that file, where there is one.
    """

    replay: Replay
    command: str
    file: Path | None = None

    def __call__(self, trial: Trial) -> Verdict:
        """Run the command once."""
        done = run_command(self.command, self.file, self.variables(trial))
        return Verdict(None if done == SKIP else done != 0, f"exit status {done}")

    def variables(self, trial: Trial) -> dict[str, str]:
        """The variables that make a compilation one of this trial."""
        found: dict[str, str] = {}
        if trial.limit is not None:
            found["FUSE_LIMIT"] = str(trial.limit)
        if trial.skip:
            found["SKIP_REWRITES"] = ",".join(trial.skip)
        if trial.only is not None:
            found["ONLY_REWRITES"] = ",".join((*trial.only, NONE))
        if trial.passes is not None:
            later = {p.name for p in self.replay.passes[trial.passes :]}
            kept = {p.name for p in self.replay.passes[: trial.passes]}
            found["DISABLE"] = ",".join(sorted({*(later - kept), *self.replay.config.disable}))
        if trial.plain:
            found["PLAIN_KERNELS"] = ",".join(trial.plain)
        return {PREFIX + name: value for name, value in found.items()}


def run_command(command: str, file: Path | None, variables: dict[str, str]) -> int:
    """The exit status of a shell command; what it prints goes to standard error.

    Raises:
        UsageError: FL0103, if it could not be run or was ended by a signal.

    """
    if file is None and "{}" in command:
        raise BAD_ARGUMENT.error(
            "--check", found="{} in the command, for a model", expected="a reproducer's file",
            hint="`fuseline repro MODEL -o FILE.fl` writes one",
        )  # fmt: skip
    text = command.replace("{}", shlex.quote(str(file)))
    environment = {**os.environ, **variables}
    status = subprocess.run(text, shell=True, env=environment, check=False, stdout=2).returncode
    if not 0 <= status <= SKIP:  # no shell could run it, or a signal ended it
        raise BAD_ARGUMENT.error(
            "--check", found=f"{text!r}, which ended with status {status}",
            expected=f"0 for good, {SKIP} for what cannot be told, less than that for bad",
        )  # fmt: skip
    return status


def _kernels(compiler: Compiler) -> dict[str, Kernel]:
    """The native kernels of what was compiled, by symbol."""
    done = compiler.done[-1].built.assembled
    found: dict[str, Kernel] = {}
    for op, symbol in done.symbols.items():
        if symbol in done.kernels and symbol not in found:
            template = type(done.kernels[symbol]).template
            found[symbol] = Kernel(symbol, template, str(op.loc or f"%{op.results[0].hint}"))
    return found


__all__ = ["Command", "Numbers", "PassFailed", "Replay", "run_command"]
