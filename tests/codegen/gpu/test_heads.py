"""Norm and rotation of heads in Triton: numbers through the interpreter, and binaries."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fuseline.codegen.gpu.lower_heads import FEW
from fuseline.codegen.gpu.qk_norm_rope import QkNormRopeKernel
from fuseline.codegen.lower import Launch, NeedDense, Refusal, lower
from fuseline.codegen.lowerings import __all__ as registered
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.runtime.cache import Cache
from tests.codegen.gpu.harness import binaries, check
from tests.codegen.oracle import DTYPES, seeded

assert registered, "importing the module registers the lowerings"


def quoted(value: Any) -> str:
    """An attribute in the text form."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


@dataclass
class Case:
    """`qk_norm_rope` on columns 4 .. of one product: the text of a func, and its arguments.

    ``width`` elements a head, of which ``rotated`` by a table of dtype ``table_dtype`` are turned.
    """

    dtype: str
    heads: tuple[int, int] = (3, 2)
    width: int = 64
    rotated: int | None = None
    weight: str | None = "same"
    bias: bool = False
    by_head: bool = False
    table_dtype: str = "same"
    table_batch: int = 1
    cache: int = 0

    def _parameters(self, more: dict[str, Any]) -> list[tuple[str, str, tuple[int, ...]]]:
        kind = self.dtype if self.weight == "same" else self.weight
        if kind is None:
            return []
        found: list[tuple[str, str, tuple[int, ...]]] = []
        for operand in ("w", "b") if self.bias else ("w",):
            for name, heads in zip("qk", self.heads, strict=True):
                shape = (heads, self.width) if self.by_head else (self.width,)
                if more.get("scope") == "row":
                    shape = (heads * self.width,)
                found.append((f"{name}{operand}", kind, shape))
        return found

    def check(self, batch: int = 2, tokens: int = 5, **more: Any) -> None:
        """Hold the launches to the reference; ``more`` are attributes."""
        text, arguments = self.made(batch, tokens, more)
        check(text, arguments, ops=["qk_norm_rope_write" if self.cache else "qk_norm_rope"])

    def made(self, batch: int, tokens: int, more: dict[str, Any]) -> tuple[str, list[Tensor]]:
        """The func, for any number of tokens, and arguments for this one."""
        total = sum(self.heads) * self.width + (self.heads[1] * 8 if self.cache else 0)
        given = [("x", self.dtype, (batch, tokens, total + 4))]
        given += self._parameters(more)
        rotated = self.width if self.rotated is None else self.rotated
        if rotated:
            columns = rotated // 2 if more.get("table") == "half" else rotated
            kind = self.dtype if self.table_dtype == "same" else self.table_dtype
            given += [(name, kind, (self.table_batch, tokens, columns)) for name in ("c", "s")]
            more = more | {"width": rotated}
        arguments = [
            seeded(*shape, dtype=DTYPES[kind], seed=i, scale=2.0 if i == 0 else 1.0)
            for i, (_, kind, shape) in enumerate(given)
        ]
        signature = [
            f"%{name}: {kind}[{', '.join(self._dims(name, shape))}]" for name, kind, shape in given
        ]
        if self.cache:
            shapes = [(batch, self.heads[1], self.cache, w) for w in (self.width, 8)]
            signature += ["%at: i64[S]"]
            signature += [
                f"%{name}: buffer<{self.dtype}[B, {', '.join(map(str, shape[1:]))}]>"
                for name, shape in zip(("kc", "vc"), shapes, strict=True)
            ]
            places = torch.randperm(self.cache, generator=torch.Generator().manual_seed(0))
            arguments.append(places[:tokens])
            arguments += [seeded(*s, dtype=DTYPES[self.dtype], seed=9) for s in shapes]
        return self._func(signature, {name for name, _, _ in given}, more), arguments

    def _dims(self, name: str, shape: tuple[int, ...]) -> list[str]:
        if name not in ("x", "c", "s"):
            return [str(n) for n in shape]
        return ["B" if name == "x" or self.table_batch > 1 else "1", "S", str(shape[2])]

    def _func(self, signature: list[str], names: set[str], more: dict[str, Any]) -> str:
        streams = [("q", *self.heads[:1], self.width), ("k", self.heads[1], self.width)]
        streams += [("v", self.heads[1], 8)] if self.cache else []
        lines, start = list[str](), 4
        for name, heads, width in streams:
            stop = start + heads * width
            lines += [
                f"%{name}s = slice %x {{axis = 2, start = {start}, stop = {stop}}}",
                f"%{name} = reshape %{name}s {{shape = (B, S, {heads}, {width})}}",
            ]
            start = stop
        operands = ["q", "k", *(["v", "at", "kc", "vc"] if self.cache else [])]
        optional = [n if n in names else "" for n in ("qw", "kw", "qb", "kb", "c", "s")]
        listed = ", ".join(f"%{n}" if n else "_" for n in (*operands, *optional))
        attributes = ", ".join(f"{name} = {quoted(value)}" for name, value in more.items())
        op = "qk_norm_rope_write" if self.cache else "qk_norm_rope"
        results = "%y" if self.cache else "%y, %z"
        lines += [f"{results} = {op} {listed} {{{attributes}}}", f"return {results}"]
        return f"func @f({', '.join(signature)}) {{\n" + "\n".join(lines) + "\n}"


@pytest.mark.parametrize("width", [64, 80, 96, 112, 128, 192, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_head_widths(dtype: str, width: int) -> None:
    Case(dtype, width=width).check(batch=1, tokens=3)


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (3, 1), (1, 37), (2, 0), (0, 3)])
def test_token_counts(batch: int, tokens: int) -> None:
    Case("bf16", heads=(5, 1)).check(batch, tokens)


@pytest.mark.parametrize("style", ["half", "interleaved", "deinterleave"])
@pytest.mark.parametrize("table", ["full", "half"])
def test_rotations(table: str, style: str) -> None:
    """Whole, leading, trailing and inner parts of the head; both signs; rounded or not."""
    for i, (start, width) in enumerate([(0, 64), (0, 32), (8, 40), (2, 6)]):
        case = Case(list(DTYPES)[i % 3], rotated=width)
        more = {"style": style, "table": table, "start": start, "round": i % 2 == 0}
        more |= {"sign": -1 if i % 2 else 1, "out": "bshd" if i % 2 else "bhsd"}
        case.check(**more, order="rope_norm" if i == 2 else "norm_rope")
