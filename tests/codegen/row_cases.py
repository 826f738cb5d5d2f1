"""Norms and rotations of rows, as funcs in text form, held to the numbers rule."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

from tests.codegen.cases import Case, Cases
from tests.codegen.oracle import DTYPES, seeded

ROWS = Cases()


@ROWS
@pytest.mark.parametrize("dtype", DTYPES)
def norms_of_slices(dtype: str) -> Iterator[Case]:
    kind = DTYPES[dtype]
    text = f"""func @f(%x: {dtype}[B, S, 60], %w: {dtype}[20], %b: {dtype}[2, 20],
                       %r: {dtype}[B, S, 20]) {{
      %a = slice %x {{axis = 2, start = 0, stop = 20}}
      %y = rms_norm %a, %w {{eps = 1e-05, offset = 1.0, cast = "last"}}
      %h = slice %x {{axis = 2, start = 20, stop = 60}}
      %p = reshape %h {{shape = (B, S, 2, 20)}}
      %z = layer_norm %p, %b {{eps = 1e-05, cast = "last"}}
      %s, %n = add_rms_norm %a, %r, %w
      return %y, %z, %s, %n
    }}"""
    arguments = [
        seeded(2, 5, 60, dtype=kind),
        seeded(20, dtype=kind, seed=1),
        seeded(2, 20, dtype=kind, seed=2),
        seeded(2, 5, 20, dtype=kind, seed=3),
    ]
    yield Case(text, arguments, ops=["rms_norm", "layer_norm", "add_rms_norm"])


@ROWS
@pytest.mark.parametrize("width", [20, 1024])
def norms_by_weights_of_the_model(width: int) -> Iterator[Case]:
    """Which a GPU reads before all else."""
    text = f"""func @f(%x: f16[S, {width}], %w: f16[{width}] = param "w",
                       %b: f16[{width}] = param "b") {{
      %y = rms_norm %x, %w
      %z = layer_norm %x, %w, %b {{cast = "last"}}
      return %y, %z
    }}"""
    parameters = (seeded(width, dtype=DTYPES["f16"], seed=i) for i in (1, 2))
    yield Case(text, [seeded(3, width, dtype=DTYPES["f16"], scale=2.0), *parameters])


@ROWS
@pytest.mark.parametrize(
    ("x", "table"),
    [
        ("B, 3, S, 16", "S, 16"),
        ("B, S, 3, 16", "S, 1, 16"),
        ("3, S, 16", "S, 16"),
        ("S, 3, 16", "S, 1, 16"),
        ("S, 16", "S, 16"),
        ("S, 3, 16", "1, 1, 16"),
        ("B, S, 3, 16", "16"),
    ],
)
def rope_by_tables_of_fewer_dims(x: str, table: str) -> Iterator[Case]:
    text = f"""func @f(%x: f32[{x}], %c: f32[{table}], %s: f32[{table}]) {{
      %y = rope %x, %c, %s {{style = "half", width = 16}}
      return %y
    }}"""
    for tokens in (1, 5):
        sizes = {"B": 2, "S": tokens}
        shapes = [[sizes.get(d) or int(d) for d in part.split(", ")] for part in (x, table, table)]
        given = [seeded(*s, dtype=torch.float32, seed=n) for n, s in enumerate(shapes)]
        yield Case(text, given, ops=["rope"])


@ROWS
@pytest.mark.parametrize("style", ["half", "interleaved", "deinterleave"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def rope_before_and_after_the_transpose(dtype: str, style: str) -> Iterator[Case]:
    text = f"""func @f(%x: {dtype}[B, S, 3, 16], %c: f32[1, 1, S, 8], %s: f32[1, 1, S, 8]) {{
      %p = permute %x {{dims = (0, 2, 1, 3)}}
      %y = rope %p, %c, %s {{style = "{style}", start = 8, width = 8}}
      %cc = permute %c {{dims = (0, 2, 1, 3)}}
      %ss = permute %s {{dims = (0, 2, 1, 3)}}
      %z = rope %x, %cc, %ss {{style = "{style}", start = 0, width = 8, round = false}}
      return %y, %z
    }}"""
    tables = (seeded(1, 1, 5, 8, dtype=torch.float32, seed=i) for i in (1, 2))
    yield Case(text, [seeded(2, 5, 3, 16, dtype=DTYPES[dtype]), *tables], ops=["rope", "rope"])


@ROWS
@pytest.mark.parametrize("out", ["bhsd", "bshd"])
@pytest.mark.parametrize("dtype", DTYPES)
def qk_norm_rope_of_a_merged_projection(dtype: str, out: str) -> Iterator[Case]:
    kind = DTYPES[dtype]
    more = f'out = "{out}", width = 8, start = 4, style = "interleaved", table = "half", sign = -1'
    text = f"""func @f(%x: {dtype}[B, S, 72], %w: {dtype}[12], %v: {dtype}[12],
                       %c: {dtype}[1, S, 4], %s: {dtype}[1, S, 4]) {{
      %a = slice %x {{axis = 2, start = 0, stop = 48}}
      %q = reshape %a {{shape = (B, S, 4, 12)}}
      %b = slice %x {{axis = 2, start = 48, stop = 72}}
      %k = reshape %b {{shape = (B, S, 2, 12)}}
      %y, %z = qk_norm_rope %q, %k, %w, %v, _, _, %c, %s {{{more}}}
      return %y, %z
    }}"""
    arguments = [
        seeded(2, 5, 72, dtype=kind),
        *(seeded(12, dtype=kind, seed=i) for i in (1, 2)),
        *(seeded(1, 5, 4, dtype=kind, seed=i) for i in (3, 4)),
    ]
    yield Case(text, arguments, ops=["qk_norm_rope"])


@ROWS
@pytest.mark.parametrize(("dtype", "weight"), list(itertools.product(DTYPES, DTYPES)))
def a_weight_of_another_dtype_promotes(dtype: str, weight: str) -> Iterator[Case]:
    text = f"""func @f(%x: {dtype}[S, 80], %w: {weight}[80], %b: {weight}[80]) {{
      %y = rms_norm %x, %w {{offset = 1.0}}
      %z = layer_norm %x, %w, %b {{cast = "before_weight"}}
      return %y, %z
    }}"""
    kinds = DTYPES[dtype], DTYPES[weight]
    x = seeded(3, 80, dtype=kinds[0], scale=3.0)
    yield Case(text, [x, *(seeded(80, dtype=kinds[1], seed=i) for i in (1, 2))])


@ROWS
@pytest.mark.parametrize("width", [1, 7, 112, 4096])
def widths(width: int) -> Iterator[Case]:
    text = f"""func @f(%x: f32[S, {width}], %w: f32[{width}]) {{
      %y = rms_norm %x, %w
      %z = layer_norm %x
      return %y, %z
    }}"""
    yield Case(
        text, [seeded(2, width, dtype=DTYPES["f32"], scale=2.0), seeded(width, dtype=DTYPES["f32"])]
    )


@ROWS
def no_rows() -> Iterator[Case]:
    text = "func @f(%x: f32[S, 8]) { %y = rms_norm %x  return %y }"
    yield Case(text, [seeded(0, 8, dtype=DTYPES["f32"])])
