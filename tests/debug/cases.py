"""What the tests of bisecting and reducing share: the planted passes, and the commands' answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fuseline.cli import main

PLANTED = Path(__file__).parent / "planted"
LOAD = ("--load", str(PLANTED / "planted_passes.py"))
CLEAN = "canonicalize,cse,dce"
PIPELINES = {
    "eps": f"{CLEAN},merge-linears,planted-add-norm,fuse-linear-add",
    "order": f"{CLEAN},planted-merge,fuse-add-rms-norm,fuse-linear-add",
    "together": f"{CLEAN},merge-linears,fuse-add-rms-norm,planted-linear-add",
}
GOOD = f"{CLEAN},merge-linears,fuse-add-rms-norm,fuse-linear-add"


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    """The exit code of a command, and its answer as a program reads it."""
    capsys.readouterr()
    code = main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)
