"""mla_projection from a func in text form to numbers: strided rows in, results or caches out."""

from __future__ import annotations

import pytest
import torch

from fuseline.codegen.lower import Refusal, lower
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from tests.codegen.cpu.test_lower_rows import check
from tests.codegen.mla_cases import ROPES, SIZES, head, rope, rows
from tests.codegen.oracle import DTYPES, seeded


@pytest.mark.parametrize("first", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_rows_at_odd_sizes(dtype: str, first: int) -> None:
    for i, style in enumerate(ROPES):
        tokens, latent, shared, q = SIZES[(first + i + list(DTYPES).index(dtype)) % 3]
        tables, more = rope(style, shared)
        text = f"""{head(dtype, latent, shared, q)}
          %y, %z, %a = mla_projection %l, %k, %q, %lw, %qw, {tables} {{eps = 1e-05, {more}}}
          return %y, %z, %a
        }}"""
        check(text, rows(dtype, tokens, latent, shared, q), ops=["mla_projection"])


@pytest.mark.parametrize("cast", ["before_weight", "last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_and_offset(dtype: str, cast: str) -> None:
    """A latent that is scaled behind its norm; no rotation, no weight of q."""
    text = f"""{head(dtype, 48, 8, 20)}
      %y, %z, %a = mla_projection %l, %k, %q, %lw {{
        scale = 2.449489742783178, offset = 1.0, cast = "{cast}"}}
      return %y, %z, %a
    }}"""
    check(text, rows(dtype, 5, 48, 8, 20), ops=["mla_projection"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_some_rows_only(dtype: str) -> None:
    for given, results in (("%l, _, _, %lw", "%y"), ("_, %k, _, _, _, %c, %s {width = 8}", "%y")):
        text = f"""{head(dtype, 24, 8, 28)}
          {results} = mla_projection {given}
          return {results}
        }}"""
        check(text, rows(dtype, 3, 24, 8, 28), ops=["mla_projection"])


@pytest.mark.parametrize("heads", ["1, ", ""])
@pytest.mark.parametrize("dtype", DTYPES)
def test_written_into_caches(dtype: str, heads: str) -> None:
    """With and without the dim of one head; a latent without a norm is copied."""
    caches = f""", %at: i64[S], %lc: buffer<{dtype}[2, {heads}11, 24]>,
        %kc: buffer<{dtype}[2, {heads}11, 8]>"""
    shape = (2, 1, 11) if heads else (2, 11)
    for norm, weight in (("true", "%lw"), ("false", "_")):
        text = f"""{head(dtype, 24, 8, 28, caches).replace("[B,", "[2,")}
          %a = mla_projection_write %l, %k, %q, {weight}, %qw, %c, %s, %at, %lc, %kc {{
            width = 8, norm = {norm}}}
          return %a
        }}"""
        arguments = [
            *rows(dtype, 3, 24, 8, 28),
            torch.tensor([9, 0, 10]),
            *(seeded(*shape, w, dtype=DTYPES[dtype], seed=5) for w in (24, 8)),
        ]
        check(text, arguments, ops=["mla_projection_write"])


def test_no_result_where_only_caches_are_written() -> None:
    caches = ", %at: i64[S], %lc: buffer<f32[2, 1, 11, 24]>"
    text = f"""{head("f32", 24, 8, 28, caches).replace("[B,", "[2,")}
      mla_projection_write %l, _, _, %lw, _, _, _, %at, %lc
      return %l
    }}"""
    arguments = [*rows("f32", 2, 24, 8, 28), torch.tensor([4, 1]), torch.zeros(2, 1, 11, 24)]
    check(text, arguments, ops=["mla_projection_write"])


def refusal(body: str, args: str) -> str:
    func = parse_func(f"func @f({args}) {{ {body} return %y }}")
    found = lower(func.ops[0], LayoutMap(func))
    assert isinstance(found, Refusal)
    return found.reason


def test_no_kernel_for_what_it_cannot_do() -> None:
    wide = "%y = mla_projection %l"
    assert refusal(wide, "%l: f64[B, S, 8]") == "f64 operands; the kernel takes f32, bf16 and f16"
    assert refusal(wide, "%l: f32[B, S, L]") == "rows of unknown width: f32[B, S, L]"
    scaled = "%y = mla_projection %l {norm = false, scale = 2.0}"
    assert refusal(scaled, "%l: f32[B, S, 8]") == "a scale without a norm"
    odd = "%y = mla_projection _, %k, _, _, _, %c, %c {width = 7}"
    assert "rotation of 7" in refusal(odd, "%k: f32[B, S, 7], %c: f32[1, S, 7]")
