"""A file for another kind of machine."""

from pathlib import Path
from unittest.mock import patch

import fuseline
from fuseline.artifact import machine
from tests.artifact import handmade


def program(tmp: Path) -> None:
    handmade.write(tmp / "model.fuse", kind="riscv64 linux")
    here = patch.object(machine, "machine", lambda: "x86_64 linux")
    has = patch.object(machine, "features", lambda: frozenset({"avx2", "fma", "sse2"}))
    with here, has:
        fuseline.load(tmp / "model.fuse", device="cpu")
