"""fuse-wide-linear: float32 products of narrow operands read these as they are."""

from __future__ import annotations

import pytest

from fuseline.passes.fuse_wide_linear import FuseWideLinear
from fuseline.testing import assert_no_rewrite, assert_rewrites

HEAD = """func @f(%x: {x}[B, S, 8], %w: {w}[6, 8] = param "w", %b: {b}[6] = param "b") {{"""
CASTS = {"x": "%xf = cast %x {dtype = f32}", "w": "%wf = cast %w {dtype = f32}"}


def func(*lines: str, x: str = "bf16", w: str = "bf16", b: str = "bf16") -> str:
    return "\n".join([HEAD.format(x=x, w=w, b=b), *lines, "}"])


@pytest.mark.parametrize(
    ("x", "w"),
    [("bf16", "bf16"), ("f16", "f16"), ("bf16", "f32"), ("f32", "bf16"), ("f16", "bf16")],
)
def test_either_operand_may_be_narrow(x: str, w: str) -> None:
    lines = [CASTS["x"]] * (x != "f32") + [CASTS["w"]] * (w != "f32")
    operands = f"{'%x' if x == 'f32' else '%xf'}, {'%w' if w == 'f32' else '%wf'}"
    assert_rewrites(
        FuseWideLinear(),
        func(*lines, f"%y = linear {operands}", "return %y", x=x, w=w),
        func("%y = wide_linear %x, %w", "return %y", x=x, w=w),
    )


def test_other_readers_keep_their_casts() -> None:
    """The float32 x is read again, and the float32 weights are returned."""
    rest = ["%e = exp %xf", "return %y, %e, %wf"]
    assert_rewrites(
        FuseWideLinear(),
        func(*CASTS.values(), "%y = linear %xf, %wf", *rest),
        func(*CASTS.values(), "%y = wide_linear %x, %w", *rest),
    )


@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_a_bias_of_the_type_of_the_weight(kind: str) -> None:
    """openai_privacy_filter widens its bias, too."""
    narrow = kind == "bf16"
    lines = [CASTS["x"], *([CASTS["w"], "%bf = cast %b {dtype = f32}"] if narrow else [])]
    operands = "%xf, %wf, %bf" if narrow else "%xf, %w, %b"
    assert_rewrites(
        FuseWideLinear(),
        func(*lines, f"%y = linear {operands}", "return %y", w=kind, b=kind),
        func("%y = wide_linear %x, %w, %b", "return %y", w=kind, b=kind),
    )


def test_no_bias_of_another_type() -> None:
    lines = [*CASTS.values(), "%y = linear %xf, %wf, %b", "return %y"]
    assert_no_rewrite(FuseWideLinear(), func(*lines, b="f32"), None)


def test_no_product_without_casts() -> None:
    lines = ["%y = linear %x, %w", "return %y"]
    assert_no_rewrite(FuseWideLinear(), func(*lines, x="f32", w="f32"), None)
    assert_no_rewrite(FuseWideLinear(), func(*lines), None)


def test_no_cast_that_loses() -> None:
    """Operands rounded from float64 on purpose stay rounded."""
    lines = [*CASTS.values(), "%y = linear %xf, %wf", "return %y"]
    assert_no_rewrite(FuseWideLinear(), func(*lines, x="f64", w="f64"), None)


def test_no_product_in_float64() -> None:
    lines = ["%xf = cast %x {dtype = f64}", "%wf = cast %w {dtype = f64}"]
    assert_no_rewrite(FuseWideLinear(), func(*lines, "%y = linear %xf, %wf", "return %y"), None)
