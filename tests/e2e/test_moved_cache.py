"""What was built here serves where there is no compiler: imported from a file, or as a base."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fuseline.cli import main
from fuseline.runtime.cache import Cache

ROOT = Path(__file__).parents[2]

COMPILE = """
import json, shutil, sys, torch, fuseline
from torch import nn
from fuseline.frontend.wrap import program_of

torch.set_num_threads(1)
torch.manual_seed(3)
model = nn.Sequential(nn.RMSNorm(20), nn.Linear(20, 28), nn.SiLU(), nn.Linear(28, 20)).eval()
compiled = fuseline.compile(model, dynamic=True)
x = torch.linspace(-1, 1, 3 * 20).view(3, 20)
with torch.no_grad():
    torch.testing.assert_close(compiled(x), model(x))
tools = program_of(compiled).engine.compiler.tools
print(json.dumps({
    "built": tools.cache.stats.built,
    "hits": tools.cache.stats.hits,
    "compiler": any(map(shutil.which, ("c++", "g++", "clang++", "cc", "gcc"))),
    "native": [kernel.status == "native" for kernel in compiled.report().kernels],
}))
"""


def compiled(cache: Path, **environment: str) -> Any:
    """What a fresh process says that compiles the model with this cache."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith("FUSELINE_") and n != "CXX"}
    kept |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:fuseline", "-c", COMPILE],
        env={**kept, "FUSELINE_CACHE_DIR": str(cache), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "FL0" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that was filled by a process with a compiler."""
    root = tmp_path_factory.mktemp("filled") / "cache"
    said = compiled(root)
    assert said["built"] > 0
    assert said["native"]
    assert all(said["native"])
    return root


def serves(said: Any) -> None:
    assert not said["compiler"]
    assert (said["built"], said["hits"] > 0) == (0, True)
    assert said["native"]
    assert all(said["native"])


def test_an_imported_cache_serves_without_a_compiler(filled: Path, tmp_path: Path) -> None:
    file, root = tmp_path / "cache.zip", tmp_path / "elsewhere"
    assert main(["cache", "export", str(file), "--set", f"cache-dir={filled}"]) == 0
    assert main(["cache", "import", str(file), "--set", f"cache-dir={root}"]) == 0
    serves(compiled(root, PATH=""))
    assert {e.key for e in Cache.open(root).entries()} == {
        e.key for e in Cache.open(filled).entries()
    }


def test_a_base_below_an_empty_cache_serves_without_a_compiler(
    filled: Path, tmp_path: Path
) -> None:
    """And neither is written to."""
    items = [filled, *filled.rglob("*")]
    for item in items:
        item.chmod(0o500 if item.is_dir() else 0o400)
    before = {str(item): item.stat().st_mtime_ns for item in items}
    try:
        serves(compiled(tmp_path / "own", PATH="", FUSELINE_CACHE_BASE=str(filled)))
        assert {str(item): item.stat().st_mtime_ns for item in items} == before
        assert sorted(filled.rglob("*")) == sorted(items[1:])
        assert not (tmp_path / "own").exists()
    finally:
        for item in items:
            item.chmod(0o700)


@pytest.mark.slow
def test_an_empty_cache_serves_nothing_without_a_compiler(tmp_path: Path) -> None:
    """Which shows that the two tests above tell something."""
    (tmp_path / "own").mkdir(mode=0o700)
    with pytest.raises(AssertionError, match="FL0701"):
        compiled(tmp_path / "own", PATH="")
