"""What a case is: a func with random small operands under construction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st

from fuseline.ir.core import OPS, Func, Op, Value
from fuseline.ir.evaluate import Argument
from fuseline.ir.types import BufferType, Dim, DType, TensorType, symbol

T = TypeVar("T")

FLOATS = (DType.F64, DType.F32, DType.BF16, DType.F16)
INTS = (DType.I64, DType.I32, DType.I16, DType.I8, DType.U8)
NUMBERS = FLOATS + INTS
ALL = (*NUMBERS, DType.BOOL)
EXTENTS = (1, 2, 3, 4, 5)


@dataclass
class Case:
    """A func under construction, with the sizes of its symbols and its arguments."""

    draw: Callable[[st.SearchStrategy[Any]], Any]
    func: Func = field(default_factory=Func)
    arguments: list[Argument] = field(default_factory=list[Argument])
    symbolic: frozenset[int] = frozenset()

    def one_of(self, options: Iterable[T]) -> T:
        """Any of the options."""
        return self.draw(st.sampled_from(list(options)))

    def flag(self) -> bool:
        """True or false."""
        return self.draw(st.booleans())

    def number(self, lo: int, hi: int) -> int:
        """An integer from lo to hi."""
        return self.draw(st.integers(lo, hi))

    def shape(self, lo: int = 0, hi: int = 3) -> list[int]:
        """Between lo and hi extents."""
        return self.draw(st.lists(st.sampled_from(EXTENTS), min_size=lo, max_size=hi))

    def axes(self, rank: int, *, at_least: int = 0) -> tuple[int, ...]:
        """Some of the axes, in order."""
        chosen: set[int] = self.draw(st.sets(st.sampled_from(range(rank)), min_size=at_least))
        return tuple(sorted(chosen))

    def dim(self, size: int) -> Dim:
        """An extent as a symbol, where this case has one for that size, else as it is."""
        return symbol(f"N{size}") if size in self.symbolic else size

    def dims(self, sizes: Sequence[int], static: int = 0) -> tuple[Dim, ...]:
        """Extents, the last ``static`` of them never symbols."""
        head = len(sizes) - static
        return (*(self.dim(s) for s in sizes[:head]), *sizes[head:])

    def arg(
        self,
        dtype: DType,
        sizes: Sequence[int],
        *,
        static: int = 0,
        buffer: bool = False,
        values: torch.Tensor | None = None,
        positive: bool = False,
    ) -> Value:
        """A new argument, seeded; integers from 1 to 4, floats above 0 where ``positive``."""
        kind = TensorType(dtype, self.dims(sizes, static))
        value = self.func.add_arg(BufferType(kind) if buffer else kind, f"a{len(self.arguments)}")
        generator = torch.Generator().manual_seed(self.number(0, 99))
        if values is not None:
            made = values.to(dtype.torch)
        elif dtype.is_float:
            made = torch.randn(list(sizes), generator=generator, dtype=torch.float64)
            made = (made.abs() + 0.5 if positive else made).to(dtype.torch)
        elif dtype is DType.BOOL:
            made = torch.rand(list(sizes), generator=generator) < 0.5
        else:
            made = torch.randint(1, 5, list(sizes), generator=generator).to(dtype.torch)
        self.arguments.append(made)
        return value

    def indices(self, sizes: Sequence[int], limit: int) -> Value:
        """An i64 argument with elements below ``limit``."""
        generator = torch.Generator().manual_seed(self.number(0, 99))
        values = torch.randint(0, limit, list(sizes), generator=generator)
        return self.arg(DType.I64, sizes, values=values)

    def distinct(self, count: int, limit: int) -> Value:
        """A 1-d i64 argument of different elements below ``limit``."""
        generator = torch.Generator().manual_seed(self.number(0, 99))
        return self.arg(
            DType.I64, [count], values=torch.randperm(limit, generator=generator)[:count]
        )

    def maybe(self, make: Callable[[], Value]) -> Value | None:
        """An argument, or none."""
        return make() if self.flag() else None


Builder = Callable[[Case], Op]
CASES: dict[str, Builder] = {}


def case(*names: str) -> Callable[[Callable[[Case, type[Any]], Op]], None]:
    """Register the case of one or several ops; it gets the op's class."""

    def register(build: Callable[[Case, type[Any]], Op]) -> None:
        for name in names:
            CASES[name] = lambda c, name=name: build(c, OPS[name])

    return register
