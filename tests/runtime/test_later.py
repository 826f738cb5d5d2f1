"""Work beside the caller's: it is waited for, its errors come out, and a fork does not lose it."""

from __future__ import annotations

import os
import threading

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
    assert later.settle()


def test_an_error_comes_out_of_every_get() -> None:
    def fail() -> int:
        raise ValueError("no kernel")

    later = Later(fail)
    assert not later.settle()
    for _ in range(2):
        with pytest.raises(ValueError, match="no kernel"):
            later.get()


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
