"""A program that ``torch.export.save`` has written."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from fuseline._torch import refusals_to
from fuseline.cli.compiling import logger
from fuseline.cli.huggingface import first_line
from fuseline.cli.models import LoadedModel
from fuseline.errors import NOT_A_PROGRAM


def load(path: Path) -> LoadedModel:
    """The program, with the inputs that it was captured for, if the file has them.

    The file is read by torch, which unpickles parts of it: it can run any code.

    Raises:
        LoadError: FL0811, for a file that torch does not read.
    """
    if not zipfile.is_zipfile(path):
        raise NOT_A_PROGRAM.error(
            str(path), found="no archive", expected="one of torch.export.save"
        )
    said: list[str] = []
    try:
        with warnings.catch_warnings(), refusals_to(logger) as said:
            warnings.simplefilter("ignore")  # of torch, about how it reads its own files
            program: Any = torch.export.load(path)
            model = program.module()
    except Exception as error:  # whatever torch trips over in somebody's file
        found = said[-1].splitlines()[0][:200] if said else first_line(error)
        raise NOT_A_PROGRAM.error(str(path), found=found) from error
    # Copying the module for the float64 oracle, torch warns of its own code.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec", category=FutureWarning)
    if program.example_inputs is None:
        return LoadedModel(str(path), model, whole=program)
    args, kwargs = program.example_inputs
    return LoadedModel(str(path), model, tuple(args), dict(kwargs), whole=program)


__all__ = ["load"]
