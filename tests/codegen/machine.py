"""Runs what a func was lowered to, launch by launch, for any backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from fuseline.codegen import lowerings
from fuseline.codegen.library import LibraryKernel, ScratchTensor
from fuseline.codegen.lower import Emitted, Launch, Operand, Scratch, emit
from fuseline.codegen.targets import Backend
from fuseline.ir.core import Func, Value
from fuseline.ir.evaluate import Argument, bind, evaluate
from fuseline.ir.layout import LayoutMap, extent_of
from fuseline.ir.text import parse_func
from fuseline.ir.types import BufferType, substitute
from fuseline.runtime.library import LIBRARY
from tests.codegen.oracle import DTYPES, assert_numbers
from tests.codegen.samples import assert_close

assert lowerings.__all__, "importing the module registers the lowerings"

Call: TypeAlias = Callable[[Launch, Sequence[Tensor | None], Sequence[int], Sequence[int]], None]
"""Runs a launch on its buffers, dims and grid."""


class Machine:
    """Runs emitted launches on memory of its own, filled with NaN: one block a root value."""

    def __init__(
        self,
        func: Func,
        arguments: Sequence[Tensor],
        call: Call,
        *,
        backend: Backend = "cpu",
        workers: int = 1,
        configure: Callable[[Launch], Launch] = lambda launch: launch,
    ) -> None:
        self.func = func
        self.binding = bind(func, arguments) | {"num_workers": workers}
        self.layouts, self.call, self.configure = LayoutMap(func), call, configure
        self.memory = {a: t.clone().contiguous() for a, t in zip(func.args, arguments, strict=True)}
        self.steps = emit(func, self.layouts, backend)
        for step in self.steps:
            assert not step.refusal, step.refusal
            self._launch(step)

    def _buffer(self, value: Value) -> Tensor:
        place = self.layouts[value]
        if place.root not in self.memory:
            layout, root = self.layouts.layout(place.root), place.root
            size = max(1, substitute(extent_of(root.shape, layout), self.binding))
            block = torch.full((size * root.dtype.torch.itemsize,), 255, dtype=torch.uint8)
            self.memory[root] = block.view(root.dtype.torch)
        flat = self.memory[place.root].reshape(-1)
        return flat[substitute(place.layout.offset, self.binding) :]

    def _scratch(self, scratch: Scratch) -> Tensor:
        return torch.full((substitute(scratch.nbytes, self.binding),), 255, dtype=torch.uint8)

    def _launch(self, step: Emitted) -> None:
        shared: list[Tensor] = []
        for launch in step.launches:
            if launch.when is not None:
                value, low, high = launch.when
                size = substitute(value, self.binding)
                if size < low or (high is not None and size > high):
                    continue
            if isinstance(launch.kernel, LibraryKernel):
                self._library(launch.kernel, launch.buffers, shared)
                continue
            launch = self.configure(launch)
            buffers: list[Tensor | None] = []
            for b in launch.buffers:
                if isinstance(b, Scratch):
                    shared = shared or [self._scratch(b)]
                    buffers.append(shared[0])
                else:
                    buffers.append(None if b is None else self._buffer(b))
            dims = [substitute(d, self.binding) for d in launch.dims]
            self.call(launch, buffers, dims, [substitute(d, self.binding) for d in launch.grid])

    def _library(
        self, kernel: LibraryKernel, buffers: Sequence[Operand], shared: list[Tensor]
    ) -> None:
        tensors: list[Tensor | None] = []
        for b in buffers:
            if isinstance(b, ScratchTensor):
                shared[:] = shared or [self._scratch(b)]
                shape = [substitute(d, self.binding) for d in b.shape]
                tensors.append(shared[0].view(b.dtype.torch).view(shape))
            else:
                tensors.append(self.tensor(b) if isinstance(b, Value) else None)
        results = [t for t in tensors[-kernel.results :] if t is not None]
        LIBRARY[kernel.name](tensors[: -kernel.results], results, **dict(kernel.attributes))

    def tensor(self, value: Value) -> Tensor:
        """A value of the func, after the run."""
        shape, strides = (
            [substitute(d, self.binding) for d in dims]
            for dims in (value.shape, self.layouts.layout(value).strides)
        )
        return self._buffer(value).as_strided(shape, strides)


def check_results(
    machine: Machine,
    want: Sequence[Tensor],
    own: Sequence[Argument],
    *,
    exact: bool,
    ulps: float,
    atol: float,
    ops: Sequence[str] | None,
) -> None:
    """What a machine has are the results ``want``, and its buffers those among ``own``."""
    assert ops is None or [step.op.name for step in machine.steps] == list(ops)
    for value, ref in zip(machine.func.returns, want, strict=True):
        got = machine.tensor(value).contiguous()
        assert_close(got, ref.contiguous(), exact=exact, ulps=ulps, atol=atol)
    for arg, ref in zip(machine.func.args, own, strict=True):
        if isinstance(arg.type, BufferType):
            assert isinstance(ref, Tensor)
            assert torch.equal(machine.memory[arg], ref.contiguous())


def check_machines(
    text: str,
    arguments: Sequence[Tensor],
    machine: Callable[[Func], Machine],
    *,
    ops: Sequence[str] | None,
) -> None:
    """The launches give what the references give, and those in float64; ``ops`` are launched."""
    func = parse_func(text)
    own, exact = ([a.clone() for a in arguments] for _ in range(2))
    want = evaluate(parse_func(text), own)
    exact = [a.double() if a.dtype.is_floating_point else a for a in exact]
    wide = text
    for name in DTYPES:
        wide = wide.replace(f"{name}[", "f64[")
    oracle = evaluate(parse_func(wide), exact)
    made = machine(func)
    assert ops is None or [s.op.name for s in made.steps] == list(ops)
    for value, eager, exactly in zip(func.returns, want, oracle, strict=True):
        got = made.tensor(value).contiguous()
        assert_numbers(got, eager.contiguous(), exactly)
    for arg, eager, exactly in zip(func.args, own, exact, strict=True):
        if isinstance(arg.type, BufferType):
            assert_numbers(made.memory[arg], eager, exactly)
