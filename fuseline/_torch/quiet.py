"""What torch does beside tracing and serves no purpose of ours, left out."""

from __future__ import annotations

import gc
import importlib
import inspect
import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, TextIO, cast


@contextmanager
def hurry() -> Generator[None]:
    """Leave out of a compilation what takes long and serves no purpose of ours.

    Tracing makes millions of objects and hardly any cycles: collecting garbage meanwhile takes a
    sixth of the time. And Dynamo tokenises each source file that it meets, to name functions in a
    log that is off.
    """
    tracing = importlib.import_module("torch._dynamo.symbolic_convert")
    names = getattr(tracing, "get_funcname", None)
    calls = getattr(importlib.import_module("torch._dynamo.output_graph"), "trace_call_log", None)
    logged = calls is None or calls.isEnabledFor(logging.DEBUG)
    collecting = gc.isenabled()
    gc.disable()
    if names is not None and not logged:
        cast("Any", tracing).get_funcname = _no_name
    try:
        yield
    finally:
        if names is not None:
            cast("Any", tracing).get_funcname = names
        if collecting:
            gc.enable()


def _no_name(filename: str, line: int) -> None:
    """The name of no function."""


@contextmanager
def tracing_errors_to(log: logging.Logger) -> Generator[None]:
    """Make debug records of `log` from the errors that torch logs of ops that refuse their inputs.

    Torch raises the same error, so whoever reports that would have it said twice, once with the
    traceback of torch's insides.
    """
    theirs = logging.getLogger("torch._subclasses.fake_tensor")

    def demote(record: logging.LogRecord) -> bool:
        log.debug("torch: %s", record.getMessage(), exc_info=record.exc_info)
        return False

    theirs.addFilter(demote)
    try:
        yield
    finally:
        theirs.removeFilter(demote)


@contextmanager
def export_errors_to(log: logging.Logger) -> Generator[None]:
    """Make debug records of `log` from what torch's export says of programs that it cannot trace.

    It logs warnings and errors, and prints the graph so far on standard error, before it raises the
    error that says the same. What the model prints itself is not touched.
    """
    every = logging.root.manager.loggerDict.items()
    theirs = [logger for name, logger in every if name.partition(".")[0] == "torch"]
    handlers = [h for logger in theirs for h in getattr(logger, "handlers", ())]
    told = _Demoted(log)
    for handler in handlers:
        handler.addFilter(told)
    before, sys.stderr = sys.stderr, cast("TextIO", _Stderr(sys.stderr, log))
    try:
        yield
    finally:
        sys.stderr = before
        for handler in handlers:
            handler.removeFilter(told)


class _Demoted(logging.Filter):
    """Takes warnings and errors out of what a handler shows."""

    def __init__(self, log: logging.Logger) -> None:
        super().__init__()
        self._log = log

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the handler shows a record: what is of a lower level was asked for."""
        if record.levelno < logging.WARNING:
            return True
        self._log.debug("torch: %s", record.getMessage(), exc_info=record.exc_info)
        return False


class _Stderr:
    """Standard error, without what one module of torch prints there."""

    def __init__(self, real: TextIO, log: logging.Logger) -> None:
        self._real = real
        self._log = log

    def write(self, text: str) -> int:
        """Write a text, or log it."""
        caller = inspect.currentframe()
        caller = None if caller is None else caller.f_back
        if caller is None or caller.f_globals.get("__name__") != "torch.export._trace":
            return self._real.write(text)
        if text.strip():
            self._log.debug("torch: %s", text.strip())
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
