"""Experts over slots, sorted and grouped or gathered and batched, become one op, or say why not."""

from __future__ import annotations

import re

import pytest

from fuseline.ir.text import parse_func
from fuseline.passes.dce import Dce
from fuseline.passes.manager import PassManager
from fuseline.passes.raise_experts import RaiseExperts
from fuseline.testing import assert_no_rewrite, assert_rewrites

ARGUMENTS = (
    "%x: {0}[T, 8], %l: f32[T, 5], %w: {0}[5, 24, 8], %d: {0}[5, 8, 12], "
    "%wb: {0}[5, 24], %db: {0}[5, 8]"
)
CHOICE = ["%s, %i = topk %l {k = 2, axis = 1}", "%ids = reshape %i {shape = (<2*T>,)}"]
SORT = [
    "%sorted, %perm = sort %ids {axis = 0}",
    "%two = full {value = 2, dtype = i64}",
    "%token = floor_div %perm, %two",
    "%rows = index %x, [%token] {axes = (0,)}",
    "%float = cast %sorted {dtype = f32}",
]
COUNT = (
    "%counts = aten.call [%float] "
    '{target = "aten.histc.default", args = ($0, 5, 0, 4), types = (f32[5],)}'
)
ENDS = [
    "%ints = cast %counts {dtype = i32}",
    "%sums = cumsum %ints {axis = 0}",
    "%ends = cast %sums {dtype = i32}",
]
UP = ["%wt = permute %w {dims = (0, 2, 1)}", "%h = grouped_matmul %rows, %wt, %ends"]
HALVES = [
    "%g = slice %h {axis = 1, stop = 12}",
    "%u = slice %h {axis = 1, start = 12, stop = 24}",
]
ACTIVATION = ["%a = silu %g", "%m = mul %a, %u"]
DOWN = ["%dt = permute %d {dims = (0, 2, 1)}", "%o = grouped_matmul %m, %dt, %ends"]
WEIGH = [
    "%sw = reshape %s {shape = (<2*T>,)}",
    "%weights = index %sw, [%perm] {axes = (0,)}",
    "%w1 = reshape %weights {shape = (<2*T>, 1)}",
    "%ow = mul %o, %w1",
]
BACK = [
    "%empty = full {value = 0, shape = (<2*T>,), dtype = i64}",
    "%iota = iota {length = <2*T>}",
    "%inverse = index_put %empty, [%perm], %iota {axes = (0,)}",
    "%back = index %ow, [%inverse] {axes = (0,)}",
]
SUM = ["%grid = reshape %back {shape = (T, 2, 8)}", "%y = sum %grid {axes = (1,)}"]
GROUPED = [*CHOICE, *SORT, COUNT, *ENDS, *UP, *HALVES, *ACTIVATION, *DOWN, *WEIGH, *BACK, *SUM]
BODY = "func @body(%gate: {0}[12], %up: {0}[12]) {{ %a = silu %gate %m = mul %a, %up return %m }}"


def func(arguments: str, *lines: str, result: str = "%y") -> str:
    """The text of a func."""
    return "\n".join([f"func @f({arguments}) {{", *lines, f"return {result} }}"])


def raised(*attributes: str, biases: str = "", dtype: str = "f32", body: str = BODY) -> list[str]:
    """The lines of the op that takes the place of all."""
    given = ", ".join(["experts = 5", f"body = {body.format(dtype)}", *attributes])
    return [CHOICE[0], f"%y = experts %x, %i, %s, [%w], [%d]{biases} {{{given}}}"]


def replaced(lines: list[str], **by: str) -> list[str]:
    """Lines with those that define a value replaced."""
    names = {line.split(" =")[0].split(",")[0]: i for i, line in enumerate(lines)}
    changed = list(lines)
    for name, line in by.items():
        changed[names[f"%{name}"]] = line
    return changed


def miss(lines: list[str], reason: str | None, *, arguments: str = ARGUMENTS) -> None:
    """The lines stay as they are, for a reason."""
    assert_no_rewrite(RaiseExperts(), func(arguments.format("f32"), *lines), reason)


def test_sorted_and_grouped() -> None:
    """The same products of the same rows: bit for bit."""
    arguments = ARGUMENTS.format("f32")
    assert_rewrites(
        RaiseExperts(), func(arguments, *GROUPED), func(arguments, *raised("dtype = f32"))
    )


@pytest.mark.parametrize(("result", "held"), [("%o", 3), ("%y, %m", 4)])
def test_no_experts_but_the_predicates_that_held(result: str, held: int) -> None:
    """Rows that nobody adds up, and rows between the products that somebody else reads."""
    text = func(ARGUMENTS.format("f32"), *GROUPED, result=result)
    (missed,) = PassManager([Dce(), RaiseExperts()]).run(parse_func(text)).missed.values()
    assert len(missed.held) == held, (missed.reason, missed.held)
    assert missed.held[0].startswith("each row is a token's, multiplied by the matrices")


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_weights_in_float32_and_a_cast_of_the_sum(dtype: str) -> None:
    """The weights stay in float32, as do the rows until they are added up."""
    arguments = ARGUMENTS.format(dtype)
    lines = replaced(GROUPED, ow="%ow = mul %wide, %w1", y="%z = sum %grid {axes = (1,)}")
    lines.insert(lines.index("%ow = mul %wide, %w1"), "%wide = cast %o {dtype = f32}")
    lines.append(f"%y = cast %z {{dtype = {dtype}}}")
    after = raised(f"dtype = {dtype}", dtype=dtype)
    assert_rewrites(RaiseExperts(), func(arguments, *lines), func(arguments, *after))


def test_biases_and_interleaved_columns() -> None:
    """gpt_oss: every second column is the gate; each product gets the bias of its expert."""
    arguments = ARGUMENTS.format("bf16")
    halves = [
        "%hb = index %wb, [%sorted] {axes = (0,)}",
        "%hs = add %h, %hb",
        "%g = slice %hs {axis = 1, stop = 23, step = 2}",
        "%u = slice %hs {axis = 1, start = 1, stop = 24, step = 2}",
    ]
    down = [
        "%ob = index %db, [%sorted] {axes = (0,)}",
        DOWN[0],
        "%p = grouped_matmul %m, %dt, %ends",
        "%o = add %p, %ob",
    ]
    cast = ["%sh = cast %s {dtype = bf16}", "%sw = reshape %sh {shape = (<2*T>,)}", *WEIGH[1:]]
    lines = [*CHOICE, *SORT, COUNT, *ENDS, *UP, *halves, *ACTIVATION, *down, *cast, *BACK, *SUM]
    after = raised("interleaved = true", "dtype = bf16", biases=", %wb, %db", dtype="bf16")
    after = [after[0], "%sh = cast %s {dtype = bf16}", after[1].replace("%s,", "%sh,")]
    assert_rewrites(RaiseExperts(), func(arguments, *lines), func(arguments, *after))


@pytest.mark.parametrize(
    "inverse",
    [
        ["%unused, %inverse = sort %perm {axis = 0}"],
        [*BACK[:2], "%inverse = scatter %empty, %perm, %iota {axis = 0}"],
    ],
)
def test_other_inverses(inverse: list[str]) -> None:
    arguments = ARGUMENTS.format("f32")
    lines = [*GROUPED[: -len(BACK) - len(SUM)], *inverse, BACK[-1], *SUM]
    assert_rewrites(
        RaiseExperts(), func(arguments, *lines), func(arguments, *raised("dtype = f32"))
    )


PUTS = {
    "index_copy": ["%back = index_copy %blank, %perm, %ow {axis = 0}"],
    "index_put": ["%back = index_put %blank, [%perm], %ow {axes = (0,)}"],
    "scatter": [
        "%column = reshape %perm {shape = (<2*T>, 1)}",
        "%places = expand %column {shape = (<2*T>, 8)}",
        "%back = scatter %blank, %places, %ow {axis = 0}",
    ],
}


@pytest.mark.parametrize("put", PUTS.values(), ids=PUTS)
def test_rows_are_put_back(put: list[str]) -> None:
    """``out[order] = rows``: the sort's own order says where they go."""
    arguments = ARGUMENTS.format("f32")
    blank = "%blank = full {value = 0, shape = (<2*T>, 8), dtype = f32}"
    lines = [*GROUPED[: -len(BACK) - len(SUM)], blank, *put, *SUM]
    assert_rewrites(
        RaiseExperts(), func(arguments, *lines), func(arguments, *raised("dtype = f32"))
    )


def test_no_rows_put_back_among_others() -> None:
    """What is there already stays where nothing is put."""
    blank = "%blank = full {value = 1, shape = (<3*T>, 8), dtype = f32}"
    grid = ["%grid = reshape %back {shape = (T, 3, 8)}", *SUM[1:]]
    lines = [*GROUPED[: -len(BACK) - len(SUM)], blank, *PUTS["index_copy"], *grid]
    miss(lines, "read by index_copy")


def test_counts_from_comparisons() -> None:
    """``(ids[:, None] == arange(E)).sum(0)``, of the ids before they are sorted."""
    count = [
        "%column = reshape %ids {shape = (<2*T>, 1)}",
        "%each = iota {length = 5}",
        "%hits = eq %column, %each",
        "%counts = sum %hits {axes = (0,)}",
    ]
    at = GROUPED.index(COUNT)
    lines = [*GROUPED[: at - 1], *count, *GROUPED[at + 1 :]]
    arguments = ARGUMENTS.format("f32")
    assert_rewrites(
        RaiseExperts(), func(arguments, *lines), func(arguments, *raised("dtype = f32"))
    )


def test_weights_on_what_goes_in() -> None:
    arguments = ARGUMENTS.format("f32")
    lines = replaced(GROUPED, h="%h = grouped_matmul %rw, %wt, %ends", ow="%ow = exp %o")
    lines = [line for line in lines if line not in (*WEIGH[:3], "%ow = exp %o")]
    weigh = [*WEIGH[:3], "%rw = mul %rows, %w1"]
    lines[lines.index(UP[0]) : lines.index(UP[0])] = weigh
    lines = replaced(lines, back="%back = index %o, [%inverse] {axes = (0,)}")
    after = raised('weigh = "input"', "dtype = f32")
    assert_rewrites(RaiseExperts(), func(arguments, *lines), func(arguments, *after))


def test_gate_and_up_apart() -> None:
    arguments = ARGUMENTS.format("f32").replace(
        "%w: f32[5, 24, 8]",
        '%w: f32[5, 8, 12] = param "gate", %v: f32[5, 8, 12] = param "up"',
    )
    arguments = arguments.replace("%d: f32[5, 8, 12]", "%d: f32[5, 12, 8]")
    up = ["%g = grouped_matmul %rows, %w, %ends", "%u = grouped_matmul %rows, %v, %ends"]
    down = ["%o = grouped_matmul %m, %d, %ends"]
    lines = [*CHOICE, *SORT, COUNT, *ENDS, *up, *ACTIVATION, *down, *WEIGH, *BACK, *SUM]
    after = [raised("transposed = true", "dtype = f32")[1].replace("[%w]", "[%w, %v]")]
    texts = (func(arguments, *lines), func(arguments, CHOICE[0], *after))
    assert_rewrites(RaiseExperts(), *texts, exact=False)  # one product of both in its reference


def test_matrices_turned_in_one_product_only() -> None:
    """The op takes those of either product as they lie."""
    arguments = ARGUMENTS.format("f32").replace("%d: f32[5, 8, 12]", "%d: f32[5, 12, 8]")
    lines = replaced(GROUPED, dt="%one = full {value = 1, dtype = i64}")
    lines = replaced(lines, o="%o = grouped_matmul %m, %d, %ends")
    after = raised("down_transposed = true", "dtype = f32")
    assert_rewrites(
        RaiseExperts(),
        func(arguments, *(line for line in lines if "%one" not in line)),
        func(arguments, *after),
    )


GATHERED = [
    "%x1 = reshape %x {shape = (T, 1, 8)}",
    "%x2 = expand %x1 {shape = (T, 2, 8)}",
    "%rows = reshape %x2 {shape = (<2*T>, 8, 1)}",
    "%wg = index %w, [%ids] {axes = (0,)}",
    "%h = matmul %wg, %rows",
    "%g = slice %h {axis = 1, stop = 12}",
    "%u = slice %h {axis = 1, start = 12, stop = 24}",
    *ACTIVATION,
    "%dg = index %d, [%ids] {axes = (0,)}",
    "%q = matmul %dg, %m",
    "%o = reshape %q {shape = (<2*T>, 8)}",
    "%w1 = reshape %s {shape = (<2*T>, 1)}",
    "%ow = mul %o, %w1",
    "%grid = reshape %ow {shape = (T, 2, 8)}",
    SUM[1],
]


@pytest.mark.parametrize("dropped", [False, True])
def test_columns_with_a_dim_of_one_behind(dropped: bool) -> None:
    """Rows stay columns of one, ``[S, I, 1]``, through the activation or half of it."""
    lines = list(GATHERED)
    if dropped:
        at = lines.index("%m = mul %a, %u")
        lines[at : at + 1] = [
            "%a1 = reshape %a {shape = (<2*T>, 12)}",
            "%u1 = reshape %u {shape = (<2*T>, 12)}",
            "%m1 = mul %a1, %u1",
            "%m = reshape %m1 {shape = (<2*T>, 12, 1)}",
        ]
    arguments = ARGUMENTS.format("f32")
    assert_rewrites(
        RaiseExperts(),
        func(arguments, *CHOICE, *lines),
        func(arguments, *raised("dtype = f32")),
        exact=False,
    )


# -- misses -------------------------------------------------------------------------------------


def test_no_experts_whose_numbers_may_lie_outside() -> None:
    lines = ["%ids = reshape %i {shape = (<2*T>,)}", *GROUPED[2:]]
    arguments = ARGUMENTS + ", %i: i64[T, 2], %s: f32[T, 2]"
    miss(
        lines,
        "come from i, which does not choose among 5: they may lie outside",
        arguments=arguments,
    )
    wide = ARGUMENTS.replace("%l: f32[T, 5]", "%l: f32[T, 6]")
    miss(GROUPED, "which does not choose among 5", arguments=wide)


def test_no_experts_whose_inside_is_read() -> None:
    lines = [*GROUPED, "%again = exp %m"]
    text = func(ARGUMENTS.format("f32"), *lines, result="%y, %again")
    assert_no_rewrite(
        RaiseExperts(), text, "the result of mul inside of the experts is read by exp"
    )


def test_no_experts_with_a_norm_between() -> None:
    norm = ["%n = sum %m0 {axes = (1,), keepdim = true}", "%m = div %m0, %n"]
    lines = replaced(GROUPED, m="%m0 = mul %a, %u")
    at = lines.index(DOWN[0])
    lines[at:at] = norm
    miss(lines, "the result of sum, f32[2*T, 1], is broadcast against f32[2*T, 12]")


def test_no_experts_with_a_norm_behind() -> None:
    """muse_spark norms what each expert gives."""
    lines = replaced(GROUPED, ow="%ow = mul %n, %w1")
    at = lines.index(WEIGH[0])
    lines[at:at] = ["%q = sum %o {axes = (1,), keepdim = true}", "%n = div %o, %q"]
    miss(lines, "the result of grouped_matmul, of each slot by itself, is read by sum, div")


def test_no_experts_in_another_order() -> None:
    miss(
        replaced(GROUPED, back="%back = index %ow, [%perm] {axes = (0,)}"), "does not undo the sort"
    )
    miss(
        replaced(GROUPED, weights="%weights = reshape %sw {shape = (<2*T>,)}"),
        "in another order than the rows",
    )


def test_no_experts_of_other_rows() -> None:
    three = replaced(GROUPED, two="%two = full {value = 3, dtype = i64}")
    miss(three, "which does not copy each token's row")


def test_no_experts_that_are_not_counted() -> None:
    bins = COUNT.replace("5, 0, 4", "5, 0, 5")
    miss(replaced(GROUPED, counts=bins), "not over how often each of 5 experts was chosen")
    lines = [*GROUPED[: GROUPED.index(COUNT) - 1], *GROUPED[GROUPED.index(UP[0]) :]]
    miss(lines, "where the groups end comes from ends", arguments=ARGUMENTS + ", %ends: i32[5]")


def square(*lines: str) -> str:
    """The text of a func of two tokens with four slots for four experts."""
    text = func(ARGUMENTS.format("f32"), *lines).replace("<2*T>", "4").replace("5", "4")
    return re.sub(r"\bT\b", "2", text)


def compared(
    *, ids: str = "(4, 1)", numbers: str = "(1, 4)", run: str = "i64", dtype: str = "i32"
) -> str:
    """The sorted form where each id is compared with each number, and dim 0 summed."""
    count = [
        f"%column = reshape %sorted {{shape = {ids}}}",
        f"%run = iota {{length = 4, dtype = {run}}}",
        f"%numbers = reshape %run {{shape = {numbers}}}",
        "%same = eq %column, %numbers",
        f"%hot = cast %same {{dtype = {dtype}}}",
        "%counts = sum %hot {axes = (0,)}",
    ]
    at = GROUPED.index(COUNT)
    return square(*GROUPED[: at - 1], *count, *GROUPED[at + 1 :])


@pytest.mark.parametrize("dtype", ["i32", "i8", "f32"])
def test_counted_by_comparing(dtype: str) -> None:
    assert_rewrites(RaiseExperts(), compared(dtype=dtype), square(*raised("dtype = f32")))


def test_no_counts_along_the_wrong_dim_of_a_square_table() -> None:
    """As many slots as experts: summed over the experts, every slot counts one."""
    turned = compared(ids="(1, 4)", numbers="(4, 1)")
    assert_no_rewrite(RaiseExperts(), turned, "not over how often each of 4 experts was chosen")


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_no_counts_in_a_type_that_loses_count(dtype: str) -> None:
    """bfloat16 has no 257: the groups would end elsewhere."""
    reason = f"{dtype}[4], not over how often each of 4 experts was chosen"
    assert_no_rewrite(RaiseExperts(), compared(dtype=dtype), reason)


@pytest.mark.parametrize("run", ["bf16", "i8"])
def test_no_counts_of_numbers_in_a_type_that_repeats_some(run: str) -> None:
    """A run of bfloat16 has 256 twice; one of i8 begins anew."""
    reason = "not over how often each of 4 experts was chosen"
    assert_no_rewrite(RaiseExperts(), compared(run=run), reason)


@pytest.mark.parametrize(("shape", "axis"), [("(1, 5)", 0), ("(5, 1)", 1)])
def test_no_ends_that_add_nothing_up(shape: str, axis: int) -> None:
    """Along a dim of one the cumulative sum is what it was given."""
    given = f"%row = reshape %ints {{shape = {shape}}} %run = cumsum %row {{axis = {axis}}}"
    lines = replaced(GROUPED, sums=f"{given} %sums = reshape %run {{shape = (5,)}}")
    miss(lines, "not over how often each of 5 experts was chosen")


def test_no_order_of_ids_that_lost_some() -> None:
    """The exact ids are counted, and those that are sorted say 256 where the router said 257."""
    sort = "%lossy = cast %ids {dtype = bf16} %sorted, %perm = sort %lossy {axis = 0}"
    lines = replaced(GROUPED, sorted=sort, float="%float = cast %ids {dtype = f32}")
    miss(lines, "nothing sorts them from the first on")


def test_no_ends_from_a_cast_that_loses_count() -> None:
    lines = replaced(
        GROUPED, ints="%half = cast %counts {dtype = bf16} %ints = cast %half {dtype = i32}"
    )
    miss(lines, "the result of cast bf16[5], not over how often each of 5 experts was chosen")


def test_no_experts_without_weights_or_sum() -> None:
    plain = replaced(GROUPED, back="%back = index %o, [%inverse] {axes = (0,)}")
    miss([line for line in plain if line not in WEIGH], "neither what goes into the experts nor")
    text = func(ARGUMENTS.format("f32"), *GROUPED[:-1], result="%grid")
    assert_no_rewrite(
        RaiseExperts(), text, "of each slot by itself, is read by nothing, and returned"
    )


@pytest.mark.parametrize("dtype", ["f64", "i32"])
def test_no_experts_of_a_type_without_kernels(dtype: str) -> None:
    """The op would run by its reference, a loop: what the model does itself is faster."""
    lines = [*CHOICE, *SORT, COUNT, *ENDS, *UP, *HALVES, "%m = mul %g, %u", *DOWN]
    lines += [f"%sc = cast %s {{dtype = {dtype}}}", "%sw = reshape %sc {shape = (<2*T>,)}"]
    text = func(ARGUMENTS.format(dtype), *lines, *WEIGH[1:], *BACK, *SUM)
    reason = f"x of the experts is {dtype}: there are kernels for f32, bf16, f16"
    assert_no_rewrite(RaiseExperts(), text, reason)


def test_no_experts_whose_gate_and_up_cannot_lie_side_by_side() -> None:
    arguments = ARGUMENTS.replace("%w: {0}[5, 24, 8]", "%w: {0}[5, 8, 12], %v: {0}[5, 8, 12]")
    up = ["%g = grouped_matmul %rows, %w, %ends", "%u = grouped_matmul %rows, %v, %ends"]
    lines = [*CHOICE, *SORT, COUNT, *ENDS, *up, *ACTIVATION, *DOWN, *WEIGH, *BACK, *SUM]
    miss(lines, "weight comes from argument w, not from a parameter", arguments=arguments)


def test_no_experts_whose_matrices_lie_anyhow() -> None:
    """Every second row of a larger matrix: no kernel reads that."""
    arguments = ARGUMENTS.replace("%w: {0}[5, 24, 8]", "%all: {0}[5, 48, 8]")
    half = ["%w = slice %all {axis = 1, stop = 47, step = 2}"]
    miss([*half, *GROUPED], "does not lie row by row in memory", arguments=arguments)


def test_no_experts_with_one_product() -> None:
    lines = [*GROUPED[: GROUPED.index(HALVES[0])], "%y = exp %h"]
    miss(lines, "no second product by experts' matrices reads")


def test_no_word_about_other_products() -> None:
    miss(["%y = matmul %a, %b"], None, arguments="%a: {0}[T, 2, 3], %b: {0}[T, 3, 2]")
