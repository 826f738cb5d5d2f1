"""Whole-buffer writes become in-place ones where no reader of the old contents comes after."""

from __future__ import annotations

import pytest
import torch

from fuseline.passes.canonicalize import Canonicalize
from fuseline.passes.cse import Cse
from fuseline.passes.dce import Dce
from fuseline.passes.restore_mutations import RestoreMutations
from fuseline.testing import assert_no_rewrite, assert_rewrites

ARGUMENTS = "%k: buffer<bf16[2, 3, 16, 8]>, %at: i64[S], %x: bf16[2, 3, S, 8]"


WRAPPED = [  # negative places count from the end, those outside stay outside
    "%zero = full {value = 0, dtype = i64}",
    "%behind = lt %at, %zero",
    "%size = full {value = 16, dtype = i64}",
    "%from_end = add %at, %size",
    "%wrapped = where %behind, %from_end, %at",
]


def body(*lines: str, arguments: str = ARGUMENTS) -> str:
    """A func whose symbol S stays within the cache."""
    return "\n".join([f"func @f({arguments}) where S in 1..16 {{", *lines, "}"])


def test_decode_step_of_a_static_cache() -> None:
    """Keys and values by index_copy, and a counter that stays a whole write of one number."""
    arguments = """%k: buffer<f32[2, 3, 16, 8]>, %v: buffer<f32[2, 3, 16, 8]>,
        %n: buffer<i64[]>, %q: f32[2, 3, S, 8], %x: f32[2, 3, S, 8]"""
    head = [
        "%n0 = read %n",
        "%i = iota {length = S}",
        "%at = add %i, %n0",
        "%s = full {value = S, dtype = i64}",
        "%n1 = add %n0, %s",
        "%e = exp %x",
    ]
    tail = ["%y = sdpa %q, %k2, %v2", "write %n, %n1"]
    assert_rewrites(
        RestoreMutations(),
        body(
            "%k0 = read %k",
            "%v0 = read %v",
            *head,
            "%k2 = index_copy %k0, %at, %e {axis = 2}",
            "%v2 = index_copy %v0, %at, %x {axis = 2}",
            *tail,
            "write %k, %k2",
            "write %v, %v2",
            "return %y",
            arguments=arguments,
        ),
        body(
            *head,
            "index_write %k, %at, %e {axis = 2}",
            "%k2 = read %k",
            "index_write %v, %at, %x {axis = 2}",
            "%v2 = read %v",
            *tail,
            "return %y",
            arguments=arguments,
        ),
        given={"n": torch.tensor(3)},
    )


def test_unread_outcome_leaves_no_read() -> None:
    assert_rewrites(
        RestoreMutations(),
        body(
            "%k0 = read %k",
            "%k1 = index_copy %k0, %at, %x {axis = 2}",
            "write %k, %k1",
            "return %x",
        ),
        body("index_write %k, %at, %x {axis = 2}", "return %x"),
    )


def test_slices_and_chains_of_updates() -> None:
    assert_rewrites(
        RestoreMutations(),
        body(
            "%k0 = read %k",
            "%first = slice %x {axis = 2, stop = 1}",
            "%k1 = slice_scatter %k0, %first {axis = 2, start = 2, stop = 3}",
            "%k2 = index_copy %k1, %at, %x {axis = 2}",
            "%y = exp %k2",
            "write %k, %k2",
            "return %y",
        ),
        body(
            "%first = slice %x {axis = 2, stop = 1}",
            "slice_write %k, %first {axis = 2, start = 2, stop = 3}",
            "index_write %k, %at, %x {axis = 2}",
            "%k2 = read %k",
            "%y = exp %k2",
            "return %y",
        ),
    )


def test_readers_of_the_old_contents_may_come_before() -> None:
    """The write moves behind the last of them."""
    assert_rewrites(
        RestoreMutations(),
        body(
            "%k0 = read %k",
            "%k1 = index_copy %k0, %at, %x {axis = 2}",
            "%turned = permute %k0 {dims = (0, 2, 1, 3)}",
            "%old = exp %turned",
            "%new = exp %k1",
            "write %k, %k1",
            "return %old, %new",
        ),
        body(
            "%k0 = read %k",
            "%turned = permute %k0 {dims = (0, 2, 1, 3)}",
            "%old = exp %turned",
            "index_write %k, %at, %x {axis = 2}",
            "%k1 = read %k",
            "%new = exp %k1",
            "return %old, %new",
        ),
    )


def test_no_write_before_a_late_reader_of_the_old_contents() -> None:
    assert_no_rewrite(
        RestoreMutations(),
        body(
            "%k0 = read %k",
            "%k1 = index_copy %k0, %at, %x {axis = 2}",
            "%new = exp %k1",
            "%view = slice %k0 {axis = 2, stop = 4}",
            "%old = sin %view",
            "write %k, %k1",
            "return %old, %new",
        ),
        "sin reads the old contents of k after exp takes the new ones",
    )


def test_no_write_where_the_old_contents_are_returned() -> None:
    assert_no_rewrite(
        RestoreMutations(),
        body(
            "%k0 = read %k",
            "%view = slice %k0 {axis = 2, stop = 4}",
            "%k1 = index_copy %k0, %at, %x {axis = 2}",
            "write %k, %k1",
            "return %view",
        ),
        "the old contents of k are returned",
    )


def test_no_write_past_a_view_that_a_call_may_have_made() -> None:
    call = """%view = aten.call [%k0] {target = "aten.unfold.default", args = ($0, 2, 2, 2),
        types = (bf16[2, 3, 8, 8, 2],)}"""
    assert_no_rewrite(
        RestoreMutations(),
        body(
            "%k0 = read %k",
            call,
            "%k1 = index_copy %k0, %at, %x {axis = 2}",
            "%new = exp %k1",
            "%old = exp %view",
            "write %k, %k1",
            "return %old, %new",
        ),
        "exp reads the old contents",
    )


@pytest.mark.parametrize("count", [1, 3])
def test_window_that_moves_on(count: int) -> None:
    """A sliding cache that is full drops its first rows: every row moves, in place."""
    rows = f"%rows = slice %x {{axis = 2, stop = {count}}}"
    assert_rewrites(
        RestoreMutations(),
        body(
            "%k0 = read %k",
            f"%rest = slice %k0 {{axis = 2, start = {count}, stop = 16}}",
            rows,
            "%k1 = concat [%rest, %rows] {axis = 2}",
            "%y = exp %k1",
            "write %k, %k1",
            "return %y",
            arguments=ARGUMENTS.replace("S, 8]", "5, 8]"),
        ),
        body(
            rows,
            "shift_write %k, %rows {axis = 2}",
            "%k1 = read %k",
            "%y = exp %k1",
            "return %y",
            arguments=ARGUMENTS.replace("S, 8]", "5, 8]"),
        ),
    )


def test_roll_and_assignment_of_the_last_row() -> None:
    """How transformers spells it: ``k.roll(-1)``, then ``new[:, :, tensor([-1])] = x``."""
    arguments = ARGUMENTS.replace("S, 8]", "1, 8]")
    assert_rewrites(
        [Canonicalize(), Dce(), RestoreMutations(), Dce()],
        body(
            "%k0 = read %k",
            "%last = full {value = -1, shape = (1,), dtype = i64}",
            "%rest = slice %k0 {axis = 2, start = 1, stop = 16}",
            "%first = slice %k0 {axis = 2, stop = 1}",
            "%rolled = concat [%rest, %first] {axis = 2}",
            "%k1 = index_put %rolled, [%last], %x {axes = (2,)}",
            "write %k, %k1",
            "return",
            arguments=arguments,
        ),
        body("shift_write %k, %x {axis = 2}", "return", arguments=arguments),
    )


def test_no_write_of_rolled_contents() -> None:
    """Nothing is dropped: the first row comes behind the last."""
    assert_no_rewrite(
        RestoreMutations(),
        body(
            "%k0 = read %k",
            "%rest = slice %k0 {axis = 2, start = 1, stop = 16}",
            "%rows = slice %x {axis = 2, stop = 2}",
            "%k1 = concat [%rest, %rows] {axis = 2}",
            "%k2 = slice %k1 {axis = 2, stop = 16}",
            "write %k, %k2",
            "return",
            arguments=ARGUMENTS.replace("S, 8]", "5, 8]"),
        ),
        "the new contents come from slice, not from updates of k",
    )


@pytest.mark.parametrize("line", ["exp %k0", "slice %x {axis = 2, start = 2, stop = 18}"])
def test_no_word_about_contents_that_are_all_new(line: str) -> None:
    """A counter, or a prefill longer than the window: nothing of what was there is passed on."""
    assert_no_rewrite(
        RestoreMutations(),
        body(
            "%k0 = read %k",
            f"%k1 = {line}",
            "write %k, %k1",
            "return",
            arguments=ARGUMENTS.replace("S, 8]", "20, 8]"),
        ),
        None,
    )


def test_no_write_past_another_write() -> None:
    assert_no_rewrite(
        RestoreMutations(),
        body(
            "%k0 = read %k",
            "%k1 = index_copy %k0, %at, %x {axis = 2}",
            "slice_write %k, %x {axis = 2, stop = S}",
            "write %k, %k1",
            "return",
        ),
        "slice_write writes k before",
    )


def test_no_write_of_another_type() -> None:
    assert_no_rewrite(
        RestoreMutations(),
        body(
            "%k0 = read %k",
            "%k1 = index_put %k0, [%at], %x {axes = (2,), accumulate = true}",
            "write %k, %k1",
            "return",
        ),
        "index_put adds to what is there",
    )


# -- the spellings of an update -------------------------------------------------------------


def update(
    before: list[str], after: list[str], arguments: str = ARGUMENTS, **given: torch.Tensor
) -> None:
    """The lines that make %k1 of %k0 become lines that write %k."""
    assert_rewrites(
        [RestoreMutations(), Cse(), Dce()],
        body("%k0 = read %k", *before, "write %k, %k1", "return", arguments=arguments),
        body(*after, "return", arguments=arguments),
        given=given or None,
        sizes={"S": 3} if given else None,
    )


def test_assignment_by_index() -> None:
    """``k[:, :, at] = x``: negative places count from the end, which a write does not know."""
    update(
        ["%k1 = index_put %k0, [%at], %x {axes = (2,)}"],
        [
            *WRAPPED,
            "index_write %k, %wrapped, %x {axis = 2}",
        ],
        at=torch.tensor([-1, 0, 5]),
    )


def test_assignment_by_known_places_and_a_broadcast_source() -> None:
    update(
        ["%i = iota {length = S}", "%k1 = index_put %k0, [%i], %x {axes = (2,)}"],
        [
            "%i = iota {length = S}",
            "%wide = expand %x {shape = (2, 3, S, 8)}",
            "index_write %k, %i, %wide {axis = 2}",
        ],
        ARGUMENTS.replace("%x: bf16[2, 3, S, 8]", "%x: bf16[S, 8]"),
    )


def test_assignment_by_ranges_and_an_index() -> None:
    """``k[arange(B)[:, None, None], arange(H)[None, :, None], at] = x``."""
    update(
        [
            "%b = iota {length = 2}",
            "%bs = reshape %b {shape = (2, 1, 1)}",
            "%h = iota {length = 3}",
            "%hs = reshape %h {shape = (1, 3, 1)}",
            "%k1 = index_put %k0, [%bs, %hs, %at], %x {axes = (0, 1, 2)}",
        ],
        [
            *WRAPPED,
            "index_write %k, %wrapped, %x {axis = 2}",
        ],
    )


def test_assignment_by_a_range_apart_from_the_index() -> None:
    """Axes 0 and 2: torch puts the index dims first, so the source is turned back."""
    update(
        [
            "%b = iota {length = 2}",
            "%bs = reshape %b {shape = (2, 1)}",
            "%turned = permute %x {dims = (0, 2, 1, 3)}",
            "%k1 = index_put %k0, [%bs, %at], %turned {axes = (0, 2)}",
        ],
        [
            "%turned = permute %x {dims = (0, 2, 1, 3)}",
            *WRAPPED,
            "%back = permute %turned {dims = (0, 2, 1, 3)}",
            "index_write %k, %wrapped, %back {axis = 2}",
        ],
    )


def test_assignment_of_one_place() -> None:
    """``k[:, arange(H), at] = x`` with a single place: the source has no dim for it."""
    update(
        [
            "%h = iota {length = 3}",
            "%k1 = index_put %k0, [%h, %at], %x {axes = (1, 2)}",
        ],
        [
            *WRAPPED,
            "%row = reshape %x {shape = (2, 3, 1, 8)}",
            "index_write %k, %wrapped, %row {axis = 2}",
        ],
        "%k: buffer<bf16[2, 3, 16, 8]>, %at: i64[1], %x: bf16[2, 3, 8]",
    )


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["%k1 = index_put %k0, [%at, %at], %x {axes = (1, 2)}"], "2 indices that are not whole"),
        (
            ["%h = iota {length = 3}", "%k1 = index_put %k0, [%h, %h], %x {axes = (1, 2)}"],
            "of more than one dim that matters",
        ),
        (
            [
                "%two = reshape %at {shape = (3, 1)}",
                "%b = iota {length = 2}",
                "%both = add %two, %b",
                "%k1 = index_put %k0, [%both], %x {axes = (2,)}",
            ],
            "of more than one dim that matters",
        ),
    ],
)
def test_no_write_by_other_indices(lines: list[str], reason: str) -> None:
    arguments = "%k: buffer<bf16[2, 3, 16, 8]>, %at: i64[3], %x: bf16[8]"
    assert_no_rewrite(
        RestoreMutations(),
        body("%k0 = read %k", *lines, "write %k, %k1", "return", arguments=arguments),
        reason,
    )


PART = "%k: buffer<bf16[4, 3, 16, 8]>, %at: i64[S], %x: bf16[2, 3, S, 8]"


@pytest.mark.parametrize("start", [0, 1])
def test_assignment_to_a_part_of_the_batch(start: int) -> None:
    """``k[1:3, :, at] = x``, and what is read of it afterwards."""
    part = f"axis = 0, start = {start}, stop = {start + 2}"
    origin = f", origin = ({start}, 0, 0, 0)" if start else ""
    update(
        [
            f"%old = slice %k0 {{{part}}}",
            "%new = index_put %old, [%at], %x {axes = (2,)}",
            f"%k1 = slice_scatter %k0, %new {{{part}}}",
        ],
        [*WRAPPED, f"index_write %k, %wrapped, %x {{axis = 2{origin}}}"],
        PART,
        at=torch.tensor([-1, 0, 5]),
    )


def test_index_copy_into_a_part_that_is_read_afterwards() -> None:
    part = "axis = 0, stop = 2"
    update(
        [
            f"%old = slice %k0 {{{part}}}",
            "%new = index_copy %old, %at, %x {axis = 2}",
            f"%k1 = slice_scatter %k0, %new {{{part}}}",
            f"%seen = slice %k1 {{{part}}}",
            "%y = exp %seen",
            "%s = sum %y {axes = (0, 1, 2, 3)}",
            "write %n, %s",
        ],
        [
            "index_write %k, %at, %x {axis = 2}",
            "%k1 = read %k",
            f"%seen = slice %k1 {{{part}}}",
            "%y = exp %seen",
            "%s = sum %y {axes = (0, 1, 2, 3)}",
            "write %n, %s",
        ],
        f"{PART}, %n: buffer<bf16[]>",
    )


def test_slice_of_a_slice() -> None:
    """``k[1:3, :, 2:5] = x``."""
    update(
        [
            "%old = slice %k0 {axis = 0, start = 1, stop = 3}",
            "%new = slice_scatter %old, %x {axis = 2, start = 2, stop = 5}",
            "%k1 = slice_scatter %k0, %new {axis = 0, start = 1, stop = 3}",
        ],
        ["slice_write %k, %x {axis = 2, start = 2, stop = 5, origin = (1, 0, 0, 0)}"],
        PART.replace("S", "3").replace("i64[3]", "i64[S]"),
    )


def test_slice_of_a_slice_of_the_same_dim() -> None:
    """``k[:, :, 4:12][:, :, 2:5] = x``: both beginnings count."""
    update(
        [
            "%old = slice %k0 {axis = 2, start = 4, stop = 12}",
            "%new = slice_scatter %old, %x {axis = 2, start = 2, stop = 5}",
            "%k1 = slice_scatter %k0, %new {axis = 2, start = 4, stop = 12}",
        ],
        ["slice_write %k, %x {axis = 2, start = 6, stop = 9}"],
        ARGUMENTS.replace("S", "3").replace("i64[3]", "i64[S]"),
    )


def test_assignment_to_a_part_of_one_layer() -> None:
    """``k[1][:2, :, at] = x``: the buffer has a dim that the source lacks."""
    update(
        [
            "%layer = slice %k0 {axis = 0, start = 1, stop = 2}",
            "%flat = reshape %layer {shape = (4, 3, 16, 8)}",
            "%old = slice %flat {axis = 0, stop = 2}",
            "%new = index_copy %old, %at, %x {axis = 2}",
            "%whole = slice_scatter %flat, %new {axis = 0, stop = 2}",
            "%row = reshape %whole {shape = (1, 4, 3, 16, 8)}",
            "%k1 = slice_scatter %k0, %row {axis = 0, start = 1, stop = 2}",
        ],
        [
            "%row = reshape %x {shape = (1, 2, 3, S, 8)}",
            "index_write %k, %at, %row {axis = 3, origin = (1, 0, 0, 0, 0)}",
        ],
        PART.replace("[4, 3", "[5, 4, 3"),
    )


@pytest.mark.parametrize(
    ("old", "axis"),
    [
        ("%old = slice %k0 {axis = 0, start = 1, stop = 3}", 0),  # of another slice
        ("%old = slice %other {axis = 0, stop = 2}", 0),  # of another value
    ],
)
def test_no_assignment_to_a_part_that_was_made_of_something_else(old: str, axis: int) -> None:
    """The whole of the part is new: it is made first, and written as it is."""
    part = f"axis = {axis}, stop = 2"
    lines = [old, "%new = index_copy %old, %at, %x {axis = 2}"]
    reads = ["%k0 = read %k"] if "k0" in old else []
    assert_rewrites(
        [RestoreMutations(), Cse(), Dce()],
        body(
            "%k0 = read %k",
            *lines,
            f"%k1 = slice_scatter %k0, %new {{{part}}}",
            "write %k, %k1",
            "return",
            arguments=f"{PART}, %other: bf16[4, 3, 16, 8]",
        ),
        body(
            *reads,
            *lines,
            f"slice_write %k, %new {{{part}}}",
            "return",
            arguments=f"{PART}, %other: bf16[4, 3, 16, 8]",
        ),
    )


def test_no_write_by_places_that_count_from_the_beginning_of_a_slice() -> None:
    """A place outside of the slice is an error, and would be none in the buffer."""
    part = "axis = 2, stop = 8"
    update(
        [
            f"%old = slice %k0 {{{part}}}",
            "%new = index_copy %old, %at, %x {axis = 2}",
            f"%k1 = slice_scatter %k0, %new {{{part}}}",
        ],
        [
            "%k0 = read %k",
            f"%old = slice %k0 {{{part}}}",
            "%new = index_copy %old, %at, %x {axis = 2}",
            f"slice_write %k, %new {{{part}}}",
        ],
        at=torch.tensor([1, 0, 5]),
    )


def test_scatter_by_an_index_along_one_axis() -> None:
    update(
        [
            "%row = reshape %at {shape = (1, 1, S, 1)}",
            "%index = expand %row {shape = (2, 3, S, 8)}",
            "%k1 = scatter %k0, %index, %x {axis = 2}",
        ],
        [
            "%row = reshape %at {shape = (1, 1, S, 1)}",
            "%flat = reshape %row {shape = (S,)}",
            "index_write %k, %flat, %x {axis = 2}",
        ],
    )


def test_no_scatter_over_a_part_of_the_heads() -> None:
    assert_no_rewrite(
        RestoreMutations(),
        body(
            "%k0 = read %k",
            "%row = reshape %at {shape = (1, 1, S, 1)}",
            "%index = expand %row {shape = (2, 2, S, 8)}",
            "%part = slice %x {axis = 1, stop = 2}",
            "%k1 = scatter %k0, %index, %part {axis = 2}",
            "write %k, %k1",
            "return",
        ),
        "leaves out parts",
    )


def test_no_slice_scatter_with_a_step() -> None:
    assert_no_rewrite(
        RestoreMutations(),
        body(
            "%k0 = read %k",
            "%k1 = slice_scatter %k0, %x {axis = 2, stop = 16, step = 2}",
            "write %k, %k1",
            "return",
            arguments="%k: buffer<bf16[2, 3, 16, 8]>, %x: bf16[2, 3, 8, 8]",
        ),
        "a step of 2",
    )
