"""lower-matmul: a sum over one element is no sum, and a product with a matrix is a linear."""

from __future__ import annotations

import pytest

from fuseline.passes.lower_matmul import LowerMatmul
from fuseline.passes.raise_attention import RaiseAttention
from fuseline.testing import assert_no_rewrite, assert_rewrites


@pytest.mark.parametrize("dtype", ["f64", "f32", "bf16", "f16", "i64"])
@pytest.mark.parametrize(
    ("lhs", "rhs"),
    [("8, 1", "1, S"), ("S, 1", "1, 1"), ("B, 1, 5, 1", "7, 1, 3"), ("0, 1", "1, S")],
)
def test_leading_dims_broadcast_alike(dtype: str, lhs: str, rhs: str) -> None:
    head = f"func @f(%a: {dtype}[{lhs}], %b: {dtype}[{rhs}]) {{"
    assert_rewrites(
        LowerMatmul(),
        before=f"{head}\n%y = matmul %a, %b\nreturn %y\n}}",
        after=f"{head}\n%y = mul %a, %b\nreturn %y\n}}",
    )


@pytest.mark.parametrize("inner", ["2", "S", "0"])
def test_no_multiplication_where_elements_are_summed(inner: str) -> None:
    head = f"func @f(%a: f32[2, 3, {inner}], %b: f32[2, {inner}, 5], %s: f32[S]) {{"
    assert_no_rewrite(LowerMatmul(), f"{head}\n%y = matmul %a, %b\nreturn %y\n}}", None)


@pytest.mark.parametrize(("x", "w"), [("S, 6", "6, 5"), ("B, 3, S, 7", "7, 1"), ("2, 0", "0, 3")])
def test_a_product_with_a_matrix_is_a_linear(x: str, w: str) -> None:
    head = f"func @f(%x: f32[{x}], %w: f32[{w}]) {{"
    assert_rewrites(
        LowerMatmul(),
        before=f"{head}\n%y = matmul %x, %w\nreturn %y\n}}",
        after=f"{head}\n%t = permute %w {{dims = (1, 0)}}\n%y = linear %x, %t\nreturn %y\n}}",
    )


def test_no_linear_of_dims_that_may_differ() -> None:
    text = "func @f(%x: f32[4, S], %w: f32[T, 8]) {\n%y = matmul %x, %w\nreturn %y\n}"
    assert_no_rewrite(LowerMatmul(), text, None)


def test_attention_to_one_key_is_still_attention() -> None:
    head = "func @f(%q: f32[B, 2, 3, 8], %k: f32[B, 2, 1, 8], %v: f32[B, 2, 1, 8]) {"
    assert_rewrites(
        (RaiseAttention(), LowerMatmul()),
        before=f"""{head}
          %t = permute %k {{dims = (0, 1, 3, 2)}}
          %s = matmul %q, %t
          %p = softmax %s {{axis = 3}}
          %y = matmul %p, %v
          return %y
        }}""",
        after=f"{head}\n%y = attention %q, %k, %v {{scale = 1.0}}\nreturn %y\n}}",
    )
