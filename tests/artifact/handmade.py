"""An artifact that is written by hand: all that a manifest has, and no code that runs."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from fuseline.artifact.archive import Member, Writer
from fuseline.artifact.machine import machine
from fuseline.artifact.manifest import MANIFEST, SCHEMA, Manifest, Native, Target, Weights
from fuseline.artifact.program import PlanFile, ProgramFile
from fuseline.artifact.trees import Tree

RUNNER, WEIGHTS, PROGRAM, FUNC = "runner.so", "weights.safetensors", "main.json", "main.ir"


def write(
    path: Path,
    *,
    kind: str | None = None,
    runner: bytes = b"code",
    stored: bytes | None = None,
    **changes: Any,
) -> Path:
    """Write one for this machine, or another one.

    Args:
        path: of the file.
        kind: of machine.
        runner: what is in the place of the runner, whose digest the manifest has for ``b"code"``.
        stored: the file of weights; one without any, by default.
        changes: of the manifest.

    """
    kind = kind or machine()
    parts = {
        FUNC: b"func",
        PROGRAM: _no_program(),
        RUNNER: b"code",
        WEIGHTS: stored or _no_weights(),
    }
    with path.open("wb") as file:
        writer = Writer(file)
        for name, data in parts.items():
            writer.add_bytes(name, data)
        writer.end()
        known: dict[str, Member] = dict(writer.members)
    main = {"main": PROGRAM}
    target = Target("cpu", "baseline", kind, (), main, {"main": FUNC}, {}, {}, {})
    about: dict[str, Any] = dict.fromkeys(each.name for each in fields(Manifest))
    about |= {
        "schema": SCHEMA,
        "fuseline": "0.1.0",
        "made_with": {},
        "options": (),
        "model": "handmade",
        "licence": "",
        "programs": ("main",),
        "targets": (target,),
        "native": (Native(kind, RUNNER, None, {}),),
        "weights": Weights(WEIGHTS, None, {}),
        "members": known,
    }
    with path.open("wb") as file:
        writer = Writer(file)
        for name, data in {**parts, RUNNER: runner}.items():
            writer.add_bytes(name, data)
        writer.add_bytes(MANIFEST, Manifest(**{**about, **changes}).to_bytes())
        writer.end()
    return path


def _no_program() -> bytes:
    """One that takes nothing, does nothing and gives nothing."""
    plan = PlanFile((), (), (), (), {}, {}, (), {}, {}, (), {})
    takes = Tree("tuple", (), (Tree("tuple"), Tree("dict")))
    file = ProgramFile(plan, (), takes, Tree("tuple"), (), {}, (), (), {}, (), (), ())
    return json.dumps(file.to_json()).encode()


def _no_weights() -> bytes:
    head = b"{}" + b" " * 54
    return len(head).to_bytes(8, "little") + head
