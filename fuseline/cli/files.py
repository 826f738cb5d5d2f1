"""What kind of file a model is, by what it holds, and else by its name; and who takes which kind.
A program of torch.export is one by its name alone.

Nothing is imported here but the standard library: commands on ``.fuse`` files need no torch for
this.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from fuseline.errors import OTHER_FILE

Kind: TypeAlias = Literal["gguf", "onnx", "pt2", "fuse"]

TITLES: dict[Kind, str] = {
    "gguf": "a GGUF file",
    "onnx": "an ONNX model",
    "pt2": "a program of torch.export",
    "fuse": "a file of fuseline export",
}

COMMANDS: dict[Kind, str] = {
    "gguf": "run, explain, generate and export",
    "onnx": "run, explain and export",
    "pt2": "run, explain and export",
    "fuse": "run, generate and inspect",
}
"""The commands that take each kind."""

_VERSION, _LATEST = 0x08, 0x20
_NEXT = frozenset({0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72})
"""How the message ModelProto starts: the field ir_version, a small number, and another field."""


def kind_of(path: Path) -> Kind | None:
    """The kind of a file; None for one of no kind that is known, and what is no file."""
    suffix = path.suffix.removeprefix(".").lower()
    if suffix == "pt2":  # reading one can run any code: nothing else is ever taken for one
        return "pt2"
    found = _by_content(path)
    return found or next((kind for kind in get_args(Kind) if kind == suffix), None)


def _by_content(path: Path) -> Kind | None:
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError:
        return None
    if head == b"GGUF":
        return "gguf"
    if head == b"PK\3\4":
        return _of_zip(path)
    is_onnx = len(head) > 2 and head[0] == _VERSION and head[1] < _LATEST and head[2] in _NEXT
    return "onnx" if is_onnx else None


def _of_zip(path: Path) -> Kind | None:
    """Whether a zip is a file of ours."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return None
    return "fuse" if "manifest.json" in names else None


def refusal(path: str, kind: Kind) -> Exception:
    """The diagnostic for a file of a kind that a command does not take."""
    hint = f"{COMMANDS[kind]} take it"
    return OTHER_FILE.error(path, found=TITLES[kind], hint=hint)


__all__ = ["COMMANDS", "TITLES", "Kind", "kind_of", "refusal"]
