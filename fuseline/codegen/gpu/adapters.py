"""Adapters of rows in Triton: the contexts of the kernels that compute `multi_lora`.

The first product leaves sums in float32 in scratch, by parts of K where there are few rows; the
second rounds and scales them, multiplies by B, and adds base. Rows are found as the pairs of
experts are (`fuseline.codegen.gpu.experts`): a block has one row, looks for the rows with the
adapter of its own, or takes them from a sorted list. Rows without an adapter are one more group
that reads no matrix; so are, on a GPU, those with a number that stands for none.

A launch has the blocks that the worst case needs. A block without rows ends after it has read a few
integers, so what a call costs follows the adapters that rows use, and nothing waits for the host.
"""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.codegen.adapters import Adapters, Step
from fuseline.codegen.gpu.experts import Find, stops_at
from fuseline.codegen.gpu.kernel import TL_TYPES, TritonKernel, next_power_of_two


@dataclass(frozen=True)
class AdapterSortKernel(TritonKernel, template="triton/adapter_sort.py.jinja"):
    """The rows of each adapter, in their order, one adapter after the other; those without last.

    Writes ``start`` and ``stop`` of each of ``count + 1`` groups at the head of the scratch (i32,
    ``stop_at`` bytes apart), and the list of rows (i32) at ``list_at``.
    """

    varies = ""

    count: int
    chunk: int = 1024

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        return (("ids", "i64"), ("scratch", "u8"))

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        return (("rows", "i32"), ("list_at", "i64"))

    @property
    def stop_at(self) -> int:
        """Bytes from the starts to the stops."""
        return stops_at(self.count + 1)

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        return f"The rows of each of {self.count} adapters, in their order"


@dataclass(frozen=True, kw_only=True)
class AdapterKernel(TritonKernel):
    """A product of the rows of adapters.

    Attributes:
        adapters: what is computed.
        find: how a block finds its rows.
        splits: parts of K that the first product is computed in.
        block_m, block_n, block_k: rows, columns, and depth of a step.
        most: rows that ``alike`` looks through.
    """

    varies = "it has blocks of other sizes for more rows"

    adapters: Adapters
    find: Find
    splits: int
    block_m: int
    block_n: int
    block_k: int
    most: int = 128

    @property
    def count(self) -> int:
        """How many adapters there are."""
        return self.adapters.count

    @property
    def groups(self) -> int:
        """The power of two that holds the adapters, and those rows that have none."""
        return next_power_of_two(self.count + 1)

    @property
    def stop_at(self) -> int:
        """Bytes from the starts of the adapters' rows to the stops."""
        return stops_at(self.count + 1)

    @property
    def rank(self) -> int:
        """The width between the products."""
        return self.adapters.rank

    @property
    def single(self) -> bool:
        """Whether a block has one row: its product needs no tensor cores."""
        return self.block_m == 1

    @property
    def type(self) -> str:
        """The type of rows and matrices."""
        return TL_TYPES[self.adapters.dtype]

    @property
    def finding(self) -> tuple[tuple[str, str], ...]:
        """The buffer by which rows are found."""
        return () if self.find == "sorted" else (("ids", "i64"),)

    @property
    def places(self) -> tuple[tuple[str, str], ...]:
        """Where things lie in scratch."""
        return (("parts_at", "i64"), *([("list_at", "i64")] if self.find == "sorted" else []))

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        raise NotImplementedError

    @property
    def who(self) -> str:
        """The rows of a block, in words."""
        return "one row" if self.single else f"up to {self.block_m} rows of an adapter"


@dataclass(frozen=True, kw_only=True)
class AdapterLowKernel(AdapterKernel, template="triton/adapter_low.py.jinja"):
    """Rows of x by A: ``[splits, rows, rank]`` sums in float32 at ``parts_at`` in scratch."""

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        dtype = self.adapters.dtype
        return (*self.finding, ("x", dtype), ("a", dtype), ("scratch", "u8"))

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        return (("rows", "i32"), ("x_stride", "i64"), *self.places)

    @property
    def depth(self) -> int:
        """The width of x."""
        return self.adapters.depth

    @property
    def n_stride(self) -> int:
        """Elements of A from a column of the result to the next."""
        return 1 if self.adapters.a_transposed else self.depth

    @property
    def k_stride(self) -> int:
        """Elements of A along the depth."""
        return self.rank if self.adapters.a_transposed else 1

    @property
    def share(self) -> int:
        """The depth of a part, in whole steps."""
        steps = -(-self.depth // self.block_k)
        return -(-steps // self.splits) * self.block_k

    @property
    def ragged_n(self) -> bool:
        """Whether the last block has columns that do not exist."""
        return self.rank % self.block_n != 0

    @property
    def ragged_k(self) -> bool:
        """Whether some step has a depth that does not exist."""
        return self.share * self.splits != self.depth

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        return f"First product of {self.adapters.title}: {self.who}, K in {self.splits} parts"


@dataclass(frozen=True, kw_only=True)
class AdapterHighKernel(AdapterKernel, template="triton/adapter_high.py.jinja"):
    """Sums of the first product, rounded and scaled, by B; and base is added."""

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        a = self.adapters
        found = [("b", a.dtype)]
        found += [("base", a.base)] if a.base else []
        found += [("factors", a.factor)] if a.factor else []
        return (*self.finding, *found, ("y", a.out), ("scratch", "u8"))

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        base = [("base_stride", "i64")] * bool(self.adapters.base)
        return (("rows", "i32"), *base, ("y_stride", "i64"), *self.places)

    @property
    def width(self) -> int:
        """Columns of y."""
        return self.adapters.width

    @property
    def n_stride(self) -> int:
        """Elements of B from a column of y to the next."""
        return 1 if self.adapters.b_transposed else self.rank

    @property
    def k_stride(self) -> int:
        """Elements of B along the rank."""
        return self.width if self.adapters.b_transposed else 1

    @property
    def ragged_n(self) -> bool:
        """Whether the last block has columns that do not exist."""
        return self.width % self.block_n != 0

    @property
    def ragged_k(self) -> bool:
        """Whether the last step has a depth that does not exist."""
        return self.rank % self.block_k != 0

    @property
    def low_steps(self) -> tuple[Step, ...]:
        """What happens to the sums of the first product."""
        return _in_triton(self.adapters.low_steps)

    @property
    def high_steps(self) -> tuple[Step, ...]:
        """What happens to the sums of the second product."""
        return _in_triton(self.adapters.high_steps)

    @property
    def total_steps(self) -> tuple[Step, ...]:
        """The sum with base."""
        return _in_triton(self.adapters.total_steps)

    @property
    def out_type(self) -> str:
        """The type of y."""
        return TL_TYPES[self.adapters.out]

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        return f"Second product of {self.adapters.title}: {self.who}"


def _in_triton(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Statements' right sides, rounded; the type is that of the rounding."""
    needed = (step for step in steps if step != ("v", "f32"))
    return tuple((_rounded(expression, kind), kind) for expression, kind in needed)


def _rounded(expression: str, kind: str) -> str:
    if kind == "f32":
        return expression
    return f"({expression}).to({TL_TYPES[kind]}).to(tl.float32)"


__all__ = ["AdapterHighKernel", "AdapterKernel", "AdapterLowKernel", "AdapterSortKernel"]
