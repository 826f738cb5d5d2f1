"""`fuseline reduce` brings what fails to a few lines that still fail, and keeps them on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fuseline.cli import main
from fuseline.debug.case import Case
from fuseline.debug.reduce import Reduction, ddmin
from fuseline.debug.trial import Verdict
from fuseline.debug.twins import Change, fresh_names, twin
from fuseline.ir.text import parse_func, print_func
from fuseline.ir.verify import verify
from tests.debug.cases import LOAD, PIPELINES, answer

Print = pytest.CaptureFixture[str]


@pytest.mark.parametrize("name", PIPELINES)
def test_planted_faults_come_down_to_a_few_lines(
    planted_model: Path, tmp_path: Path, capsys: Print, name: str
) -> None:
    """With the head 12 at most; what is left is a reproducer that fails, and is bisected."""
    small = tmp_path / "small.fl"
    words = (str(planted_model), *LOAD, "-p", PIPELINES[name], "-o", str(small))
    code, said = answer(capsys, "reduce", *words)
    assert code == 0
    assert said["ops_before"] == 95
    text = small.read_text()
    assert len(text.splitlines()) <= 12
    page = (Path(__file__).parents[2] / "docs" / "debugging.md").read_text()
    assert text[text.index("func @") :] in page, "the session in the docs"
    assert main(["repro", str(small), *LOAD]) == 1
    _, found = answer(capsys, "bisect", str(small), *LOAD)
    assert found["pass"].startswith("planted-")
    assert found["alone"] is (name != "together")


def test_what_does_not_fail_is_left_alone(planted_model: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.fl"
    assert main(["reduce", str(planted_model), "-p", "cse", "-o", str(small)]) == 1
    assert not small.exists()


def test_a_command_is_the_check(planted_model: Path, tmp_path: Path) -> None:
    """Here: that there is a norm with an unusual eps in the file."""
    small = tmp_path / "small.fl"
    words = ["reduce", str(planted_model), "-p", "cse", "-o", str(small)]
    assert main([*words, "--check", "! grep -q 'eps = 0.25' {}"]) == 0
    func = Case.read(small).func
    assert [op.name for op in func.ops] == ["rms_norm"]


def test_the_best_so_far_is_kept_when_time_is_over(planted_model: Path) -> None:
    kept: list[Case] = []
    case = replace(Case.read(planted_model), pipeline="cse")
    ticks = iter(range(1000))

    def check(case: Case) -> Verdict:
        del case
        return Verdict(True, "always", failed="", raised="", excess=next(ticks))

    reduction = Reduction(case, [], check, kept.append, seconds=0.0)
    assert reduction.run()
    assert kept == [case]
    assert reduction.case is case


def test_another_failure_is_not_taken() -> None:
    """The first fails in its numbers; all that is smaller raises."""
    case = Case(parse_func(TEXT))
    length = len(case.func)

    def check(case: Case) -> Verdict:
        return Verdict(True, "", raised="" if len(case.func) == length else "ValueError")

    reduction = Reduction(case, [], check, lambda _: None)
    assert reduction.run()
    assert len(reduction.case.func) == length


@pytest.mark.parametrize("wanted", [{3}, {0, 9}, {1, 4, 5, 8}, set(range(10))])
def test_ddmin_leaves_what_is_needed(wanted: set[int]) -> None:
    def attempt(kept: Sequence[int]) -> bool:
        return wanted <= set(kept)

    assert ddmin(list(range(10)), attempt) == sorted(wanted)


TEXT = """func @f(%x: f32[B, 8], %w: f32[16, 8], %n: int<B>) where B in 2.. {
  %y = linear %x, %w
  %r = reshape %y {shape = (B, 2, 8)}
  %s = sum %r {axes = (2,)}
  %t = neg %s
  return %t, %y
}"""


def _text(change: Change) -> str:
    made = twin(parse_func(TEXT), change)
    assert made is not None
    verify(made)
    return print_func(fresh_names(made))


def test_what_is_cut_becomes_an_argument() -> None:
    text = _text(Change(cut=frozenset({1}), returns=(0,)))
    assert "f32[B, 2, 8]" in text.splitlines()[0]
    assert "linear" not in text
    assert "int" not in text, "the argument gives B"


def test_sizes_shrink_everywhere() -> None:
    text = _text(Change(sizes={"B": 1, 8: 3}, multiples=True))
    assert "f32[1, 3]" in text
    assert "shape = (1, 2, 3)" in text
    assert "f32[6, 3]" in text


def test_a_copy_that_fits_no_op_is_none() -> None:
    assert twin(parse_func(TEXT), Change(attributes={2: {"axes": (7,)}})) is None


def test_a_whole_result_gives_way_to_what_it_reads() -> None:
    text = _text(Change(opened=3))
    assert "neg" not in text
    assert len(text.splitlines()[-2].split(",")) == 2
    assert "neg" not in _text(Change(passed=3))
