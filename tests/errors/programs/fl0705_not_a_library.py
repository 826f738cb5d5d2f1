"""What should be a shared object is none."""

from pathlib import Path

from fuseline.runtime.build import load_library


def program(tmp: Path) -> None:
    path = tmp / "piece.so"
    path.write_text("not ELF, and longer than an ELF header, so that the message is the same" * 9)
    load_library(path)
