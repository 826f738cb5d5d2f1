"""From an optimised func to a program: emit, build what needs building, assemble the plan."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from fuseline import errors
from fuseline.assemble import Assembled, assemble
from fuseline.codegen import lowerings
from fuseline.codegen.lower import Emitted, emit
from fuseline.config import Config, host_compiler
from fuseline.ir.core import Func, Value
from fuseline.ir.layout import Layout, LayoutMap
from fuseline.runtime.build import (
    CompileError,
    KernelSource,
    Progress,
    build_piece,
    compile_kernels,
)
from fuseline.runtime.cache import Cache
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
    """A plan and the addresses of the kernels that it calls."""

    assembled: Assembled
    addresses: Mapping[str, int]
    sources: Mapping[str, str]


def build(
    func: Func,
    args: Mapping[Value, Layout],
    tools: Tools,
    *,
    strict: bool = False,
    progress: OnProgress | None = None,
) -> Built:
    """Emit, compile and assemble a func.

    A kernel that does not compile is replaced by the op's reference, unless ``strict``.

    Raises:
        CompileError: a kernel does not compile, and ``strict`` is set.

    """
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
    return Built(assemble(func, layouts, emitted), addresses, sources)


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


__all__ = ["Built", "Tools", "build"]
