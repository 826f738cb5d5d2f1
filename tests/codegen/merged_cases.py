"""Funcs of merged_rows in text form, and their arguments, for the tests of every target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from tests.codegen.cases import Case, Cases
from tests.codegen.mla_cases import ROPES
from tests.codegen.oracle import DTYPES, seeded

MERGED = Cases()


def merged(
    dtype: str,
    widths: Sequence[int],
    *,
    tokens: int,
    batch: int = 2,
    lead: int = 3,
    rotated: int = 0,
    style: str = "half",
    weight: str = "",
    param: bool = False,
    more: str = "",
) -> Case:
    """Norms of columns of one product (``lead`` more of them in front), and a rotation of the last.

    ``weight`` is the type of the weights, none where it is ``none``; that of the rows if not given.
    With ``param`` they are the model's.
    """
    kind, heavy = DTYPES[dtype], weight or dtype
    total = lead + sum(widths) + rotated
    tables = rotated if "full" in ROPES[style] else rotated // 2
    arguments = [seeded(batch, tokens, total, dtype=kind, scale=2.0)]
    head, lines, xs, weights = (
        [f"%x: {dtype}[B, S, {total}]"],
        list[str](),
        list[str](),
        list[str](),
    )
    at = lead
    for i, width in enumerate(widths):
        lines.append(f"%x{i} = slice %x {{axis = 2, start = {at}, stop = {at + width}}}")
        xs.append(f"%x{i}")
        at += width
        if heavy != "none":
            head.append(f"%w{i}: {heavy}[{width}]" + f' = param "w{i}"' * param)
            weights.append(f"%w{i}")
            arguments.append(seeded(width, dtype=DTYPES[heavy], seed=1 + i))
    turned, rope = "[]", ""
    if rotated:
        lines.append(f"%k = slice %x {{axis = 2, start = {at}, stop = {at + rotated}}}")
        head += [f"%{name}: {dtype}[1, S, {tables}]" for name in "cs"]
        arguments += [seeded(1, tokens, tables, dtype=kind, seed=i) for i in (8, 9)]
        turned, rope = "[%k], %c, %s", ROPES[style].replace("W", str(rotated))
    attributes = ", ".join(part for part in (rope, more) if part)
    ys = ", ".join(f"%y{i}" for i in range(len(widths) + bool(rotated)))
    body = "\n      ".join(lines)
    text = f"""func @f({", ".join(head)}) {{
      {body}
      {ys} = merged_rows [{", ".join(xs)}], [{", ".join(weights)}], {turned} {{{attributes}}}
      return {ys}
    }}"""
    return Case(text, arguments, ops=["merged_rows"])


@MERGED
@pytest.mark.parametrize("style", ROPES)
@pytest.mark.parametrize("dtype", DTYPES)
def norms_and_a_rotation(dtype: str, style: str) -> Iterator[Case]:
    """One token and several, widths that are no powers of two, and such that are."""
    yield merged(dtype, (24, 113), tokens=1, rotated=8, style=style)
    yield merged(dtype, (80, 128), tokens=7, batch=1, rotated=64, style=style)


@MERGED
@pytest.mark.parametrize("dtype", DTYPES)
def several_norms(dtype: str) -> Iterator[Case]:
    """Three of very different widths, as of the parts that a state-space layer selects by."""
    yield merged(dtype, (160, 16, 5), tokens=3, more='cast = "last", offset = 1.0, eps = 1e-05')
    yield merged(dtype, (96, 112), tokens=5, weight="none")


@MERGED
def weights_of_the_model() -> Iterator[Case]:
    """They are read before all else."""
    yield merged("bf16", (40, 160), tokens=3, rotated=8, param=True)


@MERGED
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def weights_that_widen_the_result(dtype: str) -> Iterator[Case]:
    yield merged(dtype, (40, 64), tokens=3, weight="f32", rotated=16)


@MERGED
def no_tokens() -> Iterator[Case]:
    yield merged("bf16", (24, 40), tokens=0, rotated=8)


@MERGED
def only_rotations() -> Iterator[Case]:
    text = """func @f(%x: f32[B, S, 24], %c: f32[1, S, 8], %s: f32[1, S, 8]) {
      %k = slice %x {axis = 2, stop = 12}
      %l = slice %x {axis = 2, start = 12, stop = 24}
      %y, %z = merged_rows [], [], [%k, %l], %c, %s {start = 2, width = 8}
      return %y, %z
    }"""
    tables = [seeded(1, 5, 8, dtype=DTYPES["f32"], seed=i) for i in (1, 2)]
    yield Case(text, [seeded(2, 5, 24, dtype=DTYPES["f32"]), *tables], ops=["merged_rows"])


@MERGED
def one_row_twice() -> Iterator[Case]:
    """Two norms of one value, by different weights, side by side and transposed in memory."""
    text = """func @f(%x: bf16[S, B, 24], %u: bf16[24], %w: bf16[24]) {
      %t = permute %x {dims = (1, 0, 2)}
      %y, %z = merged_rows [%t, %t], [%u, %w], []
      return %y, %z
    }"""
    weights = [seeded(24, dtype=DTYPES["bf16"], seed=i) for i in (1, 2)]
    yield Case(text, [seeded(5, 2, 24, dtype=DTYPES["bf16"]), *weights], ops=["merged_rows"])


@MERGED
def wide_rows() -> Iterator[Case]:
    """The sizes of DeepSeek-V3, and the longest row that there is a block for."""
    yield merged("bf16", (1536, 512), tokens=2, batch=1, rotated=64, style="deinterleave")
    yield merged("f32", (8192, 64), tokens=1, batch=1)


__all__ = ["MERGED", "merged"]
