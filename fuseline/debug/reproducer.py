"""Reproducers of internal errors: the IR before the pass that failed, and how to replay it.

fuseline opt -p fuse-qk-norm before-fuse-qk-norm.fl --verify-each
"""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

from fuseline.errors import InternalError
from fuseline.ir.core import Func
from fuseline.ir.text import print_func
from fuseline.passes.manager import PassManager
from fuseline.passes.rewrite import Pass


def pass_failure(
    manager: PassManager, again: Func, cause: Exception, folder: Path | None
) -> InternalError:
    """The error for a pass that raised while a manager ran it.

    Args:
        manager: whose run ended with the exception.
        again: the func as it was before all passes; those before the one that failed are run on
            it, as that one may have begun to edit the other.
        cause: what was raised.
        folder: where to save; a new temporary directory if None.

    """
    passes = manager.passes
    done = next((i for i, each in enumerate(passes) if each is manager.current), len(passes) - 1)
    PassManager(passes[:done], limit=manager.limit).run(again)
    return internal_error(passes[done], print_func(again, locations=True), cause, folder)


def internal_error(stage: Pass, text: str, cause: Exception, folder: Path | None) -> InternalError:
    """The error for a pass that failed on a func with this text, which is saved.

    Args:
        stage: the pass.
        text: the func before the stage.
        cause: what was raised.
        folder: where to save; a new temporary directory if None.

    """
    path: Path | None = None
    try:
        root = folder or Path(tempfile.mkdtemp(prefix="fuseline-reproducer-"))
        root.mkdir(parents=True, exist_ok=True)
        path = root / f"before-{stage.name}.fl"
        path.write_text(text)
    except OSError:
        path = None  # the error itself matters more than the file
    command = None
    if path is not None:
        command = shlex.join(["fuseline", "opt", "-p", str(stage), str(path), "--verify-each"])
    message = f"{type(cause).__name__}: {cause}"
    return InternalError(message, stage=stage.name, reproducer=path, command=command)
