"""Funcs of mla_projection in text form, and their arguments, for the tests of every target."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.codegen.cases import Case, Cases
from tests.codegen.oracle import DTYPES, seeded

ROPES = {
    "half": 'style = "half", table = "full", width = W',
    "interleaved": 'style = "interleaved", table = "half", width = W, round = false, sign = -1',
    "deinterleave": 'style = "deinterleave", table = "half", width = W',
}


def rows(dtype: str, tokens: int, latent: int, shared: int, q: int, batch: int = 2) -> list[Tensor]:
    """The product of the merged projections (a few columns more), the weights and the tables."""
    kind = DTYPES[dtype]
    return [
        seeded(batch, tokens, 3 + q + latent + shared, dtype=kind, scale=2.0),
        seeded(latent, dtype=kind, seed=1),
        seeded(q, dtype=kind, seed=2),
        *(seeded(1, tokens, shared, dtype=kind, seed=i) for i in (3, 4)),
    ]


def head(dtype: str, latent: int, shared: int, q: int, caches: str = "") -> str:
    """The arguments, and latent, shared key and q as columns of one product."""
    return f"""func @f(%x: {dtype}[B, S, {3 + q + latent + shared}], %lw: {dtype}[{latent}],
        %qw: {dtype}[{q}], %c: {dtype}[1, S, {shared}], %s: {dtype}[1, S, {shared}]{caches}) {{
      %q = slice %x {{axis = 2, start = 3, stop = {3 + q}}}
      %l = slice %x {{axis = 2, start = {3 + q}, stop = {3 + q + latent}}}
      %k = slice %x {{axis = 2, start = {3 + q + latent}, stop = {3 + q + latent + shared}}}
      %ch = slice %c {{axis = 2, stop = {shared // 2}}}
      %sh = slice %s {{axis = 2, stop = {shared // 2}}}"""


def rope(style: str, shared: int) -> tuple[str, str]:
    """The tables and the attributes of a style."""
    tables = "%c, %s" if style == "half" else "%ch, %sh"
    return tables, ROPES[style].replace("W", str(shared))


SIZES = ((1, 24, 8, 28), (7, 80, 6, 113), (5, 128, 64, 96))
"""Tokens and the widths of latent, shared key and q: no blocks, some, only blocks of vectors."""


ROWS = Cases()


def all_rows(dtype: str, style: str, sizes: tuple[int, int, int, int]) -> Case:
    """Latent, shared key and q, each normed or turned."""
    tokens, latent, shared, q = sizes
    tables, more = rope(style, shared)
    text = f"""{head(dtype, latent, shared, q)}
      %y, %z, %a = mla_projection %l, %k, %q, %lw, %qw, {tables} {{eps = 1e-05, {more}}}
      return %y, %z, %a
    }}"""
    return Case(text, rows(dtype, tokens, latent, shared, q), ops=["mla_projection"])


REFUSED = {
    "f64": ("mla_projection %l", "%l: f64[B, S, 8]", "f64 operands"),
    "unknown width": ("mla_projection %l", "%l: f32[B, S, L]", "unknown width: f32[B, S, L]"),
    "scale alone": (
        "mla_projection %l {norm = false, scale = 2.0}",
        "%l: f32[B, S, 8]",
        "a scale without a norm",
    ),
    "odd rotation": (
        "mla_projection _, %k, _, _, _, %c, %c {width = 7}",
        "%k: f32[B, S, 7], %c: f32[1, S, 7]",
        "rotation of 7",
    ),
}
"""An op, its arguments, and a part of the reason why it has no kernel."""


@ROWS
@pytest.mark.parametrize("cast", ["before_weight", "last"])
@pytest.mark.parametrize("dtype", DTYPES)
def scale_and_offset(dtype: str, cast: str) -> Iterator[Case]:
    """A latent that is scaled behind its norm; no rotation, no weight of q."""
    text = f"""{head(dtype, 48, 8, 20)}
      %y, %z, %a = mla_projection %l, %k, %q, %lw {{
        scale = 2.449489742783178, offset = 1.0, cast = "{cast}"}}
      return %y, %z, %a
    }}"""
    yield Case(text, rows(dtype, 5, 48, 8, 20), ops=["mla_projection"])


@ROWS
@pytest.mark.parametrize("dtype", DTYPES)
def some_rows_only(dtype: str) -> Iterator[Case]:
    for given, results in (("%l, _, _, %lw", "%y"), ("_, %k, _, _, _, %c, %s {width = 8}", "%y")):
        text = f"""{head(dtype, 24, 8, 28)}
          {results} = mla_projection {given}
          return {results}
        }}"""
        yield Case(text, rows(dtype, 3, 24, 8, 28), ops=["mla_projection"])


@ROWS
@pytest.mark.parametrize("heads", ["1, ", ""])
@pytest.mark.parametrize("dtype", DTYPES)
def written_into_caches(dtype: str, heads: str) -> Iterator[Case]:
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
        yield Case(text, arguments, ops=["mla_projection_write"])


@ROWS
def no_result_where_only_caches_are_written() -> Iterator[Case]:
    caches = ", %at: i64[S], %lc: buffer<f32[2, 1, 11, 24]>"
    text = f"""{head("f32", 24, 8, 28, caches).replace("[B,", "[2,")}
      mla_projection_write %l, _, _, %lw, _, _, _, %at, %lc
      return %l
    }}"""
    arguments = [*rows("f32", 2, 24, 8, 28), torch.tensor([4, 1]), torch.zeros(2, 1, 11, 24)]
    yield Case(text, arguments, ops=["mla_projection_write"])


@ROWS
@pytest.mark.parametrize("latent", [512, 576])
def wide_latents(latent: int) -> Iterator[Case]:
    """The sizes of DeepSeek-V3, and a latent that is kept with its shared key."""
    text = f"""{head("bf16", latent, 64, 1536)}
      %y, %z, %a = mla_projection %l, %k, %q, %lw, %qw, %c, %s {{width = 64}}
      return %y, %z, %a
    }}"""
    yield Case(text, rows("bf16", 3, latent, 64, 1536, batch=1), ops=["mla_projection"])
