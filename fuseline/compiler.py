"""The driver: import what was captured, run the pipeline, emit kernels, build the executable.

`Compiler` is the compile step that both roads of capture call.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fuseline import errors
from fuseline.arguments import Numbered, Packed
from fuseline.build import Built, How, OnProgress, Tools, build
from fuseline.clock import Clock
from fuseline.codegen.targets import TARGETS
from fuseline.compilation import Compilation, Outcome
from fuseline.config import Config, warn_of_unknown_variables
from fuseline.debug import remarks
from fuseline.debug.case import given_options
from fuseline.debug.cost import costs_of
from fuseline.debug.dump import Dump
from fuseline.debug.page.look import Look, tell
from fuseline.debug.reproducer import pass_failure
from fuseline.debug.required import Watch, check_required, requirements
from fuseline.frontend.captured import Argument, Captured
from fuseline.frontend.execute import Compiled
from fuseline.frontend.imported import Imported
from fuseline.frontend.importer import (
    CannotImport,
    DependsOnData,
)
from fuseline.ir.core import Func, Value
from fuseline.ir.layout import Layout
from fuseline.latent_caches import LatentCaches
from fuseline.op_by_op import OpByOp, UntilRefused
from fuseline.passes.known_sizes import UnknownSizeError
from fuseline.passes.manager import Observer, PassManager
from fuseline.passes.pipeline import default_pipeline
from fuseline.passes.plan import own_results
from fuseline.passes.record import Run
from fuseline.passes.rewrite import Pass
from fuseline.placing import ON_CPU, Placed, place
from fuseline.report import NumericsRecord, Report
from fuseline.runtime import resident
from fuseline.runtime.executor import Program
from fuseline.runtime.gpu.aligned import Aligned
from fuseline.runtime.gpu.kernels import DeviceKernels, Launcher
from fuseline.runtime.graphs import CudaGraphs, Graphed
from fuseline.runtime.kernels import HostKernels, Kernels
from fuseline.runtime.later import Later
from fuseline.runtime.native import Runner
from fuseline.saved import SavedProgram
from fuseline.source import Source

if TYPE_CHECKING:
    from fuseline.debug.numerics import Numerics


LARGEST = 512
"""Tokens up to which ``graphs="auto"`` records: with more, the device is busy as it is."""

_AS_IT_IS = (
    "call it under torch.no_grad(); where sizes vary, compile with dynamic=True, or raise "
    "torch._dynamo.config.recompile_limit; or compile without batch_invariant"
)
"""What to do about calls that torch runs as they are."""

log = logging.getLogger(__name__)


@dataclass
class Compiler:
    """Compiles captured programs under one `Config`, and remembers what it did.

    Attributes:
        config: the options.
        progress: told of every kernel that is there, while a program is built.
        done: the compilations so far.
        checked: what `check_numerics` found.
        title: what its target is called on pages, where an export has several kinds of it.
    """

    config: Config
    progress: OnProgress | None = None
    done: list[Compilation] = field(default_factory=list[Compilation])
    checked: list[NumericsRecord] = field(default_factory=list[NumericsRecord])
    title: str = ""
    required: Watch | None = field(init=False)
    """What holds calls to the option ``require``, where that is set."""
    _tools: Tools | None = None
    _runner: Later[Runner | None] | None = None
    _builds: weakref.WeakSet[Later[Any]] = field(default_factory=weakref.WeakSet[Later[Any]])

    def __post_init__(self) -> None:
        texts = self.config.require
        self.required = Watch(requirements(texts)) if texts else None
        remarks.check(self.config)

    @property
    def tools(self) -> Tools:
        """The cache and the C++ compiler, found when first needed."""
        if self._tools is None:
            warn_of_unknown_variables()
            self._tools = Tools.find(self.config)
        return self._tools

    def use(self, tools: Tools) -> None:
        """Have programs built by these tools, and not by those that are found."""
        self._tools = tools

    def begin(self) -> None:
        """Have what every program needs made ready, while a model is still being traced."""
        if self._runner is None and self.tools.host is not None:
            cache, toolchain = self.tools.cache, self.tools.host
            self._runner = Later(lambda: Runner.open(cache, toolchain))

    def __call__(self, captured: Captured) -> Compiled:
        """Compile a captured program for the inputs that it was captured with.

        Its kernels are still being built when this returns, and its first call waits for them:
        Dynamo makes guards meanwhile.
        """
        placed = place(captured, self.config.target)
        if isinstance(placed, str):
            raise CannotImport(placed)
        self.tools.require(placed.target, strict=self.config.strict)
        self.begin()
        source = Source.of_capture(captured)
        optimised = self._optimise(source, placed)
        keeps = self.keeps_forms and placed.target.backend == "cpu"
        saved = optimised.saved() if keeps else None  # before a thread edits the func
        runnable = _Building(Later(lambda: self._runnable(self._build(optimised))), saved)
        self._builds.add(runnable.build)
        return self._checked(runnable, source, placed)

    def ahead(self, program: Captured | Imported) -> Compilation:
        """Compile a captured program, or one that comes as IR, to be written down; it cannot be
        called.

        Raises:
            CannotImport: the program has something that the IR has no type for, or that its target
                does not run.
            BuildError: under ``Config(strict=True)``, if a kernel cannot be built.
            PassError: FL0401, if it does not have what ``Config(require=...)`` names.
            PassError: under ``Config(check_numerics=True)``, for a rewrite that breaks the numbers.

        """
        if isinstance(program, Imported):
            wanted, source = self.config.target, Source.of_import(program)
            placed = ON_CPU if wanted == "auto" else Placed(TARGETS[wanted], ON_CPU.device)
        else:
            placed, source = place(program, self.config.target), Source.of_capture(program)
        if isinstance(placed, str):
            raise CannotImport(placed)
        self.tools.require(placed.target, strict=self.config.strict)
        optimised = self._optimise(source, placed)
        if self.config.check_numerics:
            from fuseline.debug.seeded import model_arguments

            given = model_arguments(source.make(), source.known)
            self.checked += self._check(source, placed, given).records
        return self._with_required(self._build(optimised))

    def plain(self, name: str, reason: str) -> None:
        """Told of a call that torch runs as it is.

        Raises:
            BuildError: FL0501, under ``Config(batch_invariant=True)``.

        """
        if self.config.batch_invariant:
            raise errors.NOT_BATCH_INVARIANT.error(f"{name} by torch", found=reason, hint=_AS_IT_IS)
        tell(self.config, f"torch ran a call of {name} as it is, not compiled: {reason}")

    def broken(self, where: str, reason: str) -> None:
        """Told where a graph ended before its function returned."""
        place = f" at {where}" if where else ""
        tell(self.config, f"graph break{place}, what is in no graph runs in eager: {reason}")

    @property
    def keeps_forms(self) -> bool:
        """Whether compiled programs are kept for other processes: not where one looks inside."""
        config = self.config
        looking = config.verify or config.dump_dir is not None or config.fuse_limit is not None
        looking = looking or config.html is not None
        looking = looking or config.cost or config.check_numerics or remarks.wanted(config)
        looking = looking or config.skip_rewrites or config.only_rewrites or config.plain_kernels
        return config.reuse and not looking

    def restore(self, text: str) -> Compiled:
        """A program of an earlier process, from its func after all passes."""
        clock = Clock()
        with clock("restore"):
            saved = SavedProgram.of_text(text)
            self.tools.require(ON_CPU.target, strict=self.config.strict)
            self.begin()
            ops = saved.func.ops
            built = self._built(saved.func, saved.layouts, ON_CPU, measure=False)
        outcome = Outcome(saved.sites, places=saved.places).with_kernels(ops, built)
        compilation = Compilation(
            *(saved.name, outcome, built, clock.seconds, saved.func, saved.layouts), restored=True
        )
        return self._runnable(self._noted(compilation))

    def _runnable(self, compilation: Compilation) -> Any:
        run, func = self._by_plan(compilation), compilation.func
        run = Numbered.of(run, func, compilation.device)
        run = LatentCaches(run, func) if self.config.cache == "latent" else run
        sites = compilation.outcome.sites
        return self.required.around(run, sites) if self.required else run

    def _by_plan(self, compilation: Compilation) -> Any:
        plan = compilation.built.assembled.plan
        runner = self._runner.get() if self._runner else None
        pieces = self.config.graphs != "none"
        kernels = self._kernels(compilation)
        steady = self.config.batch_invariant
        plain = OpByOp(compilation.func, compilation.device, refused=steady)
        if kernels is None:
            return plain
        program = Program(plan, runner, kernels, threads=self._threads, pieces=pieces)
        compilation.program = weakref.ref(program)
        run = self._graphed(program, compilation) or program
        run = compilation.look.sampled(program, run)
        if program.device.type != "cpu" and not self.config.strict:
            run = UntilRefused(run, plain, program.check, compilation.name)
        run = Packed(program, run, plain, compilation.seconds) if plan.packed else run
        return run if program.device.type == "cpu" else Aligned(run, plan)

    @property
    def _threads(self) -> int:
        return self.config.threads or torch.get_num_threads()

    def _graphed(self, program: Program, compilation: Compilation) -> Graphed | None:
        """The program run from graphs, where it is on a GPU and the options do not say no."""
        graphs = self.config.graphs
        if program.device.type == "cpu" or graphs == "none":
            return None
        graphed = Graphed(
            program,
            CudaGraphs(program.device),
            mode="full" if graphs == "full" else "piecewise",
            largest=LARGEST if graphs == "auto" else None,
        )
        compilation.graphed = weakref.ref(graphed)
        return graphed

    def _kernels(self, compilation: Compilation) -> Kernels | None:
        """The kernels of a program where its tensors are; None where they cannot run there.

        A program that was built for a GPU and has its tensors on the CPU runs op by op, and so does
        one on a GPU where there is nothing to launch its kernels with. With tensors on the CPU too
        the launcher is put into the cache, which may be taken to a machine without a compiler.

        Raises:
            DeviceError: FL1001, under ``Config(strict=True)``, without a driver or bindings to it.
            BuildError: under ``Config(strict=True)``, if the launcher cannot be built.

        """
        built, device, tools = compilation.built, compilation.device, self.tools
        if built.target.backend == "cpu":
            return HostKernels(built.addresses)
        why = "tensors on the cpu" if device.type == "cpu" else ""
        try:
            if tools.host is not None:
                Launcher.build(tools.cache, tools.host)
        except errors.BuildError as error:
            why = why or str(error)
        hint: str | None = None
        if tools.host is None:
            why = why or tools.missing
        elif not why:
            try:
                launcher = Launcher.open(tools.cache, tools.host)
                return DeviceKernels(
                    *(built.binaries, launcher, device, built.target.name),
                    branches=self.config.side_stream,
                    early=self.config.early_launch,
                )
            except (errors.DeviceError, errors.BuildError) as error:
                if self.config.strict:
                    raise
                found, hint = error.diagnostic.found, error.diagnostic.hint
                why = f"{error.diagnostic.title} ({found})" if found else error.diagnostic.title
        compilation.op_by_op = f"built for {built.target.name}, {why}"
        errors.BUILT_FOR_ANOTHER.warn(compilation.name, found=why, hint=hint)
        return None

    def compile_import(self, program: Imported) -> Compiled:
        """Compile a program that comes as IR, for tensors on the CPU that are dense.

        Raises:
            DependsOnData: a size is left that only the data tells.
            PassError: FL0401, if it does not have what ``Config(require=...)`` names.

        """
        self.tools.require(ON_CPU.target, strict=self.config.strict)
        self.begin()
        source = Source.of_import(program)
        built = self._build(self._optimise(source, ON_CPU))
        run = self._runnable(self._with_required(built))
        return self._checked(run, source, ON_CPU)

    def _with_required(self, compilation: Compilation) -> Compilation:
        """A program that is whole by itself, held to what is required."""
        if self.required is not None:
            where = f"{compilation.name} for {compilation.built.target.name}"
            check_required(self.required.required, compilation.report(), where)
        return compilation

    def _checked(self, run: Compiled, source: Source, placed: Placed) -> Compiled:
        """A program whose first call is checked, where the options say so."""
        if not self.config.check_numerics:
            return run
        from fuseline.debug.first_call import CheckedAtFirst

        return CheckedAtFirst(
            run,
            lambda given: self._check(source, placed, given),
            lambda records: self.checked.extend(replace(r, graph=source.name) for r in records),
        )

    def _check(self, source: Source, placed: Placed, given: Sequence[Argument]) -> Numerics:
        """Run the passes on a func of their own, and check what each rewrite computes.

        Raises:
            PassError: FL0410, for the first that breaks the numbers rule.
        """
        from fuseline.debug.numerics import Numerics

        func = source.make()
        numerics = Numerics(func, given, tolerance=self.config.tolerance)
        try:
            self._manager(self._pipeline(placed), [numerics]).run(func)
        except errors.PassError:
            found = [replace(r, graph=source.name) for r in numerics.records]
            self.checked += [r for r in found if r not in self.checked]
            raise
        numerics.end()
        return numerics

    def _optimise(self, source: Source, placed: Placed) -> _Optimised:
        """Import a program and run the pipeline on it."""
        clock = Clock()
        dump = Dump(self.config.dump_dir, source.name) if self.config.dump_dir else None
        folder = dump.root if dump else None
        target = self.title or placed.target.name
        look = Look.of(self.config, source.name, target, source.sizes, folder)
        with clock("import"):
            func = source.make()
        if dump:
            dump.start(func)
        look.start(func)
        sizes = source.sizes() if self.config.cost else {}
        costs = costs_of(func, "eager", sizes) if self.config.cost else []
        with clock("optimise"):
            watching = [*([dump] if dump else []), *look.observers]
            with look.holding():
                run = self._run_passes(func, source.make, watching, placed)
            outcome = _outcome(run)
            wanted, function = remarks.wanted(self.config), _function(source.name, placed)
            found = tuple(remarks.of_run(run, function)) if wanted else ()
            layouts = source.layouts(func)
            layouts |= own_results(func, layouts, source.owed(func))
        look.passed(run)
        costs += costs_of(func, "compiled", sizes) if self.config.cost else []
        outcome = replace(outcome, costs=tuple(costs))
        on_gpu = placed.device.type == "cuda"
        measure = on_gpu and not torch.cuda.is_current_stream_capturing()
        return _Optimised(
            *(source.name, func, layouts, outcome, clock, dump, placed, measure),
            found=found,
            look=look,
        )

    def _build(self, optimised: _Optimised) -> Compilation:
        """Emit and build the kernels of a func, and plan its run."""
        name, func, layouts = optimised.name, optimised.func, optimised.layouts
        outcome, clock, dump = optimised.outcome, optimised.clock, optimised.dump
        look = optimised.look
        with look.holding(), clock("build"):
            ops = func.ops  # copies are put between them
            built = self._built(func, layouts, optimised.placed, measure=optimised.measure)
            outcome = outcome.with_kernels(ops, built)
        if dump:
            dump.kernels(built.shown(), {s: b.ptx for s, b in built.binaries.items() if b.ptx})
            dump.scripts(built.scripts())
            dump.plan(built.assembled.plan)
            dump.sites(outcome.sites)
        if remarks.wanted(self.config):
            done = built.assembled
            function = _function(name, optimised.placed)
            of_kernels = remarks.of_kernels(done.refusals, done.forms, function)
            remarks.emit([*optimised.found, *of_kernels], self.config)
        device = optimised.placed.device
        compilation = Compilation(name, outcome, built, clock.seconds, func, layouts, device)
        compilation.look = look
        look.made(lambda: compilation.made(self._threads))
        return self._noted(compilation)

    def _built(
        self, func: Func, layouts: Mapping[Value, Layout], placed: Placed, *, measure: bool
    ) -> Built:
        config = self.config
        launching = {"side_stream": config.side_stream, "early_launch": config.early_launch}
        how = How(placed.device, config.tune, measure, config.threads, launching)
        return build(
            func,
            layouts,
            self.tools,
            placed.target,
            strict=config.strict,
            progress=self.progress,
            how=how,
            plain=config.plain_kernels,
            batch_invariant=config.batch_invariant,
        )

    def _noted(self, compilation: Compilation) -> Compilation:
        self.done.append(compilation)
        log.info("%s", _summary(compilation))
        return compilation

    def _run_passes(
        self,
        func: Func,
        make: Callable[[], Func],
        observers: Sequence[Observer],
        placed: Placed,
    ) -> Run:
        """Run the pipeline.

        Raises:
            DependsOnData: a size is left that only the data tells.
            InternalError: a pass failed; the func before it is saved.

        """
        manager = self._manager(self._pipeline(placed), observers)
        try:
            return manager.run(func)
        except UnknownSizeError as error:
            sites = manager.latest.sites() if manager.latest else []
            missed = [s for s in sites if s.pattern == "moe" and s.status == "missed"]
            raise DependsOnData(str(error), missed) from error
        except Exception as error:
            again, folder = make(), self.config.dump_dir
            options = given_options(self.config)
            raise pass_failure(manager, again, error, folder, options) from error

    def _pipeline(self, placed: Placed) -> list[Pass]:
        return default_pipeline(
            cache_latents=self.config.cache == "latent", on_gpu=placed.target.backend == "cuda"
        )

    def _manager(self, passes: Sequence[Pass], observers: Sequence[Observer]) -> PassManager:
        return PassManager(
            passes,
            check=self.config.verify,
            limit=self.config.fuse_limit,
            disable=self.config.disable,
            skip=self.config.skip_rewrites,
            only=self.config.only_rewrites,
            observers=observers,
        )

    def report(self) -> Report:
        """Everything that was compiled so far, as one report; of what an earlier process left in
        the cache, that which was called.
        """
        for unfinished in list(self._builds):
            unfinished.settle()
        total = Report()
        for compilation in self.done:
            total = total if compilation.waits else total + compilation.report()
        return total + Report(numerics=tuple(self.checked)) if self.checked else total


@dataclass(frozen=True)
class _Optimised:
    """A func after all passes, with what is needed to build it; ``measure`` tells whether a GPU may
    be used for that now: not while whoever compiles records what it does.
    """

    name: str
    func: Func
    layouts: Mapping[Value, Layout]
    outcome: Outcome
    clock: Clock
    dump: Dump | None
    placed: Placed
    measure: bool = False
    found: tuple[remarks.Remark, ...] = ()
    look: Look = field(default_factory=Look)

    def saved(self) -> str:
        """What brings the program back in another process."""
        found = self.outcome
        return SavedProgram(self.name, self.func, self.layouts, found.sites, found.places).to_text()


class _Building:
    """A program whose kernels are being built; ``saved`` is what brings it back from the cache."""

    def __init__(self, build: Later[Compiled], saved: str | None) -> None:
        self.build = build
        self.saved = saved
        self._run: Compiled = self._first

    def __call__(self, arguments: Sequence[Argument]) -> Sequence[Tensor]:
        return self._run(arguments)

    def _first(self, arguments: Sequence[Argument]) -> Sequence[Tensor]:
        self._run = self.build.get()
        resident.give_back()
        return self._run(arguments)


def _function(name: str, placed: Placed) -> str:
    """What remarks call a program: an export compiles one for several targets."""
    target = placed.target
    return name if target.backend == "cpu" else f"{name} for {target.name}"


def _outcome(run: Run) -> Outcome:
    located, places = run.located(), run.func.places
    return Outcome(
        tuple(site for site, _ in located),
        len(run.applied),
        tuple(run.passes),
        tuple(-1 if op is None else places[op] for _, op in located),
    )


def _summary(compilation: Compilation) -> str:
    report = compilation.report()
    fused = sum(site.status == "fused" for site in report.sites)
    seconds = sum(compilation.seconds.values())
    return (
        f"compiled {compilation.name} in {seconds:.2f} s: {fused} sites fused, "
        f"{len(report.sites) - fused} missed, {len(report.kernels)} kernels"
    )
