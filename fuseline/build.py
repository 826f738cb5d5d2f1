"""From an optimised func to a program: emit, build what needs building, assemble the plan."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch

from fuseline import errors
from fuseline.assemble import Assembled, askew_arguments, assemble, form_of, with_padding
from fuseline.build_gpu import not_tried
from fuseline.choose.chooser import Chooser, Chosen
from fuseline.choose.device import Tune, open_tuner
from fuseline.choose.pool import cores
from fuseline.codegen import lowerings
from fuseline.codegen.invariance import varying
from fuseline.codegen.lower import Emitted, emit
from fuseline.codegen.targets import TARGETS, Target
from fuseline.config import Config, host_compiler
from fuseline.header import Head
from fuseline.ir.core import Func, Loc, Value
from fuseline.ir.layout import Layout, LayoutMap
from fuseline.one_kernel.script import NAME, script
from fuseline.report import KernelRecord
from fuseline.runtime.build import (
    CompileError,
    KernelSource,
    Progress,
    build_piece,
    compile_kernels,
)
from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu.binary import Binary
from fuseline.runtime.gpu.triton_build import problem
from fuseline.runtime.native import Runner
from fuseline.runtime.toolchain import (
    Toolchain,
    find_toolchain,
    no_compiler,
    toolchains_of_others,
)

log = logging.getLogger(__name__)

OnProgress = Callable[[Progress], None]

assert lowerings.__all__, "importing the module registers the lowerings"


@dataclass(frozen=True)
class Tools:
    """What builds native code here.

    Attributes:
        cache: where built code is kept.
        toolchain: the C++ compiler; None where there is none.
        host: what the runner and the launcher of GPU kernels are built by, or were, in the cache:
            the compiler, or where there is none one of another machine; else None.
        problem: what is wrong with the compiler; None where there is one.
    """

    cache: Cache
    toolchain: Toolchain | None
    host: Toolchain | None = None
    problem: errors.FuselineError | None = None

    @classmethod
    def find(cls, config: Config) -> Tools:
        """The cache and the compiler."""
        cache = Cache.open(config.cache_dir, config.cache_base)
        try:
            found = find_toolchain(cache, host_compiler())
        except errors.BuildError as problem:
            return cls(cache, None, _from_elsewhere(cache), problem)
        host = found if found.command else _from_elsewhere(cache)
        return cls(cache, found, host) if host else cls(cache, None, None, no_compiler())

    @property
    def missing(self) -> str:
        """Why there is no compiler; empty where there is one."""
        return self.problem.diagnostic.title if self.problem else ""

    def require(self, target: Target, *, strict: bool) -> None:
        """Warn, once in a process, where what a target needs is missing; it is no error.

        Raises:
            BuildError: FL0701 or FL0702, with ``strict``.

        """
        served = self.toolchain if target.backend == "cpu" else self.host
        if served is not None or self.problem is None:
            return
        if strict:
            raise self.problem
        _warn(self.problem.diagnostic)


def _from_elsewhere(cache: Cache) -> Toolchain | None:
    """The compiler of another machine that has left the runner in this cache."""
    for toolchain in toolchains_of_others(cache):
        try:
            if Runner.is_in(cache, toolchain):
                return toolchain
        except errors.BuildError as error:
            log.warning("%s", error)
    return None


@lru_cache
def _warn(problem: errors.Diagnostic) -> None:
    """Say once a process that native code cannot be built."""
    errors.warn(problem)


@dataclass(frozen=True)
class Built:
    """A plan and the kernels that it calls, by symbol.

    Attributes:
        assembled: the plan, and what the report says of it.
        sources: of all kernels, as they were compiled.
        addresses: of those for the CPU.
        binaries: of those for a GPU.
        target: what they are for.
        library: the file that those for the CPU are in; None where there are none.
        layouts: where the values of the func lie, copies that were put in included.
    """

    assembled: Assembled
    sources: Mapping[str, str]
    addresses: Mapping[str, int] = field(default_factory=dict[str, int])
    binaries: Mapping[str, Binary] = field(default_factory=dict[str, Binary])
    target: Target = TARGETS["cpu"]
    library: Path | None = None
    layouts: LayoutMap | None = None

    def heads(self) -> dict[str, Head]:
        """What there is to say of each kernel that is in use, above its source."""
        records = {r.symbol: r for r in self.assembled.records if r.status == "native"}
        found: dict[str, Head] = {}
        for symbol, ops in self.assembled.ops.items():
            record, forms = records[symbol], tuple(dict.fromkeys(map(form_of, ops)))
            found[symbol] = Head(
                *(symbol, record.family, len(ops), forms, record.sources), target=self.target.name
            )
        return found

    def scripts(self) -> dict[str, str]:
        """For each kernel that is in use a script that runs it alone, by file name."""
        assert self.layouts is not None, "what was built here has places for its values"
        return {
            NAME.format(symbol=symbol): script(
                *(head, self.assembled.ops[symbol][0], self.layouts), target=self.target.name
            )
            for symbol, head in self.heads().items()
        }

    def shown(self) -> dict[str, str]:
        """The sources as they are shown: with their heads."""
        heads = self.heads()
        return {
            symbol: heads[symbol].on(text) if symbol in heads else text
            for symbol, text in self.sources.items()
        }


@dataclass(frozen=True)
class How:
    """How kernels for a GPU are chosen.

    Attributes:
        device: where the program's tensors are.
        tune: whether configurations are measured there; see `Config`.
        measure: whether that may be done now: not while somebody records a CUDA graph.
        threads: most kernels to build at once; as there are cores, if not set.
        launching: the options by which kernels are launched; times depend on them.
    """

    device: torch.device = torch.device("cpu")
    tune: Tune = "auto"
    measure: bool = True
    threads: int | None = None
    launching: Mapping[str, bool] = field(default_factory=dict[str, bool])


def build(
    func: Func,
    args: Mapping[Value, Layout],
    tools: Tools,
    target: Target = TARGETS["cpu"],
    *,
    strict: bool = False,
    progress: OnProgress | None = None,
    how: How | None = None,
    plain: Collection[str] = (),
    batch_invariant: bool = False,
) -> Built:
    """Emit, compile and assemble a func for a target.

    A kernel that does not compile is replaced by the op's reference, unless ``strict``. ``how`` is
    for GPUs: without it nothing is measured. ``plain`` names kernels in whose place references run;
    ``all`` is every one. ``batch_invariant`` takes one form of each kernel for all sizes.

    Raises:
        BuildError: FL0501, for what is not batch invariant where that is asked for.
        CompileError: a kernel does not compile, and ``strict`` is set.

    """
    layouts = LayoutMap(func, args)
    layouts.batch_invariant = batch_invariant
    if target.backend == "cuda":
        return _build_for_gpu(func, layouts, tools, target, strict, progress, how or How(), plain)
    emitted = _kept(emit(func, layouts, unavailable=tools.missing), plain)
    kernels = {launch.kernel.symbol: launch.kernel for item in emitted for launch in item.launches}
    sources = {symbol: kernel.render() for symbol, kernel in kernels.items()}
    addresses: dict[str, int] = {}
    path: Path | None = None
    if tools.toolchain is not None and sources:
        units = [
            KernelSource(symbol, text, flags=kernels[symbol].options(steady=batch_invariant))
            for symbol, text in sorted(sources.items())
        ]
        failed = _compile(tools.cache, tools.toolchain, units, strict, progress)
        emitted = [_without(item, failed) for item in emitted]
        good = [unit for unit in units if unit.symbol not in failed]
        if good:
            library = build_piece(tools.cache, tools.toolchain, good)
            addresses = {unit.symbol: library.address(unit.symbol) for unit in good}
            path = library.path
    if batch_invariant:
        _check_invariance(emitted)
    done = assemble(func, layouts, emitted)
    records = (replace(r, target=target.name) if r.symbol in addresses else r for r in done.records)
    done = replace(done, records=tuple(records))
    return Built(done, sources, addresses, library=path, layouts=layouts)


def _check_invariance(emitted: Sequence[Emitted]) -> None:
    """Refuse a program with what does not keep the bits of its rows.

    Raises:
        BuildError: FL0501.

    """
    found = list(varying(emitted))
    if not found:
        return
    first, others = found[0], sorted({each.what for each in found} - {found[0].what})
    more = f", and so do {', '.join(others)}" if others else ""
    loc = first.op.loc
    raise errors.NOT_BATCH_INVARIANT.error(
        first.what,
        where=None if loc in (None, Loc()) else str(loc),
        found=f"{first.reason}{more}",
        expected="bits of a row that do not depend on the rows beside it",
    )


def _build_for_gpu(
    func: Func,
    layouts: LayoutMap,
    tools: Tools,
    target: Target,
    strict: bool,
    progress: OnProgress | None,
    how: How,
    plain: Collection[str],
) -> Built:
    """Each launch in the best configuration that the target holds; an op that has a launch without
    any runs its reference.

    Raises:
        BuildError: FL0706, FL0707 or FL0709, with ``strict``.

    """
    wrong = problem()
    if wrong is not None and strict:
        raise wrong.error()
    missing = "" if wrong is None else wrong.title
    layouts.askew = askew_arguments(func)
    emitted = _kept(emit(func, layouts, target.backend, unavailable=missing), plain)

    def built(done: int, total: int, name: str) -> None:
        if progress is not None:
            progress(Progress(done, total, name, built=True))

    with torch.cuda.device(how.device) if how.device.type == "cuda" else nullcontext():
        tuner = None
        if not missing and not layouts.batch_invariant:
            tuner = open_tuner(
                tools.cache,
                tools.host,
                target,
                how.device,
                how.tune,
                measure=how.measure,
                launching=how.launching,
            )
        workers = cores(how.threads)
        choose = Chooser(tools.cache, target, workers=workers, tuner=tuner, built=built)
        chosen = choose(emitted, layouts)
        if tuner is not None and tuner.bench is not None:
            torch.cuda.empty_cache()  # of operands, and of graphs that were timed
    for symbol, reason in chosen.failed.items():
        if strict:
            raise errors.KERNEL_REFUSED.error(symbol, where=target.name, found=reason)
        log.warning("%s does not suit %s; its reference runs instead", symbol, target.name)
    if layouts.batch_invariant:
        _check_invariance(chosen.emitted)
    made = chosen.candidates
    binaries = {symbol: each.binary for symbol, each in made.items()}
    sources = {symbol: each.launch.kernel.render() for symbol, each in made.items()}
    done = assemble(func, layouts, chosen.emitted)
    notes = {
        each.kernel.symbol: not_tried(launch)
        for item in emitted
        for launch in item.launches
        for each in (launch, *launch.others)
    }
    records = tuple(_described(r, binaries, chosen, notes, target) for r in done.records)
    done = replace(done, plan=with_padding(done.plan, func), records=records)
    return Built(done, sources, binaries=binaries, target=target, layouts=layouts)


def _described(
    record: KernelRecord,
    binaries: Mapping[str, Binary],
    chosen: Chosen,
    notes: Mapping[str, str],
    target: Target,
) -> KernelRecord:
    """A record with what its kernel needs, and what it was chosen from."""
    record = replace(record, choices=chosen.choices.get(record.symbol, ()))
    binary = binaries.get(record.symbol)
    if binary is None or record.status != "native":
        return record
    shared = binary.shared_memory + binary.resources["static_shared_memory"]
    resources = {**binary.resources, "shared_memory": shared, "warps": binary.warps}
    needs = binary.needs + notes[record.symbol]
    return replace(record, needs=needs, target=target.name, resources=resources)


def _compile(
    cache: Cache,
    toolchain: Toolchain,
    units: Sequence[KernelSource],
    strict: bool,
    progress: OnProgress | None,
) -> dict[str, str]:
    """Compile all units; what failed, with the reason."""
    failed: dict[str, str] = {}
    for unit, outcome in zip(
        units, compile_kernels(cache, toolchain, units, progress), strict=True
    ):
        if isinstance(outcome, CompileError):
            if strict:
                raise outcome
            log.warning("%s does not compile; its reference runs instead", unit.symbol)
            failed[unit.symbol] = str(outcome.diagnostic)
    return failed


def _kept(emitted: Sequence[Emitted], plain: Collection[str]) -> list[Emitted]:
    """The same without launches of kernels that are not wanted, whatever their configuration."""
    if not plain:
        return list(emitted)
    reason = "the option plain_kernels names its kernel"
    kept: list[Emitted] = []
    for item in emitted:
        launches = [each for one in item.launches for each in (one, *one.others)]
        unwanted = any(each.kernel.symbol in plain or "all" in plain for each in launches)
        kept.append(Emitted(item.op, (), reason) if unwanted else item)
    return kept


def _without(item: Emitted, failed: Mapping[str, str]) -> Emitted:
    reasons = [failed[x.kernel.symbol] for x in item.launches if x.kernel.symbol in failed]
    return Emitted(item.op, (), reasons[0]) if reasons else item


__all__ = ["Built", "How", "Tools", "build"]
