"""Norm and rotation of heads in Triton: numbers through the interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fuseline.codegen.gpu import lower_heads
from fuseline.codegen.lower import NeedDense, Refusal, lower
from fuseline.ir.core import Func
from fuseline.ir.evaluate import evaluate
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from tests.codegen.gpu.harness import check, run_func
from tests.codegen.machine import Machine
from tests.codegen.oracle import DTYPES, seeded


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

    def check(self, batch: int = 2, tokens: int = 5, **attributes: Any) -> None:
        """Hold the launches to the reference under these attributes of the op."""
        text, arguments = self.made(batch, tokens, attributes)
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


@pytest.mark.parametrize("width", [8, 64, 80, 96, 112, 128, 192, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_head_widths(dtype: str, width: int) -> None:
    Case(dtype, width=width).check(batch=1, tokens=3)


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (3, 1), (1, 37), (2, 0), (0, 3)])
def test_token_counts(batch: int, tokens: int) -> None:
    Case("bf16", heads=(5, 1)).check(batch, tokens)


def test_one_sequence_has_no_stride_of_batch() -> None:
    text, arguments = Case("bf16", cache=9).made(1, 3, {})
    check(text.replace("[B, ", "[1, ").replace("(B, ", "(1, "), arguments)


def test_many_rows_share_larger_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower_heads, "FEW", 4)
    Case("bf16", heads=(9, 4), cache=40).check(tokens=33)
    Case("f32", heads=(9, 4), rotated=32).check(tokens=7, scope="row")


@pytest.mark.parametrize("style", ["half", "interleaved", "deinterleave"])
@pytest.mark.parametrize("table", ["full", "half"])
def test_rotations(table: str, style: str) -> None:
    """Whole, leading, trailing, inner and odd parts; both signs and orders; rounded or not."""
    parts = [(0, 64), (0, 32), (32, 32), (8, 40), (2, 6), (0, 2)]
    for i, (start, width) in enumerate(parts):
        case = Case(list(DTYPES)[i % 3], rotated=width)
        case.check(
            style=style,
            table=table,
            start=start,
            sign=-1 if i % 2 else 1,
            round=i % 2 == 0,
            out="bshd" if i % 2 else "bhsd",
            order="rope_norm" if i % 3 == 0 else "norm_rope",
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_tables_of_another_dtype(dtype: str) -> None:
    for table in set(DTYPES) - {dtype}:
        order = "rope_norm" if table == "f32" else "norm_rope"
        Case(dtype, table_dtype=table).check(order=order)


def test_tables_that_differ_over_the_batch() -> None:
    Case("bf16", table_batch=3).check(batch=3)


@pytest.mark.parametrize("order", ["norm_rope", "rope_norm"])
@pytest.mark.parametrize("cast", ["before_weight", "last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms(dtype: str, cast: str, order: str) -> None:
    """RMS with an offset and without a weight, layer norm shared and by head."""
    how: dict[str, Any] = {"cast": cast, "order": order, "eps": 1e-5}
    Case(dtype, width=96, rotated=48).check(offset=1.0, **how)
    Case(dtype, width=96, rotated=48, weight=None).check(**how)
    Case(dtype, width=96, rotated=48, bias=True).check(norm="layer", **how)
    Case(dtype, width=46, rotated=30, by_head=True, bias=True).check(norm="layer", start=10, **how)
    if cast == "last":
        Case(dtype, width=96, weight="f32").check(offset=1.0, **how)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_without_rotation_and_rotation_without_norm(dtype: str) -> None:
    Case(dtype, width=80, rotated=0).check()
    Case(dtype, width=80, weight=None).check(norm="none")
    Case(dtype, width=80, rotated=32, weight=None).check(norm="none", start=8)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_across_heads_of_unequal_number(dtype: str, norm: str) -> None:
    """q and k are normed over their whole, different widths."""
    case = Case(dtype, heads=(6, 1), rotated=32, bias=norm == "layer")
    case.check(scope="row", norm=norm)
    case = Case(dtype, heads=(3, 2), width=20, rotated=16, cache=7)
    case.check(1, 1, scope="row", norm=norm, cast="last", start=4)
    Case(dtype, heads=(3, 2), width=20).check(scope="row", norm=norm, order="rope_norm")


@pytest.mark.parametrize("dtype", DTYPES)
def test_writes_keys_and_values_into_the_cache(dtype: str) -> None:
    Case(dtype, heads=(4, 2), cache=11).check(tokens=4)
    Case(dtype, heads=(4, 2), width=40, rotated=16, cache=11).check(tokens=4, out="bshd")
    Case(dtype, heads=(2, 1), rotated=0, weight=None, cache=3).check(1, 3, norm="none")


def run(text: str, arguments: Sequence[Tensor]) -> tuple[Func, Machine]:
    """A func, and its launches after a run."""
    func = parse_func(text)
    return func, run_func(func, arguments)


def test_positions_outside_the_cache_are_not_written() -> None:
    text, arguments = Case("f32", heads=(1, 1), cache=5).made(1, 4, {})
    arguments[-3] = torch.tensor([-1, 5, 4, 2**40])
    func, machine = run(text, arguments)
    inside = [a.clone() for a in arguments]
    inside[-3] = torch.tensor([0, 1, 4, 2])
    want = evaluate(parse_func(text), inside)
    torch.testing.assert_close(machine.tensor(func.returns[0]), want[0])
    for arg, before, after in zip(func.args[-2:], arguments[-2:], inside[-2:], strict=True):
        got = machine.memory[arg]
        assert torch.equal(got[:, :, :4], before[:, :, :4])
        torch.testing.assert_close(got[:, :, 4], after[:, :, 4])


def test_special_values() -> None:
    """Infinities and NaN come out where eager has them."""
    for dtype in DTYPES:
        text, arguments = Case(dtype, heads=(1, 1)).made(1, 6, {})
        x, weight = arguments[:2]
        x[0, 0, 4 + 3], x[0, 1, 4 + 3], x[0, 2] = torch.inf, torch.nan, 0.0
        weight[7], weight[8] = torch.inf, torch.nan
        func, machine = run(text, arguments)
        for value, eager in zip(func.returns, evaluate(parse_func(text), arguments), strict=True):
            got = machine.tensor(value)
            assert torch.equal(got.isnan(), eager.isnan())
            assert torch.equal(got.isinf(), eager.isinf())


def test_bf16_rounds_where_eager_rounds() -> None:
    """Equal to eager but for rare ties: rounding points are eager's."""
    for width in (128, 72):
        text, arguments = Case("bf16", width=width).made(1, 40, {})
        func, machine = run(text, arguments)
        for value, eager in zip(func.returns, evaluate(parse_func(text), arguments), strict=True):
            assert float((machine.tensor(value) != eager).float().mean()) < 2e-3


def refused(body: str, args: str) -> str:
    """Why the last op of a func has no kernel."""
    func = parse_func(f"func @f({args}) {{ {body} return %y }}")
    found = lower(func.ops[-1], LayoutMap(func), "cuda")
    assert isinstance(found, Refusal)
    return found.reason


def test_no_kernel_for_what_it_cannot_do() -> None:
    heads = "%q: bf16[B, S, 4, 16], %k: bf16[B, S, 2, 16]"
    tables = "%c: bf16[1, S, 16], %s: bf16[1, S, 16]"
    plain = "%y, %z = qk_norm_rope %q, %k"
    turned = f"{plain}, _, _, _, _, %c, %s"
    assert "f64 operands" in refused(plain, heads.replace("bf16", "f64"))
    assert "known heads" in refused(plain, heads.replace("4", "H"))
    assert "several types" in refused(plain, heads.replace("bf16", "f32", 1))
    assert "rotation of 7" in refused(f"{turned} {{width = 7}}", f"{heads}, {tables}")
    assert "rotation beyond" in refused(f"{turned} {{width = 16, start = 2}}", f"{heads}, {tables}")
    promoted = refused(f"{plain}, %w", f"{heads}, %w: f32[16]")
    assert promoted == "q becomes f32, its result is bf16[B, 4, S, 16]"
    wide = heads.replace("4, 16", "300, 128").replace("2, 16", "2, 128")
    assert "131072 bytes of q" in refused(f'{plain} {{scope = "row"}}', wide)


def test_rows_that_are_not_dense_are_copied_first() -> None:
    func = parse_func("""func @f(%x: bf16[B, S, 4, 32], %k: bf16[B, S, 2, 16]) {
      %q = slice %x {axis = 3, start = 0, stop = 32, step = 2}
      %y, %z = qk_norm_rope %q, %k
      return %y, %z
    }""")
    found = lower(func.ops[-1], LayoutMap(func), "cuda")
    assert found == NeedDense((func.ops[0].results[0],))
