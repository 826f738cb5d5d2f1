"""Caches with a few entries, and files of them that are taken apart and put together again."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from fuseline.runtime.cache import Cache, Entry, Factors
from fuseline.runtime.cache.exporting import export_to
from fuseline.runtime.cache.plain_zip import Writer

Parts: TypeAlias = list[tuple[str, bytes]]

CONTENTS: dict[str, tuple[str, Factors, dict[str, bytes]]] = {
    "gemv": (
        "kernel",
        {"name": "gemv", "cpu": ["-mavx2"]},
        {"kernel.o": b"code" * 70, "k.cpp": b""},
    ),
    "norm": ("cubin", {"name": "norm", "target": "sm_90"}, {"kernel.cubin": b"\x7fELF\0" * 31}),
    "other": ("cubin", {"name": "norm", "target": "sm_80"}, {"kernel.cubin": b"\x7fELF\1" * 29}),
}
MUCH = 1 << 30


def put(root: Path, kind: str, factors: Factors, files: dict[str, bytes]) -> Entry:
    def build(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).write_bytes(content)

    return Cache.open(root).get_or_build(kind, factors, build)


def fill(root: Path) -> dict[str, Entry]:
    """A cache with one entry for each of `CONTENTS`."""
    return {name: put(root, *content) for name, content in CONTENTS.items()}


def exported(root: Path, path: Path) -> Path:
    """A file with all that a cache holds."""
    export_to(path, Cache.open(root).entries())
    return path


def parts_of(path: Path) -> Parts:
    """The members of a file, by the standard library."""
    with zipfile.ZipFile(path) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def together(parts: Iterable[tuple[str, bytes]]) -> bytes:
    """A file with these members, laid out as ours are, whatever is in them."""
    file = io.BytesIO()
    writer = Writer(file)
    for name, content in sorted(dict(parts).items()):
        writer.add(name, len(content), iter([content]))
    writer.close()
    return file.getvalue()


def tree(folder: Path) -> dict[str, bytes | None]:
    """All below a folder: the contents of files, None for the rest."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
