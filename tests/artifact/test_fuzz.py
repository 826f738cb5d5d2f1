"""Damaged and malicious files end in a diagnostic: never in a crash, a hang, or without memory."""

from __future__ import annotations

import pytest

from tests.artifact import failing
from tests.artifact.fuzz import campaign
from tests.artifact.mutate import KINDS, Good, mutated
from tests.artifact.small import shared


def test_mutations_are_the_same_for_the_same_seed() -> None:
    good = Good(shared())
    first = [mutated(good, 3, number) for number in range(40)]
    assert first == [mutated(good, 3, number) for number in range(40)]
    assert first != [mutated(good, 4, number) for number in range(40)]
    assert {kind for kind, _ in (mutated(good, 0, n) for n in range(300))} == set(KINDS)


def check(files: int, seed: int) -> None:
    report = campaign(shared(), files=files, jobs=1, seed=seed)
    assert report.good, report.to_json()
    assert report.files == files
    assert report.outcomes["loaded"] < files / 2, "most files are refused"
    assert len(report.outcomes) > 20
    assert report.peak_bytes < report.before_bytes + (1 << 30)


def test_hundreds_of_files() -> None:
    check(300, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thousands_of_files() -> None:
    check(20_000, seed=2)


def test_a_crash_and_a_hang_would_be_told() -> None:
    """The campaign itself: processes that end, do not go on, or have no diagnostic."""
    report = campaign(shared(), files=6, jobs=1, seed=0, work=failing.work, seconds=2.0)
    assert report.undiagnosed == {"KeyError: #": [1]}
    assert report.crashes == {2: "SIGSEGV"}
    assert report.hangs == [4]
    assert report.files == 6
    assert not report.good
