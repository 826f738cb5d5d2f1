"""Funcs at the sizes of released models, any batch and any number of tokens."""

from __future__ import annotations


def qk_write(
    heads: tuple[int, int],
    width: int,
    *,
    rotated: int | None = None,
    dtype: str = "bf16",
    table: str = "full",
    more: str = "",
) -> str:
    """QK norm and rotation of one merged projection, keys and values into a static cache."""
    q, k = heads[0] * width, heads[1] * width
    turned = width if rotated is None else rotated
    columns = turned // 2 if table == "half" else turned
    weights = (q, k) if '"row"' in more else (width, width)
    return f"""func @f(%x: {dtype}[B, S, {q + 2 * k}], %w: {dtype}[{weights[0]}],
        %u: {dtype}[{weights[1]}], %c: {dtype}[1, S, {columns}], %s: {dtype}[1, S, {columns}],
        %at: i64[S], %kc: buffer<{dtype}[B, {heads[1]}, 4096, {width}]>,
        %vc: buffer<{dtype}[B, {heads[1]}, 4096, {width}]>) {{
      %qs = slice %x {{axis = 2, start = 0, stop = {q}}}
      %q = reshape %qs {{shape = (B, S, {heads[0]}, {width})}}
      %ks = slice %x {{axis = 2, start = {q}, stop = {q + k}}}
      %k = reshape %ks {{shape = (B, S, {heads[1]}, {width})}}
      %vs = slice %x {{axis = 2, start = {q + k}, stop = {q + 2 * k}}}
      %v = reshape %vs {{shape = (B, S, {heads[1]}, {width})}}
      %y = qk_norm_rope_write %q, %k, %v, %at, %kc, %vc, %w, %u, _, _, %c, %s {{
        width = {turned}, table = "{table}"{more}}}
      return %y
    }}"""


def mla_write(latent: int, shared: int, q: int, *, more: str = "") -> str:
    """The rows before attention over a latent, latent and shared key into their caches."""
    total = q + latent + shared
    return f"""func @f(%x: bf16[B, S, {total}], %lw: bf16[{latent}], %qw: bf16[{q}],
        %c: bf16[1, S, {shared}], %s: bf16[1, S, {shared}], %at: i64[S],
        %lc: buffer<bf16[B, 1, 4096, {latent}]>, %kc: buffer<bf16[B, 1, 4096, {shared}]>) {{
      %q = slice %x {{axis = 2, start = 0, stop = {q}}}
      %l = slice %x {{axis = 2, start = {q}, stop = {q + latent}}}
      %k = slice %x {{axis = 2, start = {q + latent}, stop = {total}}}
      %a = mla_projection_write %l, %k, %q, %lw, %qw, %c, %s, %at, %lc, %kc {{
        width = {shared}{more}}}
      return %a
    }}"""


def rope(heads: int, width: int, start: int, turned: int, *, more: str = "") -> str:
    """The rotation of the last part of the heads of the queries."""
    return f"""func @f(%x: bf16[B, S, {heads * width}], %c: bf16[1, S, 1, {turned}],
        %s: bf16[1, S, 1, {turned}]) {{
      %q = reshape %x {{shape = (B, S, {heads}, {width})}}
      %y = rope %q, %c, %s {{start = {start}, width = {turned}{more}}}
      return %y
    }}"""


RELEASED = {
    "Qwen3-8B": qk_write((32, 8), 128),
    "Qwen3-8B in float32": qk_write((32, 8), 128, dtype="f32"),
    "Qwen3-30B-A3B": qk_write((32, 4), 128),
    "OLMo2-7B": qk_write((32, 32), 128, more=', scope = "row"'),
    "OLMo2-32B": qk_write((40, 8), 128, more=', scope = "row"'),
    "OLMo2-32B in float32": qk_write((40, 8), 128, dtype="f32", more=', scope = "row"'),
    "MiniMax-M2": qk_write((48, 8), 128, rotated=64, more=', scope = "row"'),
    "GLM-4.5": qk_write((96, 8), 128, rotated=64),
    "Gemma3-12B": qk_write((16, 8), 256, more=', cast = "last", offset = 1.0'),
    "Phi-2": qk_write((32, 32), 80, rotated=32, more=', norm = "none"').replace("%w, %u", "_, _"),
    "DeepSeek-V3": mla_write(512, 64, 1536),
    "DeepSeek-V3, pairs side by side": mla_write(512, 64, 1536, more=', style = "deinterleave"'),
    "DeepSeek-V3, queries": rope(128, 192, 128, 64),
    "DeepSeek-V3, queries by pairs": rope(128, 192, 128, 64, more=', style = "interleaved"'),
    **{f"heads of {width}": qk_write((32, 8), width) for width in (64, 80, 96, 112)},
}
"""A func for each; "DeepSeek-V3, queries" rotates the last 64 of 192 elements of 128 heads."""
