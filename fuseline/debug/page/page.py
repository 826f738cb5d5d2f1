"""Pages: each is a file with all programs that a process compiled for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from fuseline.debug.case import versions
from fuseline.debug.files import refusal_of, replace_text
from fuseline.debug.page.data import PageView
from fuseline.debug.page.file import OwnFile
from fuseline.debug.page.program import Program
from fuseline.errors import INVALID_OPTION
from fuseline.runtime.fork import renew_in_children

MOST = 64
"""Programs of a page: each that comes has all of them written anew."""


class Page:
    """The programs of one page, and its file; safe to use from several threads.

    Args:
        path: of the file.
        alone: nobody else knows of the file, as in a folder that is new.

    """

    def __init__(self, path: Path, *, alone: bool = False) -> None:
        self._path = path
        self._file = None if alone else OwnFile(path)
        self.title = ""
        self.programs: list[Program] = []
        self.notes: list[str] = []
        self.sampling = False
        """Whether programs are to time their steps."""
        self._lock = threading.RLock()

    @contextmanager
    def samples(self) -> Generator[None]:
        """Have programs that are called meanwhile time their steps."""
        self.sampling = True
        try:
            yield
        finally:
            self.sampling = False

    @property
    def path(self) -> Path:
        """Where the page lies."""
        return self._file.path if self._file else self._path

    def has_room(self) -> bool:
        """Whether there may be one more program."""
        return len(self.programs) < MOST

    def close(self) -> None:
        """Let other processes have the file."""
        if self._file:
            self._file.close()

    def add(self, program: Program) -> None:
        """One more program, behind the others; what is known of it is shown when `write` is
        called.
        """
        with self._lock:
            self.programs.append(program)
            if not self.has_room():
                self.notes.append(f"this page is full: it has {MOST} programs, and takes no more")

    def note(self, text: str) -> bool:
        """Something that is to be said above all programs, once; False where it stands there."""
        with self._lock:
            new = text not in self.notes
            self.notes += [text] if new else []
            return new

    def view(self) -> PageView:
        """All of the page, as data."""
        with self._lock:
            names = dict.fromkeys(each.name for each in self.programs)
            return PageView(
                title=self.title or ", ".join(names) or self.path.name,
                versions=versions(),
                notes=tuple(self.notes),
                programs=tuple(each.view() for each in self.programs),
            )

    def write(self) -> None:
        """Have all that is known in the file.

        Raises:
            UsageError: FL0101, if it cannot be written.

        """
        from fuseline.debug.page.write import render

        with self._lock:
            text = render(self.view())
            try:
                if self._file:
                    self._file.write(text)
                else:
                    replace_text(self._path, text)
            except OSError as error:
                raise _unwritable(self.path, error.strerror or str(error)) from error


class _Pages:
    """The pages of this process, by path."""

    def __init__(self) -> None:
        self.known: dict[Path, Page] = {}
        self.lock = threading.Lock()
        renew_in_children(self)

    def renew(self) -> None:
        """In a forked child: the pages are its parent's."""
        for page in self.known.values():
            page.close()
        self.known, self.lock = {}, threading.Lock()


_PAGES = _Pages()


def page_at(path: Path) -> Page:
    """The page of this process with that path; what is compiled for one file is on one page."""
    place = Path(os.path.realpath(path))
    with _PAGES.lock:
        page = _PAGES.known.get(place)
        if page is None:
            page = _PAGES.known[place] = Page(path)
        return page


def check_place(path: Path) -> None:
    """Refuse a file that cannot be made.

    Raises:
        UsageError: FL0101.

    """
    refusal = refusal_of(path)
    if refusal:
        raise _unwritable(path, refusal)


def _unwritable(path: Path, why: str) -> Exception:
    return INVALID_OPTION.error(
        "html", found=f"{path} ({why})", expected="a file in a directory to write to"
    )


__all__ = ["Page", "check_place", "page_at"]
