"""Work in a thread of its own while the caller goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from fuseline.runtime.fork import renew_in_children

T = TypeVar("T")


class Later(Generic[T]):
    """A value that is being made; a forked child, which has no such thread, makes it itself."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make: Callable[[], T] | None = make
        self._made: Future[T] | None = Future()
        renew_in_children(self)
        threading.Thread(target=self._run, args=(self._made,), name="fuseline-build").start()

    def renew(self) -> None:
        """In a forked child: nobody is at work any more."""
        if self._make is not None:
            self._made = None

    def get(self) -> T:
        """The value, once it is there.

        Raises:
            Exception: what making it raised, at every call.
        """
        if self._made is None:
            self._made = Future()
            self._run(self._made)
        return self._made.result()

    def settle(self) -> bool:
        """Wait until making it has ended; whether there is a value."""
        try:
            self.get()
        except Exception:
            return False
        return True

    def _run(self, made: Future[T]) -> None:
        assert self._make is not None, "it is made once"
        try:
            made.set_result(self._make())
        except BaseException as error:
            made.set_exception(error)
        self._make = None  # it holds what was compiled
