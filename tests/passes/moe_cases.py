"""Experts and what stands beside them, as text: what fuse-moe is given, and what it makes of it."""

from __future__ import annotations

from fuseline.passes.fuse_moe import FuseMoe
from fuseline.report import Site
from fuseline.testing import assert_rewrites

HEAD = """func @f(%x: {0}[B, S, 8], %i: i64[B*S, 2], %w: {0}[B*S, 2], %u: {0}[5, 6, 8],
  %d: {0}[5, 8, 6], %sg: {0}[7, 8] = param "sg", %su: {0}[7, 8] = param "su",
  %sd: {0}[8, 7] = param "sd", %g: {0}[1, 8] = param "g", %b: {0}[7] = param "b",
  %z: {0}[B, S, 8], %l: {0}[B*S, 5], %fc: {0}[8, 8] = param "fc",
  %bc: {0}[8, 8] = param "bc", %rt: {0}[5, 8] = param "rt") {{
    %rows = reshape %x {{shape = (<B*S>, 8)}}"""
BODY = """body = func @body(%h: {0}[6]) {{
      %a = relu %h
      return %a
    }}"""
GATED = """shared_body = func @body(%gate: {0}[7], %up: {0}[7]) {{
      %s = silu %gate
      %m = mul %s, %up
      return %m
    }}"""
SQUARED = """shared_body = func @body(%up: {0}[7]) {{
      %r = relu %up
      %q = mul %r, %r
      return %q
    }}"""
EXPERTS = (
    """%r = experts %rows, %i, %w, [%u], [%d] {{
    experts = 5, gated = false, dtype = {0}, """
    + BODY
    + "}}"
)
ROUTED = EXPERTS + "\n%y = reshape %r {{shape = (B, S, 8)}}"
MLP = "%s = gated_mlp %x, %sg, %su, %sd"
SHARED = ", [%sg, %su], %sd"
SHAPED = "%o = reshape %m {{shape = (B, S, 8)}}"
WIDE_GATE = [
    "%xf = cast %x {{dtype = f32}}",
    "%gf = cast %g {{dtype = f32}}",
    "%q = linear %xf, %gf",
]


def func(*lines: str, dtype: str = "f32", result: str = "%o") -> str:
    """The text of a func of some lines."""
    return "\n".join([HEAD, *lines, f"return {result}", "}}"]).format(dtype)


def moe(operands: str, attributes: str = "", *, made: str = "%m") -> str:
    """The text of the fused op."""
    given = "%rows, %i, %w, [%u], [%d], _, _"
    fixed = "experts = 5, gated = false, dtype = {0}, " + BODY
    return f"{made} = moe {given}{operands} {{{{{fixed}{attributes}}}}}"


def fuses(before: list[str], after: list[str], dtype: str = "f32", *, result: str = "%o") -> Site:
    """The pass makes of the lines before the lines after, bit for bit; gives the site."""
    texts = (func(*lines, dtype=dtype, result=result) for lines in (before, after))
    run = assert_rewrites(FuseMoe(), *texts)
    (site,) = run.sites()
    assert (site.pattern, site.status) == ("moe", "fused")
    return site


def alone(*lines: str, dtype: str = "f32", result: str = "%o") -> Site:
    """The routed part is fused, and all that is beside it stays; gives the site."""
    text = func(*lines, dtype=dtype, result=result)
    run = assert_rewrites(FuseMoe(), text, text.replace("= experts ", "= moe "))
    (site,) = (s for s in run.sites() if s.pattern == "moe")
    assert site.status == "fused"
    return site


def apart(before: list[str], reason: str, dtype: str = "f32", *, result: str = "%o") -> Site:
    """The branch stays beside the routed part, and the site says why."""
    site = alone(*before, dtype=dtype, result=result)
    assert site.details["shared"].startswith("apart: ")
    assert reason in site.details["shared"]
    return site
