"""What torch does beside tracing and serves no purpose of ours, left out."""

from __future__ import annotations

import gc
import importlib
import logging
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any, cast


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
    with _demoted(log, "torch._subclasses.fake_tensor", []):
        yield


_REFUSING = (
    "torch._subclasses.fake_tensor",
    "torch.fx.experimental.symbolic_shapes",
    "torch.export",
    "torch.export._trace",
    "torch._export.non_strict_utils",
    "torch._export.serde.serialize",
)
"""The loggers of what ``torch.export`` says beside the error that it raises."""

_PRINTING = ("torch.export._trace", "torch.fx.graph_module")
"""The modules that print before they raise: the graph so far, the line of a graph that failed."""


@contextmanager
def refusals_to(log: logging.Logger) -> Generator[list[str]]:
    """Make debug records of `log` from what ``torch.export`` logs and prints of programs and files
    that it refuses: it raises an error as well. What the program itself prints is printed.

    Gives the list of what is logged: of files the error only says that something was.
    """
    said: list[str] = []

    def note(*parts: object, **how: object) -> None:
        del how
        log.debug("torch: %s", " ".join(map(str, parts)))

    modules = [importlib.import_module(name) for name in _PRINTING]
    with ExitStack() as stack:
        for name in _REFUSING:
            stack.enter_context(_demoted(log, name, said))
        for module in modules:
            vars(module)["print"] = note  # in the place of the builtin
            stack.callback(vars(module).pop, "print", None)
        yield said


@contextmanager
def _demoted(log: logging.Logger, name: str, said: list[str]) -> Generator[None]:
    theirs = logging.getLogger(name)

    def demote(record: logging.LogRecord) -> bool:
        cause = record.exc_info[1] if record.exc_info else None
        said.append(record.getMessage() if cause is None else f"{type(cause).__name__}: {cause}")
        log.debug("torch: %s", record.getMessage(), exc_info=record.exc_info)
        return False

    theirs.addFilter(demote)
    try:
        yield
    finally:
        theirs.removeFilter(demote)
