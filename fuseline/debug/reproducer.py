"""Reproducers of internal errors: the IR before the stage that failed, and how to replay it.

python -m fuseline.debug.reproducer 03-fuse-qk-norm.fl --pass fuse-qk-norm
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from fuseline.debug.case import Case, versions
from fuseline.errors import InternalError
from fuseline.ir.core import IRError
from fuseline.ir.text import parse_func, print_func
from fuseline.passes.manager import PassManager
from fuseline.passes.rewrite import PASSES


def internal_error(
    stage: str,
    text: str,
    cause: Exception,
    folder: Path | None,
    *,
    pipeline: str = "",
    options: Mapping[str, str] | None = None,
) -> InternalError:
    """The error for a stage that failed on a func with this text, which is saved as a reproducer.

    Args:
        stage: the pass.
        text: the func before the stage.
        cause: what was raised.
        folder: where to save; a new temporary directory if None.
        pipeline: text of the pass; its name if empty.
        options: those of the compilation that were given.

    """
    path: Path | None = None
    message = f"{type(cause).__name__}: {cause}"
    try:
        root = folder or Path(tempfile.mkdtemp(prefix="fuseline-reproducer-"))
        root.mkdir(parents=True, exist_ok=True)
        path = root / f"before-{stage}.fl"
        path.write_text(_reproducer(text, pipeline or stage, f"{stage}: {message}", options or {}))
    except OSError:
        path = None  # the error itself matters more than the file
    command = None
    if path is not None:
        command = shlex.join(
            [Path(sys.executable).name, "-m", __name__, str(path), "--pass", stage]
        )
    return InternalError(message, stage=stage, reproducer=path, command=command)


def _reproducer(text: str, pipeline: str, failed: str, options: Mapping[str, str]) -> str:
    """The text of a file; that of the func alone, where it is no func that can be read."""
    try:
        func = parse_func(text)
    except IRError:
        return text
    return Case(func, pipeline, options, failed=failed, versions=versions()).to_text()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one pass on an IR file and print what it gives; the exception shows where it fails."""
    parser = argparse.ArgumentParser(description=__doc__, prog=f"python -m {__name__}")
    parser.add_argument("file", type=Path, help="IR text, such as a dump or a reproducer")
    parser.add_argument("--pass", dest="name", required=True, help="the pass to run")
    options = parser.parse_args(arguments)
    from fuseline.passes import pipeline  # registers the passes

    assert pipeline.default_pipeline, "importing the pipeline registers its passes"
    func = parse_func(options.file.read_text())
    if options.name not in PASSES:
        parser.error(f"no pass {options.name!r}; there are {', '.join(sorted(PASSES))}")
    PassManager([PASSES[options.name]()], check=True).run(func)
    sys.stdout.write(print_func(func))
    return 0


if __name__ == "__main__":
    sys.exit(main())
