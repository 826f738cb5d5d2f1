"""Reproducers of internal errors: the IR before the stage that failed, and how to replay it.

python -m fuseline.debug.reproducer 03-fuse-qk-norm.fl --pass fuse-qk-norm
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fuseline.errors import InternalError
from fuseline.ir.text import parse_func, print_func
from fuseline.passes.manager import PassManager
from fuseline.passes.rewrite import PASSES


def internal_error(stage: str, text: str, cause: Exception, folder: Path | None) -> InternalError:
    """The error for a stage that failed on a func with this text, which is saved.

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
        path = root / f"before-{stage}.fl"
        path.write_text(text)
    except OSError:
        path = None  # the error itself matters more than the file
    command = None
    if path is not None:
        command = shlex.join(
            [Path(sys.executable).name, "-m", __name__, str(path), "--pass", stage]
        )
    message = f"{type(cause).__name__}: {cause}"
    return InternalError(message, stage=stage, reproducer=path, command=command)


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
