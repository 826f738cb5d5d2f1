"""One kernel by itself: the op that it does, built from sources that somebody may have edited.

alone = Alone.of(symbol, target, *op_of(text, memory), sources)
values = alone.sizes({"S": 128})
work = alone.on(values, threads=1)      # memory, filled; and built code
work.run()
found = work.check()                    # each result against float64, by the numbers rule
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fuseline import errors
from fuseline.assemble import askew_arguments
from fuseline.build import Tools
from fuseline.build_gpu import cuda_source, triton_source
from fuseline.choose.inputs import ties
from fuseline.choose.sizes import binding, value_of
from fuseline.choose.trial import Trial
from fuseline.codegen import lowerings
from fuseline.codegen.gpu.cuda import CudaKernel
from fuseline.codegen.gpu.kernel import TritonKernel
from fuseline.codegen.kernel import KernelTemplate
from fuseline.codegen.library import LibraryKernel, ReferenceKernel
from fuseline.codegen.lower import Launch, NeedDense, Refusal, lower
from fuseline.codegen.targets import Target
from fuseline.debug.gaps import Gap, gap
from fuseline.debug.oracle import oracle
from fuseline.ir.core import Cost, Op, Value
from fuseline.ir.evaluate import call_reference
from fuseline.ir.layout import LayoutMap
from fuseline.ir.types import BufferType, Range
from fuseline.one_kernel.interpreted import interpreted
from fuseline.report import span
from fuseline.runtime.build import KernelSource, build_piece, compile_kernels
from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu.binary import Binary
from fuseline.runtime.gpu.cuda_build import build_cuda
from fuseline.runtime.gpu.triton_build import build_triton
from fuseline.runtime.kernels import HostKernels, Kernels
from fuseline.runtime.native import Runner
from fuseline.runtime.plan import WORKERS

assert lowerings.__all__, "importing the module registers the lowerings"

SIZES = (128, 64, 33, 16, 7, 5, 3, 2, 1, 512, 2048)
"""Values of sizes that nobody gave: the first ones for which the kernel runs."""

FEW = (7, 5, 3, 2, 1, 16, 33, 64, 128)
"""The same where kernels are interpreted."""


MOST = 1 << 30
"""Bytes of an op whose sizes nobody gave."""


class NotTheKernelError(Exception):
    """The script is of another version of fuseline, or is asked for what its kernel does not do."""


@dataclass(frozen=True)
class Alone:
    """A kernel and the op that it does.

    Attributes:
        symbol: of the kernel.
        target: that it is for.
        op: that it does, by one or several launches.
        layouts: where the op's operands and results lie.
        launches: all of the op's, in the configurations that sources are there for.
        sources: of the kernels, by symbol.
    """

    symbol: str
    target: Target
    op: Op
    layouts: LayoutMap
    launches: tuple[Launch, ...]
    sources: Mapping[str, str]

    @classmethod
    def of(
        cls, symbol: str, target: Target, op: Op, layouts: LayoutMap, sources: Mapping[str, str]
    ) -> Alone:
        """Lower the op for the target.

        Args:
            symbol: of the kernel.
            target: that it is for.
            op: that it does.
            layouts: where the op's operands and results lie.
            sources: of all kernels at hand, by symbol; others are generated.

        Raises:
            NotTheKernelError: the op has no such kernel here.

        """
        if target.backend == "cuda":
            layouts.askew = askew_arguments(layouts.func)
        found = lower(op, layouts, target.backend)
        if isinstance(found, NeedDense | Refusal):
            raise NotTheKernelError(f"{op.name} has no kernel in this version of fuseline: {found}")
        launches = tuple(_at_hand(launch, symbol, sources) for launch in found)
        used = {n.kernel.symbol: n.kernel for n in launches if _is_ours(n.kernel)}
        if symbol not in used:
            names = ", ".join(used) or "none"
            raise NotTheKernelError(f"the kernels of {op.name} are others in this version: {names}")
        texts = {name: sources.get(name) or kernel.render() for name, kernel in used.items()}
        return cls(symbol, target, op, layouts, launches, texts)

    @property
    def kernels(self) -> dict[str, KernelTemplate]:
        """Those of the op's launches that are generated, by symbol."""
        return {n.kernel.symbol: n.kernel for n in self.launches if _is_ours(n.kernel)}

    def running(self, values: Mapping[str, int]) -> list[str]:
        """The symbols of those that run with these sizes."""
        numbers = {**values, WORKERS: 1}
        found = (n.kernel.symbol for n in self.launches if _runs(n, numbers))
        return [symbol for symbol in dict.fromkeys(found) if symbol in self.kernels]

    def sizes(self, given: Mapping[str, int], *, few: bool = False) -> dict[str, int]:
        """Values of all symbols: those given, and for the others some with which the kernel runs.

        Raises:
            NotTheKernelError: there are none.

        """
        symbols = self.layouts.func.symbols
        if unknown := given.keys() - symbols.keys():
            names = ", ".join(symbols) or "none"
            raise NotTheKernelError(f"no size is called {min(unknown)}; there are: {names}")
        free = [name for name in symbols if name not in given]
        for guess in self._guesses(free, FEW if few else SIZES):
            values = {n: _within(v, symbols[n]) for n, v in {**guess, **given}.items()}
            if any(values[n] != v for n, v in given.items()) or not self._suits(values):
                continue
            if not free or self.cost(values).bytes <= MOST:
                return values
        tried = " ".join(f"{n}={v}" for n, v in given.items()) or "any of the sizes that were tried"
        raise NotTheKernelError(f"{self.symbol} does not run for {tried}: it is {self._limits()}")

    def _guesses(self, free: Sequence[str], values: Sequence[int]) -> Iterator[dict[str, int]]:
        """Values to try: the same for all sizes, what the limits of the kernel say, and others."""
        for value in values:
            yield dict.fromkeys(free, value)
        for launch in self.launches:
            if launch.kernel.symbol == self.symbol and launch.when is not None:
                size, least, most = launch.when
                for wanted in (least, 2 * least if most is None else most):
                    found = binding(size, wanted, self.layouts.func.symbols)
                    yield {name: found[name] for name in free}
        if 1 < len(free) <= 3:
            for each in itertools.product(values[:7], repeat=len(free)):
                yield dict(zip(free, each, strict=True))

    def _limits(self) -> str:
        """For which sizes the kernel is, in words."""
        own = [n.when for n in self.launches if n.kernel.symbol == self.symbol]
        return "for " + " or ".join("all" if when is None else span(*when) for when in own)

    def _suits(self, values: Mapping[str, int]) -> bool:
        """Whether the kernel runs with these sizes, and all memory is some."""
        numbers = {**values, WORKERS: 1}
        for one, other in ties(self.op):
            if value_of(one, numbers) != value_of(other, numbers):
                return False
        for value in (*self.op.operands, *self.op.results):
            if any(value_of(extent, numbers) < 1 for extent in value.shape):
                return False
        return self.symbol in self.running(values)

    def cost(self, values: Mapping[str, int]) -> Cost:
        """Bytes and operations of the op, at least."""
        cost = self.op.cost()
        return Cost(value_of(cost.bytes, values), value_of(cost.flops, values))

    def on(self, values: Mapping[str, int], device: torch.device, seed: int = 0) -> Work:
        """The op on memory of its own, filled."""
        trial = Trial(self.op, self.layouts, values, device)
        trial.allocate()
        if seed:
            numbers = torch.Generator(device).manual_seed(seed)
            for root in trial.roots:
                memory = trial.memory(root)
                if memory.dtype.is_floating_point:
                    memory.normal_(0.0, 0.5, generator=numbers)
        return Work(self, trial, dict(values))


def _at_hand(launch: Launch, symbol: str, sources: Mapping[str, str]) -> Launch:
    """The configuration of a launch that is this kernel, or that there is a source of."""
    options = (launch, *launch.others)
    names = [each.kernel.symbol for each in options]
    wanted = next((n for n in names if n == symbol), None)
    wanted = wanted or next((n for n in names if n in sources), names[0])
    return replace(options[names.index(wanted)], others=(), instead=())


def _is_ours(kernel: KernelTemplate) -> bool:
    return not isinstance(kernel, LibraryKernel | ReferenceKernel)


def _within(value: int, limits: Range) -> int:
    value = max(value, limits.lo)
    return value if limits.hi is None else min(value, limits.hi)


def _runs(launch: Launch, numbers: Mapping[str, int]) -> bool:
    if launch.when is None:
        return True
    size, least, most = launch.when
    value = value_of(size, numbers)
    return least <= value and (most is None or value <= most)


@dataclass(frozen=True)
class Checked:
    """What the numbers rule says of one result."""

    name: str
    type: str
    gap: Gap
    tolerance: float

    @property
    def good(self) -> bool:
        """Whether it is no further from float64 than the rule allows."""
        return self.gap.share(self.tolerance) <= 1


@dataclass
class Work:
    """An op with memory; `build` gives what runs it there."""

    alone: Alone
    trial: Trial
    values: dict[str, int]
    expected: list[tuple[str, Value, Tensor, Tensor]] = field(default_factory=list[Any])

    def expect(self) -> None:
        """Find out what is right for the memory as it is: by the op's reference, in the op's own
        types as eager does it, and in float64.
        """
        op = self.alone.op
        operands = list(dict.fromkeys(op.operands))
        buffers = [v for v in operands if isinstance(v.type, BufferType)]
        given = [self.trial.tensor(v) for v in operands]

        def reference(*tensors: Tensor) -> list[Tensor]:
            own = {v: t.clone() for v, t in zip(operands, tensors, strict=True)}
            found = call_reference(op, own, self.values)
            return [*found, *(own[v] for v in buffers)]

        with torch.no_grad():
            eager: list[Tensor] = reference(*given)
            exact: list[Tensor] = oracle(reference, *given)
        values = [*op.results, *buffers]
        self.expected = [(v.hint, v, e, x) for v, e, x in zip(values, eager, exact, strict=True)]

    def check(self, tolerance: float) -> list[Checked]:
        """Hold what is in memory now to what was expected."""
        return [
            Checked(name, str(v.type), gap(self.trial.tensor(v), eager, exact), tolerance)
            for name, v, eager, exact in self.expected
        ]

    def native(self, tools: Tools, threads: int) -> Callable[[], None]:
        """What runs the op on a CPU.

        Raises:
            BuildError: a kernel does not compile, or there is no compiler.

        """
        alone, steady = self.alone, self.alone.layouts.batch_invariant
        if tools.toolchain is None:
            assert tools.problem is not None, "there is a reason"
            raise tools.problem
        units = [
            KernelSource(name, text, flags=alone.kernels[name].options(steady=steady))
            for name, text in sorted(alone.sources.items())
        ]
        for outcome in compile_kernels(tools.cache, tools.toolchain, units):
            if isinstance(outcome, errors.BuildError):
                raise outcome
        library = build_piece(tools.cache, tools.toolchain, units)
        kernels = HostKernels({unit.symbol: library.address(unit.symbol) for unit in units})
        runner = Runner.open(tools.cache, tools.toolchain)
        return self._runnable(kernels, runner, threads)

    def on_gpu(self, tools: Tools) -> Callable[[], None]:
        """What runs the op on the GPU that its memory is on.

        Raises:
            BuildError: a kernel does not compile, or there is nothing to launch it by.
            DeviceError: the GPU does not take it.

        """
        from fuseline.runtime.gpu.kernels import DeviceKernels, Launcher

        if tools.host is None:
            assert tools.problem is not None, "there is a reason"
            raise tools.problem
        made = binaries(self.alone, tools.cache)
        launcher = Launcher.open(tools.cache, tools.host)
        device = self.trial.device
        kernels = DeviceKernels(made, launcher, device, self.alone.target.name)
        return self._runnable(kernels, Runner.open(tools.cache, tools.host), 1)

    def _runnable(self, kernels: Kernels, runner: Runner, threads: int) -> Callable[[], None]:
        return self.trial.runnable(self.alone.launches, kernels, runner, threads)

    def interpreted(self) -> tuple[Callable[[], None], int]:
        """What runs the op by Triton's interpreter, and how many blocks that are."""
        return interpreted(self.alone, self.trial, self.values)


def binaries(alone: Alone, cache: Cache) -> dict[str, Binary]:
    """The kernels as binaries for a GPU, from their sources as they are now.

    Raises:
        BuildError: one does not compile.

    """
    found: dict[str, Binary] = {}
    for name, kernel in alone.kernels.items():
        text, capability = alone.sources[name], alone.target.capability
        if isinstance(kernel, CudaKernel):
            source = replace(cuda_source(kernel), text=text)
            found[name] = Binary.of(build_cuda(cache, source, capability))
        else:
            assert isinstance(kernel, TritonKernel), f"{kernel.family} is no kernel for a GPU"
            made = replace(triton_source(kernel), text=text)
            found[name] = Binary.of(build_triton(cache, made, capability))
    return found


__all__ = ["Alone", "Checked", "NotTheKernelError", "Work", "binaries"]
