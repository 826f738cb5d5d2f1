"""RMS and layer norms in every spelling become one op with the same bits, or a reasoned miss."""

from __future__ import annotations

import pytest

from fuseline.passes.canonicalize import Canonicalize
from fuseline.passes.cse import Cse
from fuseline.passes.dce import Dce
from fuseline.passes.raise_layer_norm import RaiseLayerNorm
from fuseline.passes.raise_rms_norm import RaiseRmsNorm
from fuseline.testing import assert_no_rewrite, assert_rewrites

# As in the pipeline: models spell it, the clean-up brings it to one form, then it is raised.
RAISE = [Canonicalize(), Cse(), Dce(), RaiseLayerNorm(), RaiseRmsNorm()]
DTYPES = ("f32", "bf16", "f16")


def func(arguments: str, *lines: str) -> str:
    """The text of a func that returns %y."""
    return "\n".join([f"func @f({arguments}) {{", *lines, "return %y }"])


def rms(
    dtype: str,
    lines: list[str],
    after: str,
    weight: str = "%w: {}[12]",
    square: str = "mul %a, %a",
    root: tuple[str, ...] = ("%r = rsqrt %s",),
    exact: bool = True,
) -> None:
    """%a is the widened row, %r the root; ``lines`` end the norm with %y."""
    arguments = ", ".join(part.format(dtype) for part in ("%x: {}[B, 3, 12]", weight) if part)
    widen = [] if dtype == "f32" else ["%a = cast %x {dtype = f32}"]
    body = [
        *widen,
        "%eps = full {value = 1e-06, dtype = f32}",
        "%two = full {value = 2.0, dtype = f32}",
        "%half = full {value = -0.5, dtype = f32}",
        "%one = full {value = 1.0, dtype = f32}",
        f"%q = {square}",
        "%m = mean %q {axes = (2,), keepdim = true}",
        "%s = add %m, %eps",
        *root,
        *lines,
    ]
    if dtype == "f32":
        body = [line.replace("%a", "%x") for line in body]
    final = [line for line in after.split("\n") if line]
    assert_rewrites(RAISE, func(arguments, *body), func(arguments, *final), exact=exact)


def narrow(value: str, name: str, dtype: str) -> list[str]:
    """The cast back to the model's type: none in float32 models."""
    return [f"{name} = cast {value} {{dtype = {dtype}}}"]


# -- RMS norm -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("line", ["%y = mul %w, %c", "%y = mul %c, %w"])
def test_cast_before_the_weight(dtype: str, line: str) -> None:
    """llama, qwen3, ..."""
    rms(
        dtype,
        ["%b = mul %a, %r", *narrow("%b", "%c", dtype), line],
        "%y = rms_norm %x, %w {eps = 1e-06}",
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_cast_last(dtype: str) -> None:
    """olmo2, gpt_oss: the weight is widened by promotion. In float32 there is no difference."""
    cast = "before_weight" if dtype == "f32" else "last"
    rms(
        dtype,
        ["%b = mul %a, %r", "%c = mul %w, %b", *narrow("%c", "%y", dtype)],
        f'%y = rms_norm %x, %w {{eps = 1e-06, cast = "{cast}"}}',
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_from_one_cast_last(dtype: str) -> None:
    """gemma3, qwen3_next."""
    rms(
        dtype,
        [
            "%b = mul %a, %r",
            "%v = cast %w {dtype = f32}",
            "%o = add %one, %v",
            "%c = mul %b, %o",
            *narrow("%c", "%y", dtype),
        ],
        '%y = rms_norm %x, %w {eps = 1e-06, offset = 1.0, cast = "last"}',
    )


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_weight_from_one_in_the_narrow_type(dtype: str) -> None:
    rms(
        dtype,
        [
            "%b = mul %a, %r",
            *narrow("%b", "%c", dtype),
            "%o = add %w, %one",
            "%y = mul %c, %o",
        ],
        "%y = rms_norm %x, %w {eps = 1e-06, offset = 1.0}",
    )


def test_weight_from_one_rounded_before_the_norm_is_widened() -> None:
    """``(1 + w)`` in bfloat16, multiplied in float32: the sum stays an op of its own."""
    rms(
        "bf16",
        [
            "%b = mul %a, %r",
            "%o = add %w, %one",
            "%c = mul %b, %o",
            *narrow("%c", "%y", "bf16"),
        ],
        """%one = full {value = 1.0, dtype = f32}
        %o = add %w, %one
        %y = rms_norm %x, %o {eps = 1e-06, cast = "last"}""",
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_weight_at_all(dtype: str) -> None:
    """llama4's L2 norm, nanochat."""
    rms(
        dtype,
        ["%b = mul %a, %r", *narrow("%b", "%c", dtype), "%y = exp %c"],
        "%n = rms_norm %x {eps = 1e-06}\n%y = exp %n",
        weight="",
    )


def test_wide_weight_of_a_narrow_row() -> None:
    """The weight is float32, the row is rounded first: the result is float32."""
    rms(
        "bf16",
        ["%b = mul %a, %r", *narrow("%b", "%c", "bf16"), "%y = mul %w, %c"],
        "%y = rms_norm %x, %w {eps = 1e-06}",
        weight="%w: f32[12]",
    )


def test_narrow_weight_of_a_row_widened_again_stays_outside() -> None:
    """A bfloat16 product of both would round once more."""
    rms(
        "bf16",
        [
            "%b = mul %a, %r",
            *narrow("%b", "%c", "bf16"),
            "%d = cast %c {dtype = f32}",
            "%v = cast %w {dtype = f32}",
            "%y = mul %v, %d",
        ],
        """%v = cast %w {dtype = f32}
        %y = rms_norm %x, %v {eps = 1e-06}""",
    )


def test_row_that_stays_wide() -> None:
    """Nothing rounds the outcome: the norm is of the widened row."""
    rms(
        "bf16",
        ["%b = mul %a, %r", "%c = mul %b, %w", "%y = exp %c"],
        """%a = cast %x {dtype = f32}
        %n = rms_norm %a, %w {eps = 1e-06, cast = "last"}
        %y = exp %n""",
    )


def test_row_computed_in_float64_stays_wide() -> None:
    """The op's statistics would be in float32."""
    body = func(
        "%x: f32[B, 12], %w: f32[12]",
        "%a = cast %x {dtype = f64}",
        "%q = mul %a, %a",
        "%m = mean %q {axes = (1,), keepdim = true}",
        "%eps = full {value = 1e-06, dtype = f64}",
        "%s = add %m, %eps",
        "%r = rsqrt %s",
        "%b = mul %a, %r",
        "%c = cast %b {dtype = f32}",
        "%y = mul %w, %c",
    )
    after = func(
        "%x: f32[B, 12], %w: f32[12]",
        "%a = cast %x {dtype = f64}",
        "%b = rms_norm %a {eps = 1e-06}",
        "%c = cast %b {dtype = f32}",
        "%y = mul %w, %c",
    )
    assert_rewrites(RAISE, body, after)


@pytest.mark.parametrize("square", ["mul %a, %a", "pow %a, %two"])
@pytest.mark.parametrize(
    ("root", "exact"),
    [
        (("%r = rsqrt %s",), True),
        (("%r = pow %s, %half",), True),
        (("%t = sqrt %s", "%r = reciprocal %t"), False),
        (("%t = sqrt %s", "%r = div %one, %t"), False),
    ],
)
def test_spellings_of_square_and_root(square: str, root: tuple[str, ...], exact: bool) -> None:
    rms(
        "bf16",
        ["%b = mul %r, %a", *narrow("%b", "%c", "bf16"), "%y = mul %w, %c"],
        "%y = rms_norm %x, %w {eps = 1e-06}",
        square=square,
        root=root,
        exact=exact,
    )


def test_division_by_the_root() -> None:
    rms(
        "bf16",
        ["%b = div %a, %t", *narrow("%b", "%c", "bf16"), "%y = mul %w, %c"],
        "%y = rms_norm %x, %w {eps = 1e-06}",
        root=("%t = sqrt %s",),
        exact=False,
    )


def test_weight_in_a_view_and_mean_without_its_dim() -> None:
    before = func(
        "%x: f32[B, 3, 12], %w: f32[12]",
        "%q = mul %x, %x",
        "%m = mean %q {axes = (2,)}",
        "%k = reshape %m {shape = (B, 3, 1)}",
        "%eps = full {value = 1e-05, dtype = f32}",
        "%s = add %k, %eps",
        "%r = rsqrt %s",
        "%b = mul %x, %r",
        "%v = reshape %w {shape = (1, 1, 12)}",
        "%u = expand %v {shape = (B, 3, 12)}",
        "%y = mul %b, %u",
    )
    after = func("%x: f32[B, 3, 12], %w: f32[12]", "%y = rms_norm %x, %w {eps = 1e-05}")
    assert_rewrites(RAISE, before, after)


def test_other_readers_of_the_inside_keep_it() -> None:
    """The root is returned too: the norm is raised, and what makes the root stays."""
    head = [
        "%a = cast %x {dtype = f32}",
        "%q = mul %a, %a",
        "%m = mean %q {axes = (1,), keepdim = true}",
        "%eps = full {value = 1e-06, dtype = f32}",
        "%s = add %m, %eps",
        "%r = rsqrt %s",
    ]
    norm = ["%b = mul %a, %r", "%c = cast %b {dtype = bf16}", "%y = mul %w, %c"]
    arguments = "%x: bf16[B, 12], %w: bf16[12]"
    texts = [
        "\n".join([f"func @f({arguments}) {{", *head, *tail, "return %y, %r }"])
        for tail in (norm, ["%y = rms_norm %x, %w {eps = 1e-06}"])
    ]
    assert_rewrites([RaiseRmsNorm()], *texts)


def test_other_readers_of_the_normal_row_keep_the_weight_outside() -> None:
    arguments = "%x: bf16[B, 12], %w: bf16[12], %v: bf16[12]"
    head = [
        "%a = cast %x {dtype = f32}",
        "%q = mul %a, %a",
        "%m = mean %q {axes = (1,), keepdim = true}",
        "%eps = full {value = 1e-06, dtype = f32}",
        "%s = add %m, %eps",
        "%r = rsqrt %s",
        "%b = mul %a, %r",
        "%c = cast %b {dtype = bf16}",
    ]
    tail = ["%d = mul %w, %c", "%e = mul %v, %c", "%y = add %d, %e"]
    assert_rewrites(
        RaiseRmsNorm(),
        func(arguments, *head, *tail),
        func(arguments, "%c = rms_norm %x {eps = 1e-06}", *tail),
    )


# -- misses ---------------------------------------------------------------------------------


def miss(
    reason: str | None,
    *,
    dtype: str = "f32",
    axis: int = 2,
    sums: str = "%s = add %m, %eps",
    scaled: str = "%x",
) -> None:
    """A norm of %x, %z beside it, with one thing about it changed."""
    assert_no_rewrite(
        [RaiseLayerNorm(), RaiseRmsNorm()],
        func(
            f"%x: {dtype}[B, 3, 12], %z: {dtype}[B, 3, 12], %e: f32[3, 1]",
            "%eps = full {value = 1e-06, dtype = f32}",
            "%q = mul %x, %x",
            f"%m = mean %q {{axes = ({axis},), keepdim = true}}",
            sums,
            "%r = rsqrt %s",
            f"%y = mul {scaled}, %r",
        ),
        reason,
    )


def test_no_norm_over_another_dim() -> None:
    miss("the mean is over dims (1,) of f32[B, 3, 12], not over the last", axis=1)


def test_no_norm_computed_in_a_narrow_type() -> None:
    miss("computed in bf16, not in float32", dtype="bf16")


def test_no_norm_that_scales_another_row() -> None:
    miss("does not scale its own row, but mul", scaled="%z")


def test_no_norm_with_another_eps() -> None:
    miss("eps is not a constant", sums="%s = add %m, %e")
    miss("eps is a lower bound", sums="%s = maximum %m, %eps")


def test_no_word_about_means_without_a_root() -> None:
    assert_no_rewrite(
        [RaiseLayerNorm(), RaiseRmsNorm()],
        func("%x: f32[B, 12]", "%q = mul %x, %x", "%y = mean %q {axes = (1,)}"),
        None,
    )


# -- layer norm -----------------------------------------------------------------------------


def layer(dtype: str, lines: list[str], after: str, weight: str = "[3, 12]") -> None:
    """%b is the centred and scaled row in float32; ``lines`` end the norm with %y."""
    arguments = f"%x: {dtype}[B, 3, 12], %w: {dtype}{weight}, %h: {dtype}{weight}"
    body = [
        "%a = cast %x {dtype = f32}",
        "%mu = mean %a {axes = (2,), keepdim = true}",
        "%c1 = sub %a, %mu",
        "%two = full {value = 2.0, dtype = f32}",
        "%q = pow %c1, %two",
        "%m = mean %q {axes = (2,), keepdim = true}",
        "%c2 = sub %a, %mu",
        "%eps = full {value = 1e-05, dtype = f32}",
        "%s = add %m, %eps",
        "%r = rsqrt %s",
        "%b = mul %c2, %r",
        *lines,
    ]
    assert_rewrites(RAISE, func(arguments, *body), func(arguments, after))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", ["[3, 12]", "[12]"])
def test_layer_norm_with_a_weight_for_each_head(dtype: str, weight: str) -> None:
    """cohere: the centred row is spelled twice."""
    cast = "before_weight" if dtype == "f32" else "last"
    layer(
        dtype,
        ["%v = cast %w {dtype = f32}", "%c = mul %v, %b", *narrow("%c", "%y", dtype)],
        f'%y = layer_norm %x, %w {{eps = 1e-05, cast = "{cast}"}}',
        weight,
    )


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_layer_norm_with_bias(dtype: str) -> None:
    layer(
        dtype,
        ["%c = mul %b, %w", "%d = add %c, %h", *narrow("%d", "%y", dtype)],
        '%y = layer_norm %x, %w, %h {eps = 1e-05, cast = "last"}',
        "[12]",
    )
    layer(
        dtype,
        [*narrow("%b", "%c", dtype), "%d = mul %w, %c", "%y = add %d, %h"],
        '%y = layer_norm %x, %w, %h {eps = 1e-05, cast = "before_weight"}',
        "[12]",
    )


def test_layer_norm_without_weight() -> None:
    layer(
        "bf16",
        narrow("%b", "%y", "bf16"),
        '%y = layer_norm %x {eps = 1e-05, cast = "before_weight"}',
    )


def test_no_layer_norm_centred_over_another_dim() -> None:
    """The row is then only scaled: an RMS norm of the difference."""
    body = [
        "%mu = mean %x {axes = (1,), keepdim = true}",
        "%a = sub %x, %mu",
        "%q = mul %a, %a",
        "%m = mean %q {axes = (2,), keepdim = true}",
        "%r = rsqrt %m",
        "%y = mul %a, %r",
    ]
    assert_rewrites(
        RAISE,
        func("%x: f32[B, 3, 12]", *body),
        func("%x: f32[B, 3, 12]", *body[:2], "%y = rms_norm %a {eps = 0.0}"),
    )


def test_no_layer_norm_over_another_dim() -> None:
    assert_no_rewrite(
        [RaiseLayerNorm(), RaiseRmsNorm()],
        func(
            "%x: f32[B, 3, 12]",
            "%mu = mean %x {axes = (2,), keepdim = true}",
            "%a = sub %x, %mu",
            "%q = mul %a, %a",
            "%m = mean %q {axes = (1, 2), keepdim = true}",
            "%r = rsqrt %m",
            "%y = mul %a, %r",
        ),
        "the mean is over dims (1, 2)",
    )
