"""What Triton keeps for a whole process: settings, the folder it writes to, and what it prints.

Several threads compile at once. The first one to come in points Triton at a folder of its own, the
last one to leave puts back what was there; meanwhile what Triton prints in any of them (a refused
kernel's PTX, thousands of lines) is caught, and what other threads print is not.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import io
import os
import sys
import tempfile
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any, TextIO, cast

from fuseline import errors
from fuseline.runtime.fork import renew_in_children

SETTINGS = {
    "compilation": (
        "override",
        "enable_asan",
        "disable_line_info",
        "dump_ir_extract_di_local_variables",
        "use_ir_loc",
        "instrumentation_mode",
    ),
    "language": ("fp32_default", "default_fp_fusion", "force_disable_fp_fusion"),
    "nvidia": ("disable_ptxas_opt", "ptxas_options", "mock_ptx_version", "libdevice_path"),
    "runtime": ("override_arch", "debug"),
}
"""Of Triton's knobs, those that change what it makes, set by a variable or by a program."""

DEFAULTS: dict[str, object] = {"default_fp_fusion": True}
"""Values that are as good as none; of other knobs those that are not true."""


def module(name: str) -> Any:
    """A module of Triton, which has no types, and takes a while to import."""
    return importlib.import_module(name)


def has_triton() -> bool:
    """Whether Triton is installed; importing it is left for later."""
    return importlib.util.find_spec("triton") is not None


def problem() -> errors.Code | None:
    """Why nothing can be built by Triton in this process; None where it can."""
    if not has_triton():
        return errors.NO_TRITON
    decorated = module("triton.language").sum
    interpreting = module("triton.knobs").runtime.interpret
    if interpreting or not isinstance(decorated, module("triton.runtime.jit").JITFunction):
        return errors.TRITON_INTERPRETS
    return None


def settings() -> dict[str, str]:
    """What is set that changes what Triton makes, for the key of a binary; empty in most processes.

    Triton's own list of variables, which has those that only its C++ parts read, and its knobs.
    """
    library = module("triton._C.libtriton")
    found = {str(n): str(v) for n, v in library.get_cache_invalidating_env_vars().items()}
    knobs = module("triton.knobs")
    for group, names in SETTINGS.items():
        for name in names:
            value = getattr(getattr(knobs, group), name, None)
            if value and value != DEFAULTS.get(name):
                found[f"{group}.{name}"] = str(value)
            elif name in DEFAULTS and value is False:
                found[f"{group}.{name}"] = "off"
    return {name: _portable(value) for name, value in found.items()}


def _portable(value: str) -> str:
    """A value that may stand in a key: of a path a digest, of the file's bytes where it is one."""
    if not value.startswith(os.sep):
        return value
    try:
        with Path(value).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return hashlib.sha256(value.encode()).hexdigest()


class _Ears:
    """Standard output, but for threads that are compiling: theirs is kept."""

    def __init__(self, before: TextIO) -> None:
        self.before = before
        self.heard: dict[int, io.StringIO] = {}

    def write(self, text: str, /) -> int:
        kept = self.heard.get(threading.get_ident())
        return self.before.write(text) if kept is None else kept.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.before, name)


class _Compiling:
    """The threads that compile now, and what was changed for them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.threads = 0
        self.ears: _Ears | None = None
        self.undo = contextlib.ExitStack()
        renew_in_children(self)

    def renew(self) -> None:
        """In a forked child: nobody is compiling there."""
        self.lock = threading.Lock()
        if self.threads:
            self.threads = 0
            self.undo.pop_all()

    def enter(self) -> io.StringIO:
        with self.lock:
            if not self.threads:
                self._begin()
            self.threads += 1
            assert self.ears is not None, "the first thread has put them on"
            return self.ears.heard.setdefault(threading.get_ident(), io.StringIO())

    def leave(self) -> None:
        with self.lock:
            assert self.ears is not None, "they are on until the last thread leaves"
            self.ears.heard.pop(threading.get_ident(), None)
            self.threads -= 1
            if not self.threads:
                self.undo.close()

    def _begin(self) -> None:
        knobs, undo = module("triton.knobs"), contextlib.ExitStack()
        with contextlib.ExitStack() as unless_done:
            unless_done.enter_context(undo)
            folder = undo.enter_context(
                tempfile.TemporaryDirectory(prefix="fuseline-triton-", ignore_cleanup_errors=True)
            )
            undo.enter_context(knobs.cache.scope())
            undo.enter_context(knobs.compilation.scope())
            knobs.cache.dir = folder
            knobs.compilation.always_compile = True
            undo.enter_context(_portable_places())
            self.ears = _Ears(sys.stdout)
            undo.enter_context(contextlib.redirect_stdout(cast("TextIO", self.ears)))
            unless_done.pop_all()
        self.undo = undo


@contextlib.contextmanager
def _portable_places() -> Generator[None]:
    """Have machine code say ``triton/language/standard.py`` of what is inlined from there: where
    this Triton is installed tells of the user, and nothing may depend on it.
    """
    home = Path(module("triton").__file__).parent.parent
    generator = module("triton.compiler.code_generator").CodeGenerator
    usual = generator.__init__

    def begin(self: object, *args: Any, file_name: str | None = None, **others: Any) -> None:
        if file_name is not None and Path(file_name).is_relative_to(home):
            file_name = Path(file_name).relative_to(home).as_posix()
        usual(self, *args, file_name=file_name, **others)

    generator.__init__ = begin
    try:
        yield
    finally:
        generator.__init__ = usual


_COMPILING = _Compiling()


@contextlib.contextmanager
def compiling() -> Generator[io.StringIO]:
    """Have Triton find nothing that was there before, and leave nothing behind; gives what it says.

    For the current thread; the settings are those of the process, for as long as any thread is in
    here.
    """
    said = _COMPILING.enter()
    try:
        yield said
    finally:
        _COMPILING.leave()


__all__ = ["compiling", "has_triton", "module", "problem", "settings"]
