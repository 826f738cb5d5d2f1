"""Passes of a user's own: a Python file that defines them, which registers them by their names."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from fuseline.errors import BAD_ARGUMENT


def add_load(parser: argparse.ArgumentParser) -> None:
    """``--load``."""
    parser.add_argument(
        "--load",
        metavar="FILE.py",
        action="append",
        default=[],
        help="run a Python file that defines passes of your own; may be repeated",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--load`` and ``-p``."""
    add_load(parser)
    parser.add_argument(
        "-p",
        "--pipeline",
        metavar="PASSES",
        help="the passes to run, as `canonicalize,fuse-pointwise{...}`, in the place of those that "
        "the file names, or the compiler has",
    )


def load(files: Sequence[str]) -> None:
    """Run files that define passes.

    Raises:
        UsageError: FL0103, for a file that is not there, or that raises.

    """
    for number, file in enumerate(files):
        path = Path(file)
        name = f"fuseline_user_passes_{number}_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise BAD_ARGUMENT.error("--load", found=file, expected="a file of Python")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            found = f"{file}, which raises {type(error).__name__}: {error}"
            raise BAD_ARGUMENT.error("--load", found=found) from error


__all__ = ["add_arguments", "add_load", "load"]
