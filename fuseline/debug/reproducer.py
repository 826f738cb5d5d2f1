"""Reproducers of passes that fail: the IR before the pass, and how to replay it.

fuseline opt -p fuse-qk-norm before-fuse-qk-norm.fl --verify-each
"""

from __future__ import annotations

import inspect
import shlex
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from fuseline.debug.case import Case, versions
from fuseline.debug.files import replace_text
from fuseline.errors import OWN_PASS, FuselineError, InternalError
from fuseline.ir.core import Func, IRError
from fuseline.ir.text import parse_func, print_func
from fuseline.passes.manager import PassManager
from fuseline.passes.rewrite import Pass, Rewrite


def pass_failure(
    manager: PassManager,
    again: Func,
    cause: Exception,
    folder: Path | None,
    options: Mapping[str, str] | None = None,
    words: Sequence[str] = (),
) -> InternalError | FuselineError:
    """The error for a pass that raised while a manager ran it: a bug of ours, or for a pass of
    somebody else FL0402, with the line that raised.

    Args:
        manager: whose run ended with the exception.
        again: the func as it was before all passes; those before the one that failed are run on
            it, as that one may have begun to edit the other.
        cause: what was raised.
        folder: where to save; a new temporary directory if None.
        options: those of the compilation that were given.
        words: what the command that replays it needs beside the pass, such as ``--load``.

    """
    passes, gate = manager.passes, manager.gate
    done = next((i for i, each in enumerate(passes) if each is manager.current), len(passes) - 1)
    earlier = PassManager(passes[:done], limit=gate.limit, skip=gate.skip, only=gate.only)
    applied = len(earlier.run(again).applied)
    text = print_func(again, locations=True)
    limit = () if gate.limit is None else ("--fuse-limit", str(max(0, gate.limit - applied)))
    failure = internal_error(passes[done], text, cause, folder, options, (*limit, *words))
    own = type(passes[done])
    return failure if _is_ours(own.__module__) else _of_another(own, failure, cause)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == __name__.partition(".")[0]


def _of_another(own: type[Pass], failure: InternalError, cause: Exception) -> FuselineError:
    """The error for a pass that is no part of fuseline, which raised or left invalid IR."""
    return OWN_PASS.error(
        own.name,
        where=_place(own, cause),
        found=failure.args[0],
        hint=f"replay it by {failure.command}" if failure.command else None,
    )


def _place(own: type[Pass], cause: Exception) -> str | None:
    """The line of a pass's file that raised; where none did, that on which its work is defined."""
    file = inspect.getsourcefile(own)
    frames = traceback.extract_tb(cause.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file and frame.lineno]
    if file and lines:
        return f"{Path(file).name}:{lines[-1]}"
    work = inspect.unwrap(getattr(own, "rewrite" if issubclass(own, Rewrite) else "run"))
    code = getattr(work, "__code__", None)
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}" if code else None


def internal_error(
    stage: Pass,
    text: str,
    cause: Exception,
    folder: Path | None,
    options: Mapping[str, str] | None = None,
    words: Sequence[str] = (),
) -> InternalError:
    """The error for a pass that failed on a func with this text, which is saved as a reproducer.

    Args:
        stage: the pass.
        text: the func before the stage.
        cause: what was raised.
        folder: where to save; a new temporary directory if None.
        options: those of the compilation that were given.
        words: what the command that replays it needs beside the pass.

    """
    path: Path | None = None
    message = f"{type(cause).__name__}: {cause}"
    try:
        root = folder or Path(tempfile.mkdtemp(prefix="fuseline-reproducer-"))
        root.mkdir(parents=True, exist_ok=True)
        path = root / f"before-{stage.name}.fl"
        replace_text(path, _reproducer(text, stage, message, options or {}))
    except OSError:
        path = None  # the error itself matters more than the file
    command = None
    if path is not None:
        own = ["fuseline", "opt", "-p", str(stage), str(path), "--verify-each"]
        command = shlex.join([*own, *words])
    return InternalError(message, stage=stage.name, reproducer=path, command=command)


def _reproducer(text: str, stage: Pass, message: str, options: Mapping[str, str]) -> str:
    """The text of a file; that of the func alone, where it is no func that can be read."""
    try:
        func = parse_func(text)
    except IRError:
        return text
    failed = f"{stage.name}: {message}"
    return Case(func, str(stage), options, failed=failed, versions=versions()).to_text()
