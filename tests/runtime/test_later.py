"""Work beside the caller's: it is waited for, its errors come out, and a fork does not lose it."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future

import pytest

from fuseline.runtime.later import Later


def test_the_caller_goes_on_and_waits_only_when_it_asks() -> None:
    may_end = threading.Event()

    def make() -> int:
        assert may_end.wait(30), "the caller never came to this"
        return threading.get_ident()

    later = Later(make)
    may_end.set()
    made_by = later.get()
    assert made_by != threading.get_ident()
    assert later.get() == made_by, "it is made once"


def test_what_failed_is_made_anew_by_the_next_call() -> None:
    """Disks fill and compilers are killed: that need not be so for ever."""
    tries: list[int] = []

    def make() -> int:
        tries.append(threading.get_ident())
        if len(tries) < 3:
            raise OSError(f"try {len(tries)}")
        return 7

    later = Later(make)
    for number in (1, 2):
        with pytest.raises(OSError, match=f"try {number}"):
            later.get()
    assert later.get() == later.get() == 7
    assert [t == threading.get_ident() for t in tries] == [False, True, True]


@pytest.mark.parametrize("ended", [True, False])
def test_an_interrupted_wait(monkeypatch: pytest.MonkeyPatch, ended: bool) -> None:
    """It may have ended compilers, too: then the value is made anew, else waited for."""
    may_end, made_by = threading.Event(), list[int]()

    def make() -> int:
        made_by.append(threading.get_ident())
        assert may_end.wait(30)
        if ended and len(made_by) == 1:
            raise OSError("ended by signal 2")
        return len(made_by)

    def interrupted(self: Future[int], timeout: float | None = None) -> int:
        monkeypatch.undo()
        raise KeyboardInterrupt

    later = Later(make)
    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        later.get()
    may_end.set()
    assert later.get() == later.get() == (2 if ended else 1)
    assert [t == threading.get_ident() for t in made_by] == [False, True][: len(made_by)]


def test_settling_waits_for_others_only() -> None:
    """A report may be asked for by a build that reports its progress."""
    asked = threading.Event()
    laters: list[Later[int]] = []

    def make() -> int:
        assert asked.wait(30)
        laters[0].settle()
        return 1

    laters.append(Later(make))
    asked.set()
    laters[0].settle()
    assert laters[0].get() == 1


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_makes_what_its_parent_was_making() -> None:
    may_end = threading.Event()
    parent = os.getpid()

    def make() -> int:
        if os.getpid() == parent:
            assert may_end.wait(30), "the parent never came to this"
        return os.getpid()

    later = Later(make)
    child = os.fork()
    if child == 0:
        os._exit(0 if later.get() == os.getpid() else 1)
    may_end.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert later.get() == parent
