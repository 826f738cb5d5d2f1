"""mla_projection in Triton: strided rows in, results or caches out."""

from __future__ import annotations

import pytest
import torch

from tests.codegen.gpu.harness import check
from tests.codegen.mla_cases import ROPES, SIZES, head, rope, rows
from tests.codegen.oracle import DTYPES, seeded


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_rows_at_odd_sizes(dtype: str) -> None:
    for i, style in enumerate(ROPES):
        for tokens, latent, shared, q in SIZES[i:] + SIZES[:i]:
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


@pytest.mark.parametrize("latent", [512, 576])
def test_wide_latents(latent: int) -> None:
    """The sizes of DeepSeek-V3, and a latent that is kept with its shared key."""
    text = f"""{head("bf16", latent, 64, 1536)}
      %y, %z, %a = mla_projection %l, %k, %q, %lw, %qw, %c, %s {{width = 64}}
      return %y, %z, %a
    }}"""
    check(text, rows("bf16", 3, latent, 64, 1536, batch=1), ops=["mla_projection"])
