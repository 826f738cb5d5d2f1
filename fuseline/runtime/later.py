"""Work in a thread of its own while the caller goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

from fuseline.runtime.fork import renew_in_children

T = TypeVar("T")


class Later(Generic[T]):
    """A value that is being made; a forked child, which has no such thread, makes it itself."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make: Callable[[], T] | None = make
        self._made: Future[T] | None = Future()
        self._doubtful = False
        renew_in_children(self)
        self._thread = threading.Thread(target=self._run, args=(self._made,), name="fuseline-build")
        self._thread.start()

    def renew(self) -> None:
        """In a forked child: nobody is at work any more."""
        if self._make is not None:
            self._made = None

    def get(self) -> T:
        """The value, once it is there. After an error the next call makes it anew.

        Raises:
            Exception: what making it raised.
        """
        made = self._made
        if made is None:
            made = self._made = Future()
            self._run(made)
        try:
            value = made.result()
        except BaseException:
            if not made.done():  # the wait was interrupted, and so may be what it was for
                self._doubtful = True
                raise
            if self._made is made:
                self._made = None
            if not self._doubtful:
                raise
            self._doubtful = False
            return self.get()
        self._make = None  # it holds what was compiled
        return value

    def settle(self) -> None:
        """Wait until nobody is at work, unless that is the caller."""
        if self._made is not None and threading.current_thread() is not self._thread:
            wait([self._made])

    def _run(self, made: Future[T]) -> None:
        make = self._make
        assert make is not None, "it is made once"
        try:
            made.set_result(make())
        except BaseException as error:
            made.set_exception(error)
