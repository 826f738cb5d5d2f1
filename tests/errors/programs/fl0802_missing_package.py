"""A GGUF file, where the package that reads it is not installed."""

import importlib.util
import struct
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import patch

from fuseline import Config
from fuseline.cli.models import load

FIND_SPEC = importlib.util.find_spec


def absent(name: str) -> ModuleSpec | None:
    return None if name == "gguf" else FIND_SPEC(name)


def program(tmp: Path) -> None:
    (tmp / "model.gguf").write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 1, 1))
    with patch.object(importlib.util, "find_spec", absent):
        load(str(tmp / "model.gguf"), Config())
