"""Gated MLPs become one op with the same roundings, or a miss with a reason."""

from __future__ import annotations

import pytest

from fuseline.passes.raise_gated_mlp import RaiseGatedMlp
from fuseline.testing import assert_no_rewrite, assert_rewrites

APART = "%x: {0}[B, S, 8], %g: {0}[12, 8], %u: {0}[12, 8], %d: {0}[8, 12]"
MERGED = "%x: {0}[B, S, 8], %w: {0}[24, 8], %d: {0}[8, 12]"
PRODUCTS = ["%a = linear %x, %g", "%c = linear %x, %u"]
END = ["%h = mul %b, %c", "%y = linear %h, %d"]


def func(arguments: str, *lines: str) -> str:
    """The text of a func that returns %y."""
    return "\n".join([f"func @f({arguments}) {{", *lines, "return %y }"])


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize(
    ("lines", "name"),
    [
        (["%b = silu %a"], "silu"),
        (["%b = gelu %a"], "gelu"),
        (['%b = gelu %a {approximate = "tanh"}'], "gelu_tanh"),
        (["%b = relu %a"], "relu"),
        (["%r = relu %a", "%b = mul %r, %r"], "relu2"),
    ],
)
def test_activations(dtype: str, lines: list[str], name: str) -> None:
    """The same calls on the same tensors: bit for bit."""
    arguments = APART.format(dtype)
    assert_rewrites(
        RaiseGatedMlp(),
        func(arguments, *PRODUCTS, *lines, *END),
        func(arguments, f'%y = gated_mlp %x, %g, %u, %d {{activation = "{name}"}}'),
    )


def test_gate_on_the_right_and_biases() -> None:
    arguments = f"{APART}, %gb: {{0}}[12], %db: {{0}}[8]".format("bf16")
    assert_rewrites(
        RaiseGatedMlp(),
        func(
            arguments,
            "%c = linear %x, %u",
            "%a = linear %x, %g, %gb",
            "%b = silu %a",
            "%h = mul %c, %b",
            "%y = linear %h, %d, %db",
        ),
        func(arguments, "%y = gated_mlp %x, %g, %u, %d, %gb, _, %db"),
    )


@pytest.mark.parametrize("gate_first", [True, False])
def test_halves_of_one_product(gate_first: bool) -> None:
    """phi3, glm4: ``gate_up_proj`` and a chunk; the halves of the weight are named apart."""
    arguments = f"{MERGED}, %b0: {{0}}[24]".format("f32")
    low, high = "stop = 12", "start = 12, stop = 24"
    gate, up = (low, high) if gate_first else (high, low)
    assert_rewrites(
        RaiseGatedMlp(),
        func(
            arguments,
            "%p = linear %x, %w, %b0",
            f"%a = slice %p {{axis = 2, {gate}}}",
            f"%c = slice %p {{axis = 2, {up}}}",
            "%b = silu %a",
            *END,
        ),
        func(
            arguments,
            f"%g = slice %w {{axis = 0, {gate}}}",
            f"%u = slice %w {{axis = 0, {up}}}",
            f"%gb = slice %b0 {{axis = 0, {gate}}}",
            f"%ub = slice %b0 {{axis = 0, {up}}}",
            "%y = gated_mlp %x, %g, %u, %d, %gb, %ub",
        ),
        exact=False,
    )


def miss(lines: list[str], reason: str | None, arguments: str = APART) -> None:
    assert_no_rewrite(RaiseGatedMlp(), func(arguments.format("f32"), *lines), reason)


def test_no_mlp_of_two_inputs() -> None:
    lines = ["%a = linear %x, %g", "%c = linear %z, %u", "%b = silu %a", *END]
    miss(lines, "gate reads x, the other side z", APART + ", %z: {0}[B, S, 8]")


def test_no_mlp_with_another_activation() -> None:
    miss([*PRODUCTS, "%b = sigmoid %a", *END], "the gate's activation is sigmoid, none of")


def test_no_mlp_whose_inside_has_other_readers() -> None:
    extra = ["%e = exp %c", "%k = linear %e, %d", "%y = add %z, %k"]
    body = [*PRODUCTS, "%b = silu %a", "%h = mul %b, %c", "%z = linear %h, %d", *extra]
    miss(body, "the result of linear has readers outside the MLP")


def test_no_mlp_whose_product_is_read_otherwise() -> None:
    body = [*PRODUCTS, "%b = silu %a", "%h = mul %b, %c", "%y = exp %h"]
    miss(body, "the product of both sides is read by exp, not by one linear")
    miss([*PRODUCTS, "%b = silu %a", "%y = mul %b, %c"], "is read by nothing")


def test_no_mlp_of_interleaved_columns() -> None:
    """gpt_oss interleaves gate and up."""
    lines = [
        "%p = linear %x, %w",
        "%a = slice %p {axis = 2, stop = 23, step = 2}",
        "%c = slice %p {axis = 2, start = 1, stop = 24, step = 2}",
        "%b = silu %a",
        *END,
    ]
    miss(lines, "take every 2-th column of one product", MERGED)


def test_no_mlp_of_parts_of_a_larger_product() -> None:
    lines = [
        "%p = linear %x, %w",
        "%a = slice %p {axis = 2, stop = 12}",
        "%c = slice %p {axis = 2, start = 12, stop = 24}",
        "%b = silu %a",
        *END,
    ]
    larger = MERGED.replace("[24, 8]", "[30, 8]")
    miss(lines, "not the two halves of one product", larger)
    again = [*lines[:-1], "%k = linear %h, %d", "%r = slice %p {axis = 2, stop = 8}"]
    miss([*again, "%y = add %k, %r"], "the result of linear has readers outside the MLP", MERGED)


def test_no_word_about_products_without_an_activation() -> None:
    miss([*PRODUCTS, "%h = mul %a, %c", "%y = linear %h, %d"], None)
    miss(["%a = linear %x, %g", "%b = silu %a", "%y = linear %b, %d"], None)
