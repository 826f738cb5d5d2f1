"""Adapters of rows become one op in every spelling, or a miss with a reason."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseline
from fuseline.ir.core import Origin
from fuseline.ir.ops.adapters import MultiLora
from fuseline.ir.text import parse_func, print_func
from fuseline.passes.active_counts import active_counts
from fuseline.passes.pipeline import default_pipeline
from fuseline.passes.raise_multi_lora import RaiseMultiLora
from fuseline.testing import assert_no_rewrite, assert_rewrites, assert_same_values, run_passes

SEQUENCES = "%x: {0}[B, S, 8], %ids: i64[B], %r: {0}[B, S, 6], %a: {0}[3, 8, 4], %b: {0}[3, 4, 6]"
DOWN = "%down = index_select %a, %ids {axis = 0}"
UP = "%up = index_select %b, %ids {axis = 0}"
PRODUCTS = (DOWN, UP, "%low = matmul %x, %down", "%delta = matmul %low, %up")
NUMBERS = ("%each = reshape %ids {shape = (B, 1)}", "%number = expand %each {shape = (B, S)}")
TURNED = "a_transposed = true, b_transposed = true"


def func(arguments: str, *lines: str, returns: str = "%y") -> str:
    """The text of a func."""
    return "\n".join([f"func @f({arguments}) {{", *lines, f"return {returns} }}"])


def half(*lines: str, dtype: str = "f32") -> str:
    """A func over `SEQUENCES` with a constant."""
    constant = f"%half = full {{value = 0.3, dtype = {dtype}}}"
    return func(SEQUENCES.format(dtype), constant, *lines)


def raised(text: str, *, more: str = "", exact: bool = False) -> MultiLora:
    """The one op that a func is raised to; its numbers are compared."""
    made = parse_func(text)
    run_passes(RaiseMultiLora(), made)
    (op,) = [op for op in made.ops if isinstance(op, MultiLora)]
    assert_same_values(parse_func(text), made, exact=exact)
    assert more in str(op), str(op)
    return op


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_numbers_of_sequences(dtype: str) -> None:
    arguments = SEQUENCES.format(dtype)
    fields = f"{{{TURNED}, delta_dtype = {dtype}, dtype = {dtype}}}"
    run = assert_rewrites(
        RaiseMultiLora(),
        func(arguments, *PRODUCTS, "%y = add %r, %delta"),
        func(arguments, *NUMBERS, f"%y = multi_lora %x, %number, %a, %b, %r {fields}"),
        exact=False,
    )
    assert {r.pattern for r in run.applied} == {"multi_lora"}


@pytest.mark.parametrize("first", [True, False])
def test_the_scale_multiplies_either_product(first: bool) -> None:
    lines = (
        (DOWN, UP, "%l = matmul %x, %down", "%low = mul %l, %half", "%delta = matmul %low, %up")
        if first
        else (*PRODUCTS[:-1], "%d = matmul %low, %up", "%delta = mul %half, %d")
    )
    op = raised(half(*lines, "%y = add %delta, %r"))
    assert (op.scale, op.inner) == (0.3, first)
    assert op.base is not None


def test_a_factor_of_each_row() -> None:
    text = func(
        SEQUENCES.format("f32") + ", %scales: f32[3]",
        *PRODUCTS,
        "%half = full {value = 0.3, dtype = f32}",
        "%d = mul %delta, %half",
        "%f = index %scales, [%ids] {axes = (0,)}",
        "%f3 = reshape %f {shape = (B, 1, 1)}",
        "%e = mul %f3, %d",
        "%y = add %r, %e",
    )
    op = raised(text)
    assert op.factor is not None
    assert op.scale == 0.3


def test_a_factor_in_float32_widens_the_sum() -> None:
    text = func(
        SEQUENCES.format("bf16") + ", %f: f32[B]",
        *PRODUCTS,
        "%f3 = reshape %f {shape = (B, 1, 1)}",
        "%d = mul %delta, %f3",
        "%s = add %r, %d",
        "%y = cast %s {dtype = bf16}",
    )
    op = raised(text)
    assert (str(op.delta_dtype), str(op.dtype)) == ("f32", "bf16")


def test_a_number_behind_a_factor_stays_outside_unless_it_is_exact() -> None:
    def text(value: float) -> str:
        return func(
            SEQUENCES.format("bf16") + ", %f: bf16[B]",
            *PRODUCTS,
            f"%half = full {{value = {value}, dtype = bf16}}",
            "%f3 = reshape %f {shape = (B, 1, 1)}",
            "%d = mul %delta, %f3",
            "%e = mul %d, %half",
            "%y = add %r, %e",
        )

    assert raised(text(0.3)).base is None
    assert raised(text(0.5)).base is not None


MASK = (
    "%zero = full {value = 0, dtype = i64}",
    "%safe = maximum %ids, %zero",
    "%has = ge %ids, %zero",
    "%down = index %a, [%safe] {axes = (0,)}",
    "%up = index %b, [%safe] {axes = (0,)}",
    "%low = matmul %x, %down",
    "%delta = matmul %low, %up",
)
MASKED = {
    "where": (
        "%nil = full {value = 0.0, shape = (B, S, 6), dtype = bf16}",
        "%h3 = reshape %has {shape = (B, 1, 1)}",
        "%d = where %h3, %delta, %nil",
    ),
    "where not": (
        "%nil = full {value = 0.0, dtype = bf16}",
        "%not = logical_not %has",
        "%h3 = reshape %not {shape = (B, 1, 1)}",
        "%d = where %h3, %nil, %delta",
    ),
    "times": (
        "%float = cast %has {dtype = bf16}",
        "%h3 = reshape %float {shape = (B, 1, 1)}",
        "%d = mul %delta, %h3",
    ),
}


@pytest.mark.parametrize("form", MASKED)
def test_a_mask_means_no_adapter(form: str) -> None:
    text = func(SEQUENCES.format("bf16"), *MASK, *MASKED[form], "%y = add %r, %d")
    made = parse_func(text)
    run_passes(RaiseMultiLora(), made)
    (op,) = [op for op in made.ops if isinstance(op, MultiLora)]
    assert op.skips
    assert op.base is not None
    given = {"ids": torch.tensor([-1, 2, -1])}
    sizes = {"B": 3, "S": 2}
    assert_same_values(parse_func(text), made, exact=False, given=given, sizes=sizes)


@pytest.mark.parametrize("form", ["index", "index_select"])
@pytest.mark.parametrize("number", [-4, -1, 3])
def test_numbers_outside_mean_what_they_meant(form: str, number: int) -> None:
    """Indexing counts negative numbers from the end, selecting refuses them."""
    gather = "[%ids] {axes = (0,)}" if form == "index" else "%ids {axis = 0}"
    text = func(
        SEQUENCES.format("f32"),
        f"%down = {form} %a, {gather}",
        f"%up = {form} %b, {gather}",
        *PRODUCTS[2:],
        "%y = add %r, %delta",
    )
    made = parse_func(text)
    run_passes(RaiseMultiLora(), made)
    given = {"ids": torch.tensor([1, number])}
    if form == "index" and number == -1:
        assert_same_values(parse_func(text), made, exact=False, given=given, sizes={"B": 2, "S": 3})
        return
    for each in (parse_func(text), made):
        with pytest.raises(IndexError):
            assert_same_values(each, each, given=given, sizes={"B": 2, "S": 3})


def test_a_masked_row_hides_no_number_behind_the_last() -> None:
    text = func(SEQUENCES.format("f32"), *MASK, *MASKED["times"], "%y = add %r, %d")
    text = text.replace("bf16", "f32")
    made = parse_func(text)
    run_passes(RaiseMultiLora(), made)
    with pytest.raises(IndexError):
        assert_same_values(made, made, given={"ids": torch.tensor([-1, 3])}, sizes={"B": 2, "S": 1})


def test_other_readers_of_the_sum_and_of_the_base_stay() -> None:
    text = func(
        SEQUENCES.format("f32"),
        *PRODUCTS,
        "%s = add %r, %delta",
        "%z = mul %s, %r",
        returns="%s, %z",
    )
    assert raised(text).base is not None


def test_a_delta_with_other_readers_is_raised_alone() -> None:
    text = func(SEQUENCES.format("f32"), *PRODUCTS, "%s = add %r, %delta", returns="%s, %delta")
    assert raised(text).base is None


def test_matrices_turned_before_they_are_gathered() -> None:
    arguments = SEQUENCES.format("f32").replace("%a: f32[3, 8, 4]", "%a: f32[3, 4, 8]")
    turned = DOWN.replace("%a", "%at")
    lines = ("%at = permute %a {dims = (0, 2, 1)}", turned, *PRODUCTS[1:], "%y = add %r, %delta")
    op = raised(func(arguments, *lines))
    assert (op.a_transposed, op.b_transposed) == (False, True)


def test_adapters_of_the_first_part_of_a_stack() -> None:
    """How many there are is a size of the call; numbers from there on are an error."""
    text = func(
        SEQUENCES.format("f32") + ", %n: int<A>",
        "%as = slice %a {axis = 0, stop = A}",
        "%bs = slice %b {axis = 0, stop = A}",
        DOWN.replace("index_select %a, %ids {axis = 0}", "index %as, [%ids] {axes = (0,)}"),
        UP.replace("index_select %b, %ids {axis = 0}", "index %bs, [%ids] {axes = (0,)}"),
        *PRODUCTS[2:],
        "%y = add %r, %delta",
    ).replace(" {\n", " where A in 1..3 {\n", 1)
    made = parse_func(text)
    run_passes(RaiseMultiLora(), made)
    (op,) = [op for op in made.ops if isinstance(op, MultiLora)]
    assert str(op.active) == "A"
    assert not active_counts(made), "a negative number counts from the end of the part"
    assert parse_func(print_func(made)).ops[-1].attributes["active"] == op.active
    sizes = {"A": 2, "B": 3, "S": 2}
    right = {"ids": torch.tensor([1, -2, 0])}
    assert_same_values(parse_func(text), made, exact=False, given=right, sizes=sizes)
    for number in (2, -3):
        wrong = {"ids": torch.tensor([1, number, 0])}
        for each in (parse_func(text), made):
            with pytest.raises(IndexError):
                assert_same_values(each, each, given=wrong, sizes=sizes)


def test_numbers_of_32_bits() -> None:
    arguments = SEQUENCES.format("f32").replace("%ids: i64", "%ids: i32")
    assert raised(func(arguments, *PRODUCTS, "%y = add %r, %delta")).base is not None


NEAR: dict[str, tuple[tuple[str, ...], str]] = {
    "between": (
        (*PRODUCTS, "%z = add %r, %delta", "%n = neg %low"),
        "between the products is read by neg",
    ),
    "ids": (
        (
            DOWN,
            "%other = add %ids, %ids",
            UP.replace("%ids", "%other"),
            *PRODUCTS[2:],
            "%n = neg %delta",
        ),
        "by the matrices numbered",
    ),
    "cast": (
        (
            DOWN.replace("%down", "%d"),
            "%down = cast %d {dtype = f32}",
            *PRODUCTS[1:],
            "%n = neg %delta",
        ),
        "are cast to f32 after they were gathered",
    ),
    "both": (
        (
            DOWN,
            UP,
            "%two = full {value = 2.0, dtype = f32}",
            "%l = matmul %x, %down",
            "%low = mul %l, %two",
            "%d = matmul %low, %up",
            "%n = mul %d, %two",
        ),
        "both products of the adapters are scaled",
    ),
}


@pytest.mark.parametrize("near", NEAR)
def test_no_raise_of_near_misses(near: str) -> None:
    lines, reason = NEAR[near]
    arguments = SEQUENCES.format("f32")
    arguments = arguments.replace("%a: f32", "%a: bf16") if near == "cast" else arguments
    assert_no_rewrite(RaiseMultiLora(), func(arguments, *lines, returns="%n"), reason)


def test_no_raise_with_an_activation_between() -> None:
    lines = (DOWN, UP, "%l = matmul %x, %down", "%low = silu %l", "%y = matmul %low, %up")
    assert_no_rewrite(RaiseMultiLora(), func(SEQUENCES.format("f32"), *lines), None)


def test_no_raise_where_a_router_chose() -> None:
    """A product by the experts of each row is no adapter."""
    arguments = SEQUENCES.format("f32").replace("%ids: i64[B]", "%l: f32[B, 3]")
    chosen = ("%w, %i = topk %l {k = 1, axis = 1}", "%ids = reshape %i {shape = (B,)}")
    assert_no_rewrite(
        RaiseMultiLora(), func(arguments, *chosen, *PRODUCTS, "%y = add %r, %delta"), None
    )


# -- what PyTorch code traces to ----------------------------------------------------------------


class Adapted(nn.Module):
    """A linear with stacked adapters, and the way in which they are applied."""

    def __init__(self, apply: Callable[[Adapted, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        seeds = count()

        def stack(*shape: int) -> nn.Parameter:
            generator = torch.Generator().manual_seed(next(seeds))
            return nn.Parameter(torch.randn(*shape, generator=generator))

        self.base = nn.Linear(8, 12)
        self.a, self.b = stack(3, 4, 8), stack(3, 12, 4)
        self.scales, self.masks = stack(3), stack(3, 4)
        self.ranks = nn.Buffer(torch.tensor([4, 1, 3]))
        self.apply_adapters = apply

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.apply_adapters(self, x, ids)


def bmm(m: Adapted, x: Tensor, ids: Tensor) -> Tensor:
    low = torch.bmm(x, m.a[ids].transpose(1, 2))
    return m.base(x) + torch.bmm(low, m.b[ids].transpose(1, 2)) * 0.5


def einsum(m: Adapted, x: Tensor, ids: Tensor) -> Tensor:
    low = torch.einsum("bsi,bri->bsr", x, m.a[ids])
    return m.base(x) + m.scales[ids][:, None, None] * torch.einsum("bsr,bor->bso", low, m.b[ids])


def einsum_of_three(m: Adapted, x: Tensor, ids: Tensor) -> Tensor:
    return m.base(x) + torch.einsum("bsi,bri,bor->bso", x, m.a[ids], m.b[ids]) * 0.5


def baddbmm(m: Adapted, x: Tensor, ids: Tensor) -> Tensor:
    low = torch.bmm(x, m.a[ids].mT)
    return torch.baddbmm(m.base(x), low, m.b[ids].mT, alpha=0.3)


def embeddings(m: Adapted, x: Tensor, ids: Tensor) -> Tensor:
    a = F.embedding(ids, m.a.flatten(1)).view(-1, 4, 8)
    b = F.embedding(ids, m.b.flatten(1)).view(-1, 12, 4)
    return m.base(x) + x @ a.mT @ b.mT


def gather(m: Adapted, x: Tensor, ids: Tensor) -> Tensor:
    each = ids[:, None, None]
    a, b = m.a.gather(0, each.expand(-1, 4, 8)), m.b.gather(0, each.expand(-1, 12, 4))
    return m.base(x) + x @ a.mT @ b.mT


def selected(m: Adapted, x: Tensor, ids: Tensor) -> Tensor:
    a, b = m.a.index_select(0, ids), torch.index_select(m.b, 0, ids)
    return m.base(x) + x @ a.mT @ b.mT


def masked(m: Adapted, x: Tensor, ids: Tensor) -> Tensor:
    safe = ids.clamp(min=0)
    delta = x @ m.a[safe].mT @ m.b[safe].mT * 0.5
    return m.base(x) + delta.masked_fill((ids < 0)[:, None, None], 0.0)


def tokens_bmm(m: Adapted, x: Tensor, ids: Tensor) -> Tensor:
    low = torch.bmm(m.a[ids], x.unsqueeze(-1))
    return m.base(x) + torch.bmm(m.b[ids], low).squeeze(-1) * 0.5


def tokens_sum(m: Adapted, x: Tensor, ids: Tensor) -> Tensor:
    low = (x.unsqueeze(1) * m.a[ids]).sum(-1)
    return m.base(x) + (low.unsqueeze(1) * m.b[ids]).sum(-1) * 0.5


def tokens_einsum(m: Adapted, x: Tensor, ids: Tensor) -> Tensor:
    low = torch.einsum("ti,tri->tr", x, m.a[ids])
    return m.base(x) + torch.einsum("tr,tor->to", low, m.b[ids]) * 0.5


def tokens_of_sequences(m: Adapted, x: Tensor, ids: Tensor) -> Tensor:
    low = torch.einsum("bsi,bsri->bsr", x, m.a[ids])
    return m.base(x) + torch.einsum("bsr,bsor->bso", low, m.b[ids]) * 0.5


def one_number_a_sequence_beside_tokens(m: Adapted, x: Tensor, ids: Tensor) -> Tensor:
    low = x.unsqueeze(-2) @ m.a[ids].mT.unsqueeze(1)
    return m.base(x) + (low @ m.b[ids].mT.unsqueeze(1)).squeeze(-2)


SPELLINGS: list[tuple[Callable[[Adapted, Tensor, Tensor], Tensor], str]] = [
    (bmm, "sequences"),
    (einsum, "sequences"),
    (einsum_of_three, "sequences"),
    (baddbmm, "sequences"),
    (embeddings, "sequences"),
    (gather, "sequences"),
    (selected, "sequences"),
    (masked, "sequences"),
    (one_number_a_sequence_beside_tokens, "sequences"),
    (tokens_bmm, "tokens"),
    (tokens_sum, "tokens"),
    (tokens_einsum, "tokens"),
    (tokens_of_sequences, "tokens of sequences"),
]


def inputs(kind: str) -> tuple[Tensor, Tensor]:
    """Rows, and the adapter of each."""
    generator = torch.Generator().manual_seed(7)
    lead = (5,) if kind == "tokens" else (2, 5)
    ids = torch.randint(0, 3, lead[:1] if kind == "sequences" else lead, generator=generator)
    return torch.randn(*lead, 8, generator=generator), ids


@pytest.mark.parametrize(("apply", "kind"), SPELLINGS, ids=lambda v: getattr(v, "__name__", v))
def test_every_spelling_is_found(
    apply: Callable[[Adapted, Tensor, Tensor], Tensor], kind: str
) -> None:
    model = Adapted(apply).eval()
    x, ids = inputs(kind)
    with torch.no_grad():
        report = fuseline.explain(model, x, ids)
    assert report.count("multi_lora") == 1, report
    assert report.count("multi_lora", None) == 1
    assert report.count("moe", None) == 0


def matrices_first(m: Adapted, x: Tensor, ids: Tensor) -> Tensor:
    return m.base(x) + x @ (m.b[ids] @ m.a[ids]).mT * 0.5


def matrices_first_in_einsum(m: Adapted, x: Tensor, ids: Tensor) -> Tensor:
    both = torch.einsum("bri,bor->bio", m.a[ids], m.b[ids])
    return m.base(x) + torch.einsum("bsi,bio->bso", x, both)


def rank_masks(m: Adapted, x: Tensor, ids: Tensor) -> Tensor:
    low = x @ m.a[ids].mT * m.masks[ids][:, None]
    return m.base(x) + low * m.scales[ids][:, None, None] @ m.b[ids].mT


def ranks(m: Adapted, x: Tensor, ids: Tensor) -> Tensor:
    beyond = torch.arange(4) >= m.ranks[ids][:, None, None]
    return m.base(x) + (x @ m.a[ids].mT).masked_fill(beyond, 0.0) @ m.b[ids].mT * 0.5


def scaled_matrices(m: Adapted, x: Tensor, ids: Tensor) -> Tensor:
    b = m.b[ids] * m.scales[ids][:, None, None]
    return m.base(x) + x @ m.a[ids].mT @ b.mT


def one_hot(m: Adapted, x: Tensor, ids: Tensor) -> Tensor:
    chosen = F.one_hot(ids, 3).to(x.dtype)
    a, b = (torch.einsum("bn,nij->bij", chosen, stack) for stack in (m.a, m.b))
    return m.base(x) + x @ a.mT @ b.mT * 0.5


def one_hot_sum(m: Adapted, x: Tensor, ids: Tensor) -> Tensor:
    chosen = (ids[:, None] == torch.arange(3)).to(x.dtype)[:, :, None, None]
    a, b = ((chosen * stack).sum(1) for stack in (m.a, m.b))
    return m.base(x) + x @ a.mT @ b.mT


def one_hot_of_all(m: Adapted, x: Tensor, ids: Tensor) -> Tensor:
    chosen = F.one_hot(ids, 3).to(x.dtype)
    low = torch.einsum("bsi,nri,bn->bsr", x, m.a, chosen)
    return m.base(x) + torch.einsum("bsr,nor,bn->bso", low, m.b, chosen)


MISSED: list[tuple[Callable[[Adapted, Tensor, Tensor], Tensor], str]] = [
    (matrices_first, "gathered of b and a are multiplied by one another"),
    (matrices_first_in_einsum, "are multiplied by one another, and rows by the outcome"),
    (rank_masks, "the result of index scales or masks columns between the products"),
    (ranks, "scales or masks columns between the products"),
    (scaled_matrices, "the matrices of b are multiplied by"),
    (one_hot, "one-hot rows are multiplied by all of b to choose matrices"),
    (one_hot_sum, "one-hot rows are multiplied by all of b to choose matrices"),
    (one_hot_of_all, "rows are multiplied by every matrix, and one-hot rows choose one"),
]


@pytest.mark.parametrize(("apply", "reason"), MISSED, ids=lambda v: getattr(v, "__name__", ""))
def test_no_raise_of_other_spellings_and_why(
    apply: Callable[[Adapted, Tensor, Tensor], Tensor], reason: str
) -> None:
    model = Adapted(apply).eval()
    x, ids = inputs("sequences")
    with torch.no_grad():
        report = fuseline.explain(model, x, ids)
    (site,) = [site for site in report.sites if site.pattern == "multi_lora"]
    assert site.status == "missed"
    assert reason in site.reason, site.reason
    assert report.count("moe", None) == 0


def test_a_count_that_only_launches_read_may_be_greater() -> None:
    text = func(
        "%x: f32[S, 8], %ids: i64[S], %a: f32[3, 2, 8], %b: f32[3, 6, 2], %n: int<A>",
        "%y = multi_lora %x, %ids, %a, %b {delta_dtype = f32, dtype = f32, active = A}",
    ).replace(" {\n", " where A in 1..3 {\n", 1)
    assert active_counts(parse_func(text)) == {"A": 3}
    more = text.replace("return %y", "%m = full {value = A, dtype = i64}\nreturn %y, %m")
    assert not active_counts(parse_func(more)), "the number is a result, too"


def test_a_count_that_is_data_too_is_read_from_memory() -> None:
    """Then more blocks may be launched, and numbers still count from the end of what is in use."""
    text = func(
        SEQUENCES.format("f32") + ", %n: int<A>",
        "%as = slice %a {axis = 0, stop = A}",
        "%bs = slice %b {axis = 0, stop = A}",
        DOWN.replace("index_select %a, %ids {axis = 0}", "index %as, [%ids] {axes = (0,)}"),
        UP.replace("index_select %b, %ids {axis = 0}", "index %bs, [%ids] {axes = (0,)}"),
        *PRODUCTS[2:],
        "%y = add %r, %delta",
    ).replace(" {\n", " where A in 1..3 {\n", 1)
    made = parse_func(text)
    run_passes(default_pipeline(), made)
    assert active_counts(made) == {"A": 3}
    assert made.args[-1].origin == Origin("count", "A")
    again = parse_func(print_func(made))
    assert print_func(again) == print_func(made)
    given = {"ids": torch.tensor([1, -2, 0])}
    for each in (made, again):
        sizes = {"A": 2, "B": 3, "S": 2}
        assert_same_values(parse_func(text), each, exact=False, given=given, sizes=sizes)
