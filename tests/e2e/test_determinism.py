"""The same model gives the same IR, sources, plans and keys, in any process and folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.families import FAMILIES

COMPILE = """
import importlib, json, sys, warnings
from hashlib import sha256
from pathlib import Path

folder, names, targets, before = Path(sys.argv[1]), *(a.split(",") for a in sys.argv[2:5])
for name in before:
    importlib.import_module(name)

import torch
import fuseline
from fuseline.runtime.cache import Cache
from tests.e2e.determined import model_of, inputs_of
from tests.e2e.families import tokens

warnings.simplefilter("ignore")


def compiled(name, **options):
    torch.compiler.reset()
    model, inputs = model_of(name), inputs_of(name)
    call = fuseline.compile(model, dynamic=True, cache_dir=folder / "cache", **options)
    with torch.no_grad():
        call(**inputs)


for name in names:
    for target in targets:
        compiled(name, target=target, dump_dir=folder / "dumps" / name / target)
    compiled(name)

found = {}
for path in sorted((folder / "dumps").rglob("*")):
    if path.is_file() and path.name != "index.html":  # which has times
        found[str(path.relative_to(folder))] = sha256(path.read_bytes()).hexdigest()
for entry in Cache.open(folder / "cache").entries():
    found[f"{entry.kind} {entry.key}"] = json.dumps(entry.factors, sort_keys=True)
    if entry.kind == "trace":
        graphs = json.loads(entry.file("graphs.json").read_text())
        found[f"graphs of {entry.key}"] = json.dumps(list(graphs.values()))  # torch names them anew
print(json.dumps(found))
"""


def determined(folder: Path, names: str, targets: str, *, seed: int, first: str) -> dict[str, str]:
    """What a process of its own writes down of some models: digests of files, and keys."""
    folder.mkdir(parents=True)
    environment = {
        **{n: v for n, v in os.environ.items() if not n.startswith("FUSELINE_")},
        "PYTHONPATH": os.pathsep.join(str(Path(p).absolute()) for p in sys.path if p),
        "PYTHONHASHSEED": str(seed),
        "OMP_NUM_THREADS": str(seed),
        "USER": f"user{seed}",
        "HOSTNAME": f"host{seed}",
        "TZ": f"UTC{seed}",
    }
    words = [sys.executable, "-c", COMPILE, str(folder), names, targets, first]
    done = subprocess.run(
        words, capture_output=True, text=True, env=environment, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def assert_same(one: dict[str, str], other: dict[str, str]) -> None:
    """What differs is told by name."""
    kinds = {name.split()[0] for name in one if " " in name}
    assert {"kernel", "piece", "trace"} <= kinds
    assert any(name.endswith(".fl") for name in one)
    assert sorted(one.keys() ^ other.keys()) == []
    assert [name for name in one if one[name] != other[name]] == []


def both(folder: Path, name: str, targets: str) -> list[dict[str, str]]:
    """The same of two processes that have as little as can be in common."""
    with ThreadPoolExecutor(2) as pool:
        made = [
            pool.submit(determined, folder / "a", name, targets, seed=1, first="json"),
            pool.submit(
                determined, folder / "b" / "longer", name, targets, seed=2, first="sqlite3"
            ),
        ]
        return [each.result() for each in made]


def test_processes_compile_the_same(tmp_path: Path) -> None:
    """Other hashes of strings, folders, caches, users, threads, and other imports before."""
    assert_same(*both(tmp_path, "norms", "cpu"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [*(f.model_type for f in FAMILIES), "deepseek_v3"])
def test_processes_compile_the_same_families(tmp_path: Path, name: str) -> None:
    """On CPUs, and for a GPU."""
    pytest.importorskip("triton", reason="compiling for GPUs needs Triton")
    assert_same(*both(tmp_path, name, "cpu,sm_90"))
