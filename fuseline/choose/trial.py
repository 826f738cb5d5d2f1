"""One op made something that can be run by itself, on memory of its own.

The op's operands and results lie as they do in the program: parts of larger tensors at the same
offsets and strides, parameters that are packed one behind the other. The memory is new, what the
user gave is neither read nor written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fuseline.assemble import assemble_op, packed_operands
from fuseline.choose.inputs import fill
from fuseline.choose.sizes import value_of
from fuseline.codegen.lower import Emitted, Launch
from fuseline.ir.core import Op, Value
from fuseline.ir.layout import LayoutMap, extent_of
from fuseline.ir.ops.view import unreshaped
from fuseline.ir.types import Dim
from fuseline.runtime.executor import Program
from fuseline.runtime.kernels import Kernels
from fuseline.runtime.native import Runner

SEED = 0

SPREAD = 0.5
"""The standard deviation of floating numbers: sums of many of them stay finite in 16 bits."""


class Trial:
    """An op under one set of sizes.

    Args:
        op: what is to be run.
        layouts: where its operands and results lie.
        values: of all symbols.
        device: where to run it.

    """

    def __init__(
        self, op: Op, layouts: LayoutMap, values: Mapping[str, int], device: torch.device
    ) -> None:
        self.op, self.layouts, self.values, self.device = op, layouts, dict(values), device
        self.roots = roots_of(op, layouts)
        self._memory: dict[Value, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all operands and results."""
        return sum(self._size(root) * root.dtype.itemsize for root in self.roots)

    def allocate(self) -> None:
        """Make the memory, and fill the operands."""
        for group in packed_operands(self.op):
            self._pack([self.layouts.root(unreshaped(value)) for value in group])
        for root in self.roots:
            if root not in self._memory:
                self._memory[root] = self._empty(self._size(root), root)
        numbers = torch.Generator(self.device).manual_seed(SEED)
        for root in self.roots:
            memory = self._memory[root]
            if memory.dtype.is_floating_point:
                memory.normal_(0.0, SPREAD, generator=numbers)
            else:
                memory.zero_()
        fill(self.op, self.tensor, self._number, SEED)

    def _empty(self, elements: int, root: Value) -> Tensor:
        return torch.empty(elements, dtype=root.dtype.torch, device=self.device)

    def _pack(self, roots: Sequence[Value]) -> None:
        """Memory for parameters one behind the other."""
        if len(set(roots)) < len(roots) or len({root.dtype for root in roots}) > 1:
            return  # parts of one parameter, which lie in it as they do
        sizes = [self._size(root) for root in roots]
        whole = self._empty(sum(sizes), roots[0])
        begin = 0
        for root, size in zip(roots, sizes, strict=True):
            self._memory[root] = whole[begin : begin + size]
            begin += size

    def _size(self, root: Value) -> int:
        extent = extent_of(root.shape, self.layouts.layout(root))
        return max(1, self._number(extent))

    def _number(self, value: Dim) -> int:
        return value_of(value, self.values)

    def memory(self, root: Value) -> Tensor:
        """The memory of a value that owns it, element by element."""
        return self._memory[root]

    def tensor(self, value: Value) -> Tensor:
        """A value of the op, in the trial's memory."""
        place = self.layouts[value]
        return self._memory[place.root].as_strided(
            [self._number(e) for e in value.shape],
            [self._number(s) for s in place.layout.strides],
            self._memory[place.root].storage_offset() + self._number(place.layout.offset),
        )

    def runnable(
        self, launches: Sequence[Launch], kernels: Kernels, runner: Runner | None, threads: int = 1
    ) -> Callable[[], None]:
        """Runs the op once by these launches; by its reference where there are none.

        Raises:
            InputError, DeviceError: it cannot be run.

        """
        plan = assemble_op(self.layouts, Emitted(self.op, tuple(launches)), self.roots, self.values)
        program = Program(plan, runner, kernels, threads=threads)
        given = [*map(self.tensor, self.roots), *self.values.values()]
        key = program.check(given)

        def run() -> None:
            with program.lock:
                program.run(key, given)

        return run


def roots_of(op: Op, layouts: LayoutMap) -> list[Value]:
    """The values that own the memory of an op's operands and results."""
    return list(dict.fromkeys(layouts.root(v) for v in (*op.operands, *op.results)))


__all__ = ["Trial", "roots_of"]
