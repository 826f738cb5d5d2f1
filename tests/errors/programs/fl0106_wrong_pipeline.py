from __future__ import annotations

from pathlib import Path

from fuseline.passes.pipeline_text import parse_pipeline


def program(tmp: Path) -> None:
    parse_pipeline("canonicalize,cse{most=8}")
