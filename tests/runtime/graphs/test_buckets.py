"""Sizes that share the recording of larger ones, with a recorder for the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fuseline.build import Tools
from fuseline.errors import FuselineWarning
from fuseline.runtime.graphs import Graphed
from fuseline.runtime.graphs.buckets import LARGEST_BUCKET, bucket_of, fill
from fuseline.runtime.graphs.graphed import MOVES, OFTEN
from fuseline.runtime.plan import PadArg, Plan, VariantSpec
from tests.runtime.graphs.conftest import graphed
from tests.runtime.graphs.cpu_recorder import spoil

ROWS = """func @f(%x: f32[S, 8], %w: f32[8] = param "w") {
  %y = rms_norm %x, %w
  %z = add %y, %x
  return %z, %y
}"""
"""Each row by itself."""

CACHED = """func @f(%q: f32[1, 2, S, 8], %k: f32[1, 2, S, 8], %at: i64[S],
                    %cache: buffer<f32[1, 2, 16, 8]>) {
  index_write %cache, %at, %k {axis = 2}
  %c = read %cache
  %y = attention %q, %c, %c, _, %at {scale = 0.3, causal = true}
  %last = slice %y {axis = 2, start = <S - 1>, stop = S}
  %z = add %last, %last
  return %y, %z
}"""
"""Queries over a cache that is written where they stand."""

BATCH = """func @f(%x: f32[B, S, 8], %m: f32[8, 8] = param "m") {
  %r = reshape %x {shape = (<B*S>, 8)}
  %y = linear %r, %m
  %z = relu %y
  %t = reshape %z {shape = (B, S, 8)}
  %p = add %t, %x
  return %z, %p
}"""
"""Rows in two dims, that lie in one behind the other in a result."""

SUMMED = """func @f(%x: f32[S, 8]) {
  %y = sum %x {axes = (0,)}
  %z = add %x, %y
  return %z
}"""
"""Rows that meet."""

TABLE = """func @f(%x: f32[S, 8], %t: f32[21, 8] = param "t") {
  %c = slice %t {axis = 0, start = 0, stop = S}
  %y = add %x, %c
  return %y
}"""
"""No more rows than a table has."""

SORTED_ROWS = """func @f(%x: f32[S, 8]) {
  %a = add %x, %x
  %s, %i = sort %a {axis = 1}
  %y = mul %s, %s
  return %y, %i
}"""
"""A step of torch's between two of ours."""


def rows(count: int, seed: int) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def spoil_memory(run: Graphed) -> None:
    spoil(run._arena)  # pyright: ignore[reportPrivateUsage]
    for state in run._states.values():  # pyright: ignore[reportPrivateUsage]
        for _, memory in state.entry.copied if state.entry else ():
            spoil(memory)


def test_the_buckets_are_those_of_serving_engines() -> None:
    found = sorted({bucket_of(rows) for rows in range(LARGEST_BUCKET + 1)})
    assert found == [0, 1, 2, 4, *range(8, 257, 8), *range(272, 513, 16)]
    assert all(bucket_of(rows) >= rows for rows in range(1000))
    assert bucket_of(LARGEST_BUCKET + 1) == LARGEST_BUCKET + 1


def test_many_sizes_replay_few_recordings(tools: Tools) -> None:
    program, recorder, run = graphed(tools, ROWS)
    weight = torch.rand(8) + 0.5
    kept: list[tuple[Tensor, Tensor]] = []
    for seed in range(3):
        for count in (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 15, 16):
            x = rows(count, seed)
            spoil_memory(run)
            got, want = run([x.clone(), weight]), program([x, weight])
            for g, w in zip(got, want, strict=True):
                assert g.stride() == w.stride()
                assert torch.equal(g, w)
                kept.append((g, w))
    assert all(torch.equal(g, w) for g, w in kept), "a later call wrote into an earlier result"
    assert [dict(r.sizes)["S"] for r in run.sizes] == [1, 2, 4, 8, 16]
    assert len(recorder.made) == 5
    assert [r.kind for r in run.sizes] == ["exact"] * 2 + ["bucket"] * 3


def test_a_new_size_replays_at_its_first_call(tools: Tools) -> None:
    program, recorder, run = graphed(tools, ROWS)
    weight = torch.ones(8)
    for count in (13, 14):
        run([rows(count, 0), weight])
    assert [made.replays for made in recorder.made] == [1]
    x = rows(11, 1)
    for g, w in zip(run([x.clone(), weight]), program([x, weight]), strict=True):
        assert torch.equal(g, w)
    assert [made.replays for made in recorder.made] == [2]


def test_added_rows_leave_the_cache_alone(tools: Tools) -> None:
    program, _, run = graphed(tools, CACHED)
    cache, plain = torch.zeros(1, 2, 16, 8), torch.zeros(1, 2, 16, 8)
    for call in range(5):
        for count in (1, 3, 5, 6, 7):
            generator = torch.Generator().manual_seed(call)
            q, k = (torch.randn(1, 2, count, 8, generator=generator) for _ in range(2))
            at = torch.randperm(16, generator=generator)[:count]
            spoil_memory(run)
            got, want = run([q, k, at, cache]), program([q, k, at, plain])
            for g, w in zip(got, want, strict=True):
                torch.testing.assert_close(g, w)
            assert torch.equal(cache, plain)
    assert {r.sizes["S"] for r in run.sizes} == {1, 4, 8}


def test_batch_and_length_grow_together(tools: Tools) -> None:
    program, _, run = graphed(tools, BATCH)
    m = torch.randn(8, 8, generator=torch.Generator().manual_seed(9))
    for call in range(3):
        for shape in ((3, 5), (4, 7), (3, 8), (4, 8), (1, 5)):
            x = torch.randn(*shape, 8, generator=torch.Generator().manual_seed(call))
            spoil_memory(run)
            for g, w in zip(run([x, m]), program([x, m]), strict=True):
                assert g.shape == w.shape
                torch.testing.assert_close(g, w)
    assert [tuple(r.sizes.values()) for r in run.sizes] == [(1, 8), (4, 8)]


def test_an_input_whose_rows_lie_apart(tools: Tools) -> None:
    """What a program was compiled for, such as a slice, keeps its strides in the larger memory."""
    program, *_ = graphed(tools, ROWS)
    assert program.plan.pads["S"].args == (PadArg(0, 0),)
    memory = torch.full((8, 4), float("nan"))
    given = torch.arange(12.0).reshape(3, 4)
    fill(memory, given, [PadArg(0, 0)])
    assert torch.equal(memory[:3], given)
    assert torch.equal(memory[3:], given[-1:].expand(5, 4))
    wide = torch.empty_strided((8, 4), (0, 1))
    fill(wide, given[:1].expand(3, 4), [PadArg(0, 0)])
    assert torch.equal(wide, given[:1].expand(8, 4))
    corner = torch.empty(4, 8)
    fill(corner, given, [PadArg(0, 0), PadArg(1, 1, fill=-1)])
    assert torch.equal(corner[:3, :4], given)
    assert torch.equal(corner[3, :4], given[-1])
    assert corner[:, 4:].eq(-1).all()


@pytest.mark.parametrize("text", [SUMMED], ids=["sum"])
def test_no_rows_are_added_where_rows_meet(tools: Tools, text: str) -> None:
    program, recorder, run = graphed(tools, text)
    assert program.plan.unpadded == {"S": "sum goes across the rows"}
    for count in (5, 6):
        for seed in range(3):
            x = rows(count, seed)
            torch.testing.assert_close(run([x])[0], program([x])[0])
    assert [(r.sizes["S"], r.kind) for r in run.sizes] == [(5, "exact"), (6, "exact")]
    assert [made.replays for made in recorder.made] == [2, 2]


def test_what_is_given_is_given_back(tools: Tools) -> None:
    text = "func @f(%x: f32[S, 8]) { %y = add %x, %x  return %x, %y }"
    _, recorder, run = graphed(tools, text)
    for call in range(3):
        x = rows(5, call)
        same, double = run([x])
        assert same.data_ptr() == x.data_ptr()
        assert same.shape == x.shape
        assert torch.equal(double, x + x)
    assert recorder.made[0].replays == 2


def test_an_empty_batch_is_itself(tools: Tools) -> None:
    _, _, run = graphed(tools, ROWS)
    for _ in range(3):
        y, _ = run([torch.zeros(0, 8), torch.ones(8)])
        assert y.shape == (0, 8)


def test_a_table_limits_its_bucket(tools: Tools) -> None:
    program, _, run = graphed(tools, TABLE)
    table = torch.randn(21, 8)
    for count in (17, 18, 19, 21):
        x = rows(count, count)
        assert torch.equal(run([x, table])[0], program([x, table])[0])
    assert [r.sizes["S"] for r in run.sizes] == [21]


def test_frequent_sizes_get_recordings_of_their_own(tools: Tools) -> None:
    program, recorder, run = graphed(tools, ROWS)
    weight = torch.ones(8)
    for call in range(OFTEN + 3):
        x = rows(9, call)
        assert torch.equal(run([x, weight])[0], program([x, weight])[0])
    assert [(r.sizes["S"], r.kind) for r in run.sizes] == [(9, "exact"), (16, "bucket")]
    assert [made.replays for made in recorder.made] == [OFTEN - 1, 3]
    run([rows(10, 0), weight])
    assert recorder.made[0].replays == OFTEN


def test_no_others_are_forgotten_for_frequent_sizes(tools: Tools) -> None:
    _, recorder, run = graphed(tools, ROWS, most=1)
    weight = torch.ones(8)
    for call in range(OFTEN + 3):
        run([rows(9, call), weight])
    assert len(recorder.made) == 1


def test_a_bucket_with_too_many_tokens_is_not_used(tools: Tools) -> None:
    _, _, run = graphed(tools, ROWS, largest=13)
    weight = torch.ones(8)
    for count in (11, 13, 14):
        for call in range(3):
            run([rows(count, call), weight])
    assert [(r.sizes["S"], r.kind) for r in run.sizes] == [
        (11, "exact"),
        (13, "exact"),
        (14, "none"),
    ]
    assert run.sizes[-1].reason == "more than 13 tokens, which keep the device busy"


def test_moved_state_is_noticed_in_a_bucket(tools: Tools) -> None:
    program, _, run = graphed(tools, CACHED)
    q, at = torch.randn(1, 2, 3, 8), torch.arange(3)
    kept: list[Tensor] = []
    for place in range(MOVES):
        kept.append(torch.zeros(1, 2, 16, 8))
        for _ in range(3):
            plain = kept[-1].clone()
            got, want = run([q, q, at, kept[-1]]), program([q, q, at, plain])
            torch.testing.assert_close(got, want)
            assert torch.equal(kept[-1], plain)
        assert run.recorded == (1 if place < MOVES else 0)
    kept.append(torch.zeros(1, 2, 16, 8))
    with pytest.warns(FuselineWarning, match="FL1006 .*cache"):
        run([q, q, at, kept[-1]])
    assert run.recorded == 0


def test_steps_between_recordings_run_at_the_size_of_the_bucket(tools: Tools) -> None:
    program, recorder, run = graphed(tools, SORTED_ROWS, refuse=["aten.sort.stable"])
    for seed in range(3):
        for count in (5, 7):
            x = rows(count, seed)
            for g, w in zip(run([x]), program([x]), strict=True):
                assert torch.equal(g, w)
    assert [r.sizes["S"] for r in run.sizes] == [8]
    assert len([made for made in recorder.made if made.replays]) == run.sizes[0].graphs


def test_a_size_that_no_graph_holds_is_said(tools: Tools) -> None:
    _, recorder, run = graphed(tools, ROWS)
    recorder.fail = torch.OutOfMemoryError("CUDA out of memory")
    weight = torch.ones(8)
    run([rows(5, 0), weight])
    with pytest.warns(FuselineWarning, match="FL1007"):
        run([rows(6, 0), weight])
    recorder.fail = None
    run([rows(7, 0), weight])
    assert [(r.sizes["S"], r.kind, r.reason) for r in run.sizes] == [
        (8, "none", "no memory for a recording")
    ]


COUNTED = """func @f(%x: f32[S, 8], %scales: f32[A], %n: int<N>) {
  %s = reshape %scales {shape = (1, A, 1)}
  %r = reshape %x {shape = (S, 1, 8)}
  %p = mul %r, %s
  %y = sum %p {axes = (1,)}
  return %y
}"""
"""A sum over what is in use: more of it that is 0 changes nothing, and ``n`` is not read."""


def counted(plan: Plan) -> Plan:
    """The plan with its counts declared: what an op of the program would do."""
    scales = VariantSpec("scales", "A", 12, (PadArg(1, 0, fill=0),))
    return replace(plan, variants=(scales, VariantSpec("in use", "N", 5)))


def test_counts_are_rounded_up_to_powers_of_two(tools: Tools) -> None:
    program, _, run = graphed(tools, COUNTED, change=counted)
    for call in range(3):
        for scales, number in ((3, 1), (4, 3), (5, 4), (7, 5), (9, 0), (12, 5), (0, 1)):
            x = rows(3, call)
            scale = torch.rand(scales, generator=torch.Generator().manual_seed(call))
            spoil_memory(run)
            got, want = run([x, scale, number]), program([x, scale, number])
            torch.testing.assert_close(got, want)
    found = [tuple(r.sizes[name] for name in ("S", "A", "N")) for r in run.sizes]
    assert found == [(4, 0, 1), (4, 4, 1), (4, 4, 4), (4, 8, 4), (4, 8, 5), (4, 12, 0), (4, 12, 5)]


def test_more_than_the_greatest_count_runs_without_a_graph(tools: Tools) -> None:
    program, recorder, run = graphed(tools, COUNTED, change=counted)
    for call in range(3):
        x, scale = rows(2, call), torch.rand(13)
        torch.testing.assert_close(run([x, scale, 1]), program([x, scale, 1]))
    assert not recorder.made
    assert [r.reason for r in run.sizes] == ["more than 12 scales"]
