"""The entries are to be written to a folder that is not there."""

from pathlib import Path

from fuseline.runtime.cache.exporting import export_to


def program(tmp: Path) -> None:
    export_to(tmp / "absent" / "kernels.zip", [])
