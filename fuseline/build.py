"""From an optimised func to a program: emit, build what needs building, assemble the plan."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch

from fuseline import errors
from fuseline.assemble import Assembled, askew_arguments, assemble
from fuseline.choose.chooser import FEW, Chooser, Chosen
from fuseline.choose.device import Tune, open_tuner
from fuseline.choose.pool import cores
from fuseline.codegen import lowerings
from fuseline.codegen.lower import Emitted, emit
from fuseline.codegen.targets import TARGETS, Target
from fuseline.config import Config, host_compiler
from fuseline.ir.core import Func, Value
from fuseline.ir.layout import Layout, LayoutMap
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
from fuseline.runtime.toolchain import Toolchain, find_toolchain

log = logging.getLogger(__name__)

OnProgress = Callable[[Progress], None]

assert lowerings.__all__, "importing the module registers the lowerings"


@dataclass(frozen=True)
class Tools:
    """What builds native code here.

    Attributes:
        cache: where built code is kept.
        toolchain: the C++ compiler; None where there is none.
        missing: why there is none.
    """

    cache: Cache
    toolchain: Toolchain | None
    missing: str = ""

    @classmethod
    def find(cls, config: Config) -> Tools:
        """The cache and the compiler; a missing compiler is warned of once, and is no error.

        Raises:
            BuildError: FL0701 or FL0702, under ``Config(strict=True)``.

        """
        cache = Cache.open(config.cache_dir)
        try:
            return cls(cache, find_toolchain(cache, host_compiler()))
        except errors.BuildError as error:
            if config.strict:
                raise
            _warn(error.diagnostic)
            return cls(cache, None, str(error.diagnostic.title))


@lru_cache
def _warn(problem: errors.Diagnostic) -> None:
    """Say once a process that native code cannot be built."""
    warnings.warn(errors.FuselineWarning(problem), stacklevel=2)


@dataclass(frozen=True)
class Built:
    """A plan and the kernels that it calls, by symbol.

    Attributes:
        assembled: the plan, and what the report says of it.
        sources: of all kernels.
        addresses: of those for the CPU.
        binaries: of those for a GPU.
        target: what they are for.
    """

    assembled: Assembled
    sources: Mapping[str, str]
    addresses: Mapping[str, int] = field(default_factory=dict[str, int])
    binaries: Mapping[str, Binary] = field(default_factory=dict[str, Binary])
    target: Target = TARGETS["cpu"]


@dataclass(frozen=True)
class How:
    """How kernels for a GPU are chosen.

    Attributes:
        device: where the program's tensors are.
        tune: whether configurations are measured there; see `Config`.
        measure: whether that may be done now: not while somebody records a CUDA graph.
        threads: most kernels to build at once; as there are cores, if not set.
    """

    device: torch.device = torch.device("cpu")
    tune: Tune = "auto"
    measure: bool = True
    threads: int | None = None


def build(
    func: Func,
    args: Mapping[Value, Layout],
    tools: Tools,
    target: Target = TARGETS["cpu"],
    *,
    strict: bool = False,
    progress: OnProgress | None = None,
    how: How | None = None,
) -> Built:
    """Emit, compile and assemble a func for a target.

    A kernel that does not compile is replaced by the op's reference, unless ``strict``. ``how`` is
    for GPUs: without it nothing is measured.

    Raises:
        CompileError: a kernel does not compile, and ``strict`` is set.

    """
    if target.backend == "cuda":
        return _build_for_gpu(func, args, tools, target, strict, progress, how or How())
    layouts = LayoutMap(func, args)
    emitted = emit(func, layouts, unavailable=tools.missing)
    kernels = {launch.kernel.symbol: launch.kernel for item in emitted for launch in item.launches}
    sources = {symbol: kernel.render() for symbol, kernel in kernels.items()}
    addresses: dict[str, int] = {}
    if tools.toolchain is not None and sources:
        units = [
            KernelSource(symbol, text, flags=kernels[symbol].flags)
            for symbol, text in sorted(sources.items())
        ]
        failed = _compile(tools.cache, tools.toolchain, units, strict, progress)
        emitted = [_without(item, failed) for item in emitted]
        good = [unit for unit in units if unit.symbol not in failed]
        if good:
            library = build_piece(tools.cache, tools.toolchain, good)
            addresses = {unit.symbol: library.address(unit.symbol) for unit in good}
    return Built(assemble(func, layouts, emitted), sources, addresses)


def _build_for_gpu(
    func: Func,
    args: Mapping[Value, Layout],
    tools: Tools,
    target: Target,
    strict: bool,
    progress: OnProgress | None,
    how: How,
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
    layouts = LayoutMap(func, args)
    layouts.askew = askew_arguments(func)
    emitted = emit(func, layouts, target.backend, unavailable=missing)

    def built(done: int, total: int, name: str) -> None:
        if progress is not None:
            progress(Progress(done, total, name, built=True))

    with torch.cuda.device(how.device) if how.device.type == "cuda" else nullcontext():
        tuner = None
        if not missing:
            tuner = open_tuner(
                tools.cache, tools.toolchain, target, how.device, how.tune, measure=how.measure
            )
        most = None if how.tune == "full" else FEW
        workers = cores(how.threads)
        choose = Chooser(tools.cache, target, workers=workers, tuner=tuner, built=built, most=most)
        chosen = choose(emitted, layouts)
    for symbol, reason in chosen.failed.items():
        if strict:
            raise errors.KERNEL_REFUSED.error(symbol, where=target.name, found=reason)
        log.warning("%s does not suit %s; its reference runs instead", symbol, target.name)
    made = chosen.candidates
    binaries = {symbol: each.binary for symbol, each in made.items()}
    sources = {symbol: each.launch.kernel.render() for symbol, each in made.items()}
    done = assemble(func, layouts, chosen.emitted)
    records = tuple(_described(record, binaries, chosen) for record in done.records)
    done = replace(done, records=records)
    return Built(done, sources, binaries=binaries, target=target)


def _described(
    record: KernelRecord, binaries: Mapping[str, Binary], chosen: Chosen
) -> KernelRecord:
    """A record with what its kernel needs, and what it was chosen from."""
    binary = binaries.get(record.symbol)
    needs = "" if binary is None else binary.needs
    return replace(record, needs=needs, choices=chosen.choices.get(record.symbol, ()))


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


def _without(item: Emitted, failed: Mapping[str, str]) -> Emitted:
    reasons = [failed[x.kernel.symbol] for x in item.launches if x.kernel.symbol in failed]
    return Emitted(item.op, (), reasons[0]) if reasons else item


__all__ = ["Built", "How", "Tools", "build"]
