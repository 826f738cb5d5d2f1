"""Kernels for a GPU: what every context has besides its geometry, and what is known of a launch.

A kernel's arguments are its buffers, then its dims, in the order that the context declares. What
is known of them at compile time (pointers that are multiples of 16 bytes, strides that are
multiples of 8 elements) goes into ``hints``: without it they are read element by element.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeVar

import sympy

from fuseline.codegen.forms import Form, When
from fuseline.codegen.kernel import KernelTemplate
from fuseline.codegen.lower import Launch, Operand
from fuseline.ir.core import Value
from fuseline.ir.layout import LayoutMap
from fuseline.ir.types import BufferType, Dim, dim

TRITON_TYPES = {
    "f64": "fp64",
    "f32": "fp32",
    "bf16": "bf16",
    "f16": "fp16",
    "i64": "i64",
    "i32": "i32",
    "i16": "i16",
    "i8": "i8",
    "u8": "u8",
    "bool": "i1",
}
"""Our names of element types, and those of Triton's signatures."""

TL_TYPES = {
    "f64": "tl.float64",
    "f32": "tl.float32",
    "bf16": "tl.bfloat16",
    "f16": "tl.float16",
    "i64": "tl.int64",
    "i32": "tl.int32",
    "i16": "tl.int16",
    "i8": "tl.int8",
    "u8": "tl.uint8",
    "bool": "tl.int1",
}
"""Our names of element types, and those of Triton's language."""

ALIGNMENT = 16
"""Bytes: every buffer begins at a multiple, and no hint says more of a dim."""

AT_HAND = 16
"""Elements of its rows that a thread of a norm holds, at most, where it asks for weight and bias
along with them: that takes one wait for memory, not two, and registers that longer rows need."""


@dataclass(frozen=True, kw_only=True)
class GpuKernel(KernelTemplate):
    """Base of the contexts of kernels that a GPU runs, in Triton or in CUDA C++.

    A subclass gives ``buffers`` (name and element type) and ``dims`` (name and integer type), in
    the order of the kernel's arguments.

    Attributes:
        warps: of a block.
        hints: known divisors of arguments: bytes for pointers, values for integers.

    """

    warps: int = 4
    hints: tuple[tuple[str, int], ...] = ()

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        raise NotImplementedError

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type (``i32`` or ``i64``) of each integer argument."""
        raise NotImplementedError

    @property
    def signature(self) -> dict[str, str]:
        """The type of each argument, as Triton spells it."""
        pointers = {name: f"*{TRITON_TYPES[kind]}" for name, kind in self.buffers}
        return pointers | dict(self.dims)


@dataclass(frozen=True, kw_only=True)
class TritonKernel(GpuKernel):
    """Base of the Triton contexts.

    Attributes:
        stages: of software pipelining.

    """

    stages: int = 2

    @property
    def arguments(self) -> str:
        """The names of all arguments, for the head of the function."""
        return ", ".join(name for name, _ in (*self.buffers, *self.dims))


def strides(*names: str, axes: str = "") -> tuple[tuple[str, str], ...]:
    """Dims ``<name>_<axis>`` of 64 bits: what is counted in elements of a whole buffer."""
    return tuple((f"{name}_{axis}", "i64") for name in names for axis in axes)


def launch(
    kernel: GpuKernel,
    buffers: Sequence[Operand],
    dims: Mapping[str, Dim],
    grid: Sequence[Dim],
    layouts: LayoutMap,
    work: Dim,
    *,
    when: When = None,
    form: Form | None = None,
) -> Launch:
    """A launch of a kernel, with what is known of its arguments.

    Args:
        kernel: without hints.
        buffers: in the order of ``kernel.buffers``.
        dims: the value of each of ``kernel.dims``.
        grid: blocks, up to three dims.
        layouts: where the buffers lie.
        work: as in `Launch`.
        when: as in `Launch`.
        form: as in `Launch`.

    """
    ordered = tuple(dims[name] for name, _ in kernel.dims)
    hinted = with_hints(kernel, buffers, dims, layouts)
    blocks = (*grid, 1, 1)[:3]
    return Launch(
        hinted, tuple(buffers), ordered, work, when, form, grid=(blocks[0], blocks[1], blocks[2])
    )


KernelT = TypeVar("KernelT", bound=GpuKernel)
FirstT = TypeVar("FirstT", bound=GpuKernel)
SecondT = TypeVar("SecondT", bound=GpuKernel)


def with_hints(
    kernel: KernelT, buffers: Sequence[Operand], dims: Mapping[str, Dim], layouts: LayoutMap
) -> KernelT:
    """A kernel with what is known of the arguments of a launch; see `launch`."""
    assert len(buffers) == len(kernel.buffers), f"{kernel.family} has other buffers"
    assert len(dims) == len(kernel.dims), f"{kernel.family} has other dims"
    of_dims = {name: divisor(value) for name, value in dims.items()}
    if layouts.batch_invariant:
        of_dims = _steady_divisors(kernel, buffers, dims)
    known: list[tuple[str, int]] = []
    for (name, _), buffer in zip(kernel.buffers, buffers, strict=True):
        by = _alignment(buffer, layouts) if isinstance(buffer, Value) else ALIGNMENT
        if layouts.batch_invariant and isinstance(buffer, Value):
            strides = [n for d, n in of_dims.items() if d.rpartition("_")[0] == name]
            by = min([by, *(buffer.dtype.itemsize * n for n in strides)])
        known.append((name, by))
    known += list(of_dims.items())
    return dataclasses.replace(kernel, hints=tuple((n, by) for n, by in known if by > 1))


def _steady_divisors(
    kernel: GpuKernel, buffers: Sequence[Operand], dims: Mapping[str, Dim]
) -> dict[str, int]:
    """Divisors of dims that are the same whatever the sizes are: how a row is read, and so how it
    is added up, depends on them.

    What is counted has none. An operand's strides all have that of the least, or of its width: from
    row to row it is known, and further out it is that times a size; a single row has any stride.
    """
    strides = {name: divisor(dims[name]) for name, kind in kernel.dims if kind == "i64"}
    least = {
        name: divisor(value.shape[-1]) if value.shape else 1
        for (name, _), value in zip(kernel.buffers, buffers, strict=True)
        if isinstance(value, Value)
    }
    for name, by in strides.items():
        operand = name.rpartition("_")[0]
        least[operand] = min(by, least.get(operand, by))
    return {name: least[name.rpartition("_")[0]] if name in strides else 1 for name in dims}


def _alignment(value: Value, layouts: LayoutMap) -> int:
    """The bytes that the place of a value is known to be a multiple of, at most 16.

    The memory of a root that is not askew begins at a multiple of 16: the runtime sees to that.
    """
    if layouts.root(value) in layouts.askew:
        return value.dtype.itemsize
    offset = layouts.layout(value).offset
    return divisor(dim(offset * value.dtype.itemsize))


def is_parameter(value: Value, layouts: LayoutMap) -> bool:
    """Whether a value lies in a parameter that the program does not write: a kernel may read it
    before the kernel ahead has ended.
    """
    root = layouts.root(value)
    read = root.owner is None and not isinstance(root.type, BufferType)
    return read and root.origin is not None and root.origin.kind == "param"


def divisor(value: Dim) -> int:
    """The largest power of two up to 16 that divides a dim whatever its symbols are; 16 for 0."""
    if isinstance(value, int):
        return math.gcd(value, ALIGNMENT) if value else ALIGNMENT
    expression: Any = sympy.sympify(value)
    found = ALIGNMENT
    for term in expression.as_ordered_terms():
        factor, rest = term.as_coeff_Mul()
        if not factor.is_Integer or not _is_integer(rest):
            return 1
        found = math.gcd(found, int(factor))
    return found


def _is_integer(term: Any) -> bool:
    """Whether a product of powers of symbols is an integer for sure."""
    return bool(term.is_integer)


def in_turn(first: Iterable[FirstT], second: Iterable[SecondT]) -> list[FirstT | SecondT]:
    """One of each, as long as there are any: then measuring the likeliest few has some of both."""
    pairs = zip_longest(first, second)
    return [kernel for pair in pairs for kernel in pair if kernel is not None]


def ceil_div(value: Dim, by: int) -> Dim:
    """Blocks of ``by`` that hold ``value``."""
    if by == 1:
        return value
    if isinstance(value, int):
        return -(-value // by)
    return dim((value + (by - 1)) // by)


def next_power_of_two(value: int) -> int:
    """The smallest power of two that is no smaller."""
    return 1 << max(0, value - 1).bit_length()


__all__ = [
    "ALIGNMENT",
    "AT_HAND",
    "TL_TYPES",
    "TRITON_TYPES",
    "GpuKernel",
    "TritonKernel",
    "ceil_div",
    "divisor",
    "in_turn",
    "is_parameter",
    "launch",
    "next_power_of_two",
    "strides",
    "with_hints",
]
