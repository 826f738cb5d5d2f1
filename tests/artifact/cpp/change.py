"""Artifacts that were changed after they were written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fuseline.artifact.archive import Archive, Writer


def changed(path: Path, to: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """An artifact with other members; what the manifest says of them stays."""
    archive = Archive.open(path)
    members = {name: bytes(archive.data(name)) for name in archive.names}
    change(members)
    with to.open("w+b") as file:
        writer = Writer(file)
        for name, data in members.items():
            writer.add_bytes(name, data, align=4096)
        writer.end()
    return to


def with_manifest(change: Callable[[Any], None]) -> Callable[[dict[str, bytes]], None]:
    def apply(members: dict[str, bytes]) -> None:
        manifest = json.loads(members["manifest.json"])
        change(manifest)
        members["manifest.json"] = json.dumps(manifest).encode()

    return apply


def spoil(ending: str) -> Callable[[dict[str, bytes]], None]:
    def apply(members: dict[str, bytes]) -> None:
        (name,) = (n for n in members if n.endswith(ending))
        members[name] = members[name][:-1] + bytes([members[name][-1] ^ 1])

    return apply


def mutated(members: dict[str, bytes], random: np.random.Generator) -> None:
    """Change one value of a program or of the manifest."""
    names = [n for n in members if n.endswith(".json")]
    name = names[random.integers(0, len(names))]
    value = json.loads(members[name])
    _change(value, random)
    members[name] = json.dumps(value).encode()
    if name == "manifest.json":
        return
    manifest = json.loads(members["manifest.json"])
    digest = hashlib.sha256(members[name]).hexdigest()
    manifest["members"][name] |= {"sha256": digest, "size": len(members[name])}
    members["manifest.json"] = json.dumps(manifest).encode()


ODD: list[Any] = [
    *(None, True, -1, 0, 2**31, 2**63 - 1, -(2**63), 1.5, "", "x" * 300, "../../etc", [], {}, [[]]),
    *("9**8**8", "(" * 3000, "1//0", "s0*s1", "Max(1,", "num_workers"),
]


def _change(value: Any, random: np.random.Generator) -> None:
    keys: list[Any] = [*value.keys()] if hasattr(value, "keys") else [*range(len(value))]
    key = keys[random.integers(0, len(keys))]
    inner: Any = value[key]
    if isinstance(inner, dict | list) and inner and random.integers(0, 8):
        _change(inner, random)
    elif random.integers(0, 4):
        value[key] = ODD[random.integers(0, len(ODD))]
    else:
        del value[key]
