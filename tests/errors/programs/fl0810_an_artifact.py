"""A command that needs a model is given an artifact."""

import zipfile
from pathlib import Path

from fuseline import Config
from fuseline.cli.models import load


def program(tmp: Path) -> None:
    with zipfile.ZipFile(tmp / "model.bin", "w") as archive:
        archive.writestr("manifest.json", "{}")
    load(str(tmp / "model.bin"), Config())
