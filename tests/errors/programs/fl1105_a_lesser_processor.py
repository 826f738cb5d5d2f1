"""Code for a processor that has more than the one at hand."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import fuseline
from fuseline.artifact import machine
from fuseline.artifact.archive import Archive
from fuseline.artifact.manifest import Manifest
from tests.artifact import handmade


def program(tmp: Path) -> None:
    path = handmade.write(tmp / "model.fuse", kind="x86_64 linux")
    (target,) = Manifest.of(Archive.open(path)).targets
    needs = replace(target, isa="native", features=("amx_bf16", "avx512f"))
    handmade.write(path, kind="x86_64 linux", targets=(needs,))
    here = patch.object(machine, "machine", lambda: "x86_64 linux")
    has = patch.object(machine, "features", lambda: frozenset({"avx2", "fma", "sse2"}))
    with here, has:
        fuseline.load(path, device="cpu")
