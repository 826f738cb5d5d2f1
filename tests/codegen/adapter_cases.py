"""Adapters of rows for the tests of every target: the op in text form, and seeded operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fuseline.ir.core import Func
from fuseline.ir.evaluate import evaluate
from fuseline.ir.text import parse_func
from tests.codegen.machine import Machine
from tests.codegen.oracle import DTYPES, assert_numbers, seeded

NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Case:
    """The op's fields in short; ``gap`` elements lie between rows of x, and of base."""

    count: int = 3
    depth: int = 40
    rank: int = 8
    width: int = 24
    dtype: str = "f32"
    base: str | None = "same"
    factor: str | None = None
    delta: str = "same"
    out: str = "same"
    scale: float = 1.0
    inner: bool = False
    rounds: bool = True
    skips: bool = False
    a_transposed: bool = False
    b_transposed: bool = False
    gap: int = 0

    def _type(self, name: str) -> str:
        return self.dtype if name == "same" else name

    def text(self, *, wide: bool = False) -> str:
        """The func; ``wide``: in float64."""

        def kind(name: str) -> str:
            return "f64" if wide else self._type(name)

        d, k, n, r = kind("same"), self.depth, self.width, self.rank
        a = f"{k}, {r}" if self.a_transposed else f"{r}, {k}"
        b = f"{r}, {n}" if self.b_transposed else f"{n}, {r}"
        args = [
            f"%wide: {d}[T, {k + self.gap}]",
            "%ids: i64[T]",
            f"%a: {d}[{self.count}, {a}]",
            f"%b: {d}[{self.count}, {b}]",
        ]
        lines = [f"%x = slice %wide {{axis = 1, stop = {k}}}"]
        if self.base:
            args.append(f"%all: {kind(self.base)}[T, {n + self.gap}]")
            lines.append(f"%base = slice %all {{axis = 1, stop = {n}}}")
        args += [f"%factor: {kind(self.factor)}[T]"] if self.factor else []
        flags = ("inner", "rounds", "skips", "a_transposed", "b_transposed")
        fields = [f"{f} = {str(getattr(self, f)).lower()}" for f in flags]
        fields += [f"scale = {self.scale}"]
        fields += [f"delta_dtype = {kind(self.delta)}", f"dtype = {kind(self.out)}"]
        operands = f"%x, %ids, %a, %b, {'%base' if self.base else '_'}"
        operands += ", %factor" * bool(self.factor)
        lines.append(f"%y = multi_lora {operands} {{{', '.join(fields)}}}")
        return "\n".join([f"func @f({', '.join(args)}) {{", *lines, "return %y }"])

    def arguments(self, ids: Sequence[int], *, seed: int = 0) -> list[Tensor]:
        """Seeded operands for rows with these adapters."""
        d, k, n, r, rows = DTYPES[self.dtype], self.depth, self.width, self.rank, len(ids)
        found = [
            seeded(rows, k + self.gap, dtype=d, seed=seed),
            torch.tensor(list(ids), dtype=torch.int64),
            seeded(self.count, *((k, r) if self.a_transposed else (r, k)), dtype=d, seed=seed + 1),
            seeded(self.count, *((r, n) if self.b_transposed else (n, r)), dtype=d, seed=seed + 2),
        ]
        found[2] = found[2] * k**-0.5
        if self.base:
            base = DTYPES[self._type(self.base)]
            found.append(seeded(rows, n + self.gap, dtype=base, seed=seed + 3))
        if self.factor:
            found.append(seeded(rows, dtype=DTYPES[self._type(self.factor)], seed=seed + 4))
        return found

    def numbers(self, rows: int, *, seed: int = 0) -> list[int]:
        """Any adapters of so many rows."""
        generator = torch.Generator().manual_seed(seed)
        high = self.count + self.skips
        return [int(i) for i in torch.randint(0, high, (rows,), generator=generator)]


Run = Callable[[Func, Sequence[Tensor]], Machine]


def check(
    case: Case, ids: Sequence[int] | int, run: Run, *, arguments: list[Tensor] | None = None
) -> Tensor:
    """The launches give what the reference gives, within the numbers rule; the result."""
    if arguments is None:
        numbers = case.numbers(ids) if isinstance(ids, int) else ids
        arguments = case.arguments(numbers)
    (eager,) = evaluate(parse_func(case.text()), [a.clone() for a in arguments])
    widened = [a.double() if a.dtype.is_floating_point else a for a in arguments]
    (oracle,) = evaluate(parse_func(case.text(wide=True)), widened)
    func = parse_func(case.text())
    machine = run(func, arguments)
    assert [s.op.name for s in machine.steps] == ["multi_lora"]
    got = machine.tensor(func.returns[0]).contiguous()
    assert_numbers(got, eager, oracle)
    return got


FORMS: dict[str, Case] = {
    "plain": Case(),
    "odd": Case(depth=37, rank=5, width=53),
    "ones": Case(count=1, depth=1, rank=1, width=1),
    "rank above depth": Case(depth=6, rank=33, width=19),
    "wide rank": Case(depth=24, rank=256, width=40),
    "turned": Case(a_transposed=True, b_transposed=True),
    "turned, odd": Case(depth=301, rank=17, width=131, a_transposed=True, b_transposed=True),
    "a turned": Case(rank=16, a_transposed=True),
    "b turned": Case(rank=3, b_transposed=True),
    "many": Case(count=300, rank=4),
    "skips": Case(skips=True, scale=0.3),
    "no base": Case(base=None, factor="same"),
    "no base, skips": Case(base=None, skips=True),
    "factor": Case(factor="same", scale=0.3),
    "factor, inner": Case(factor="f32", scale=1.7, inner=True, skips=True),
    "factor in float32": Case(factor="f32", delta="f32", out="f32"),
    "factor in float32, cast": Case(factor="f32"),
    "one rounding": Case(rounds=False, delta="f32", scale=0.3),
    "rows apart": Case(gap=3),
    "negative scale": Case(scale=-2.5),
}
"""Every way in which the op can be asked for, at small sizes."""


__all__ = ["FORMS", "Case", "Run", "check"]
