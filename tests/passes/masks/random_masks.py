"""Random programs that build an attention mask, in the ways that models do.

A `MaskProgram` is a func whose last step is a mask ``[B, 1, Sq, Sk]``, with arguments that fit it.
The terms are drawn from what transformers' mask functions and hand-written models use, each in a
random spelling; some can be proven, others depend on data.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fuseline.ir.core import Func, Op, Value
from fuseline.ir.evaluate import Argument
from fuseline.ir.ops import create, index, pointwise, reduce, view
from fuseline.ir.types import Dim, DType, Range, TensorType, substitute, symbol


@dataclass(frozen=True)
class MaskProgram:
    """A func that is built up to its mask, and the dims of the scores."""

    func: Func
    mask: Value
    batch: Dim
    queries: Dim
    keys: Dim
    sizes: dict[str, int]

    def arguments(self, seed: int) -> list[Argument]:
        """Arguments that fit: positions from before the first key to behind the last one."""
        generator = torch.Generator().manual_seed(seed)
        return [self._argument(arg, generator) for arg in self.func.args]

    def _argument(self, arg: Value, generator: torch.Generator) -> Argument:
        shape = [substitute(d, self.sizes) for d in arg.shape]
        if arg.dtype.is_float:
            return torch.randn(shape, generator=generator).to(arg.dtype.torch)
        if arg.dtype is DType.BOOL:
            return torch.rand(shape, generator=generator) < 0.7
        high = substitute(self.keys, self.sizes) + 2
        return torch.randint(-1, high, shape, generator=generator)


class MaskMaker:
    """Draws one program."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.func = Func("f")
        self.batch: Dim = self.random.choice([1, 2, symbol("B")])
        self.queries: Dim = self.random.choice([1, 3, symbol("S"), symbol("S")])
        self.keys: Dim = self.random.choice([self.queries, self.queries, 5, symbol("T")])
        self.sizes = {"B": 2, "S": self.random.choice([1, 4]), "T": self.random.choice([3, 6])}
        self.func.symbols = {name: Range(1, None) for name in self.sizes}

    def program(self) -> MaskProgram:
        """A conjunction of one to four terms."""
        terms = [self.term() for _ in range(self.random.randint(1, 4))]
        while len(terms) > 1:
            lhs, rhs = terms.pop(self.random.randrange(len(terms))), terms.pop()
            conjunction = self.random.choice([pointwise.BitwiseAnd, pointwise.LogicalAnd])
            terms.append(self.add(conjunction(lhs, rhs)))
        shape = (self.batch, 1, self.queries, self.keys)
        mask = self.add(view.Expand(terms[0], shape=shape))
        return MaskProgram(self.func, mask, self.batch, self.queries, self.keys, self.sizes)

    # -- pieces -------------------------------------------------------------------------------

    def add(self, op: Op) -> Value:
        """Append an op; its result."""
        return self.func.append(op).results[0]

    def argument(self, dtype: DType, *shape: Dim) -> Value:
        """A new argument."""
        return self.func.add_arg(TensorType(dtype, shape), f"a{len(self.func.args)}")

    def number(self, value: int) -> Value:
        """A 0-d integer constant."""
        return self.add(create.Full(value=value, dtype=DType.I64))

    def lined_up(self, value: Value, place: str) -> Value:
        """A value ``[N]`` or ``[B, N]`` along queries or keys of the scores."""
        shape = value.shape
        lead: tuple[Dim, ...] = (shape[0] if len(shape) == 2 else 1, 1)
        tail: tuple[Dim, ...] = (shape[-1], 1) if place == "q" else (1, shape[-1])
        return self.add(view.Reshape(value, shape=(*lead, *tail)))

    def keys_row(self) -> Value:
        """0, 1, ... along the keys."""
        return self.lined_up(self.add(create.Iota(length=self.keys)), "k")

    def rows(self) -> Value:
        """The positions of the queries, in one of the ways that models compute them."""
        iota = self.add(create.Iota(length=self.queries))
        kind = self.random.choice(["plain", "plain", "shifted", "counted", "given", "by batch"])
        if kind == "shifted":
            iota = self.add(pointwise.Add(iota, self.number(self.random.randint(-2, 3))))
        elif kind == "counted":
            iota = self.add(pointwise.Add(iota, self.argument(DType.I64)))
        elif kind == "given":
            iota = self.argument(DType.I64, self.queries)
        elif kind == "by batch":
            iota = self.argument(DType.I64, self.batch, self.queries)
        return self.lined_up(iota, "q")

    def gathered(self, source: Value, row: str) -> Value:
        """``source[b, q]`` or ``source[b, k]``, as an index with broadcast indices."""
        batch = self.add(create.Iota(length=self.batch))
        batch = self.add(view.Reshape(batch, shape=(self.batch, 1, 1, 1)))
        extent = self.queries if row == "q" else self.keys
        other = self.lined_up(self.add(create.Iota(length=extent)), row)
        return self.add(index.Index(source, (batch, other), axes=(0, 1)))

    # -- terms --------------------------------------------------------------------------------

    def term(self) -> Value:
        """A bool value that broadcasts to the scores."""
        makers: list[Callable[[], Value]] = [
            self.causal,
            self.causal,
            self.window,
            self.padding,
            self.packed,
            self.chunked,
            self.both_ways,
            self.bounded,
            self.always,
            self.either,
            self.one_sequence,
        ]
        return self.random.choice(makers)()

    def causal(self) -> Value:
        """``k <= row``, in one of its spellings."""
        keys, rows = self.keys_row(), self.rows()
        spelled = self.random.randrange(5)
        if spelled == 0:
            return self.add(pointwise.Le(keys, rows))
        if spelled == 1:
            return self.add(pointwise.Ge(rows, keys))
        if spelled == 2:
            after = self.add(pointwise.Gt(keys, rows))
            return self.add(self.random.choice([pointwise.LogicalNot, pointwise.BitwiseNot])(after))
        if spelled == 3:
            return self.add(pointwise.Lt(keys, self.add(pointwise.Add(rows, self.number(1)))))
        distance = self.add(pointwise.Sub(rows, keys))
        return self.add(pointwise.Ge(distance, self.number(0)))

    def window(self) -> Value:
        """``k > row - width``."""
        keys, rows, width = self.keys_row(), self.rows(), self.number(self.random.randint(1, 4))
        if self.random.random() < 0.5:
            return self.add(pointwise.Gt(keys, self.add(pointwise.Sub(rows, width))))
        return self.add(pointwise.Lt(self.add(pointwise.Sub(rows, keys)), width))

    def padding(self) -> Value:
        """Which keys of each batch row count."""
        extra = self.random.choice([0, 0, 2])
        extent: Any = self.keys + extra
        dtype = self.random.choice([DType.BOOL, DType.I64])
        given = self.argument(dtype, self.batch, extent)
        if dtype is DType.I64:
            given = self.add(pointwise.Cast(given, dtype=DType.BOOL))
        if extra == 0 and self.random.random() < 0.3:
            return self.lined_up(given, "k")
        return self.gathered(given, "k")

    def packed(self) -> Value:
        """Queries and keys of the same sequence."""
        if self.queries != self.keys:
            return self.padding()
        sequence = self.argument(DType.I64, self.batch, self.queries)
        return self.add(pointwise.Eq(self.gathered(sequence, "q"), self.gathered(sequence, "k")))

    def one_sequence(self) -> Value:
        """What finds several sequences in positions, given positions that are one."""
        if self.queries != self.keys:
            return self.always()
        iota = self.add(create.Iota(length=self.queries, start=self.random.randint(0, 2)))
        shape = (self.batch, self.queries)
        positions = self.add(view.Expand(iota, shape=shape))
        first = self.add(view.Slice(positions, axis=1, start=0, stop=1))
        before = self.add(pointwise.Sub(first, self.number(1)))
        joined = self.add(view.Concat((before, positions), axis=1))
        extent: Any = self.queries
        after = self.add(view.Slice(joined, axis=1, start=1, stop=extent + 1))
        until = self.add(view.Slice(joined, axis=1, start=0, stop=extent))
        step = self.add(pointwise.Sub(after, until))
        breaks = self.add(pointwise.Ne(step, self.number(1)))
        sequence = self.add(reduce.Cumsum(breaks, axis=1))
        return self.add(pointwise.Eq(self.gathered(sequence, "q"), self.gathered(sequence, "k")))

    def chunked(self) -> Value:
        """Queries and keys of the same chunk."""
        size = self.number(self.random.randint(1, 3))
        rows, keys = (
            self.add(pointwise.FloorDivide(x, size)) for x in (self.rows(), self.keys_row())
        )
        return self.add(pointwise.Eq(keys, rows))

    def both_ways(self) -> Value:
        """``|row - k| <= width``."""
        distance = self.add(pointwise.Sub(self.rows(), self.keys_row()))
        near = self.add(pointwise.Abs(distance))
        return self.add(pointwise.Le(near, self.number(self.random.randint(0, 3))))

    def bounded(self) -> Value:
        """``k < length``."""
        limit = self.argument(DType.I64)
        return self.add(pointwise.Lt(self.keys_row(), limit))

    def always(self) -> Value:
        """What holds everywhere, without saying so."""
        if self.random.random() < 0.5:
            shape = (1, 1, self.queries, self.keys)
            return self.add(create.Full(value=True, shape=shape, dtype=DType.BOOL))
        rows = self.lined_up(self.add(create.Iota(length=self.queries)), "q")
        return self.add(pointwise.Ge(rows, self.number(0)))

    def either(self) -> Value:
        """One term or another."""
        disjunction = self.random.choice([pointwise.BitwiseOr, pointwise.LogicalOr])
        return self.add(disjunction(self.causal(), self.padding()))
