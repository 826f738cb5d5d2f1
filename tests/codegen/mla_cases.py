"""Funcs of mla_projection in text form, and their arguments, for the tests of every target."""

from __future__ import annotations

from torch import Tensor

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
