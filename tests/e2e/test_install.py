"""The wheel, installed where nothing can be written: it works, and importing it writes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import torch, fuseline
from torch import nn

assert fuseline.__file__.startswith({site!r}), fuseline.__file__
model = nn.Sequential(nn.RMSNorm(33), nn.Linear(33, 7)).eval()
compiled = fuseline.compile(model)
x = torch.randn(5, 33, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    torch.testing.assert_close(compiled(x), model(x))
kernels = compiled.report().kernels
assert kernels and all(k.status == "native" for k in kernels), kernels
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the installed wheel and nothing else, which cannot be written."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("fuseline-*.whl")
    path = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(path)
    for item in (path, *path.rglob("*")):
        item.chmod(0o555 if item.is_dir() else 0o444)
    yield path
    for item in (path, *path.rglob("*")):
        item.chmod(0o755)


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder, with its size and time: root may write where nobody can."""
    stats = {str(p.relative_to(folder)): p.stat() for p in sorted(folder.rglob("*"))}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def run(code: str, site: Path, home: Path) -> None:
    """Run code with the installed package, in a home of its own."""
    environment = {name: v for name, v in os.environ.items() if not name.startswith("FUSELINE_")}
    environment |= {
        "PYTHONPATH": str(site),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "TMPDIR": str(home),
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=home, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_wheel_holds_templates_and_native_sources(site: Path) -> None:
    tree = {str(path.relative_to(ROOT)) for path in (ROOT / "fuseline").rglob("*")}
    wanted = {name for name in tree if name.endswith((".jinja", ".cpp", ".h", ".py", ".typed"))}
    assert wanted <= {str(path.relative_to(site)) for path in site.rglob("*")}
    assert "fuseline/py.typed" in wanted
    assert any(name.endswith(".cpp.jinja") for name in wanted)


def test_importing_writes_nothing_and_needs_no_torch(site: Path, tmp_path: Path) -> None:
    before = state_of(site)
    run("import sys, fuseline, fuseline.cli; assert 'torch' not in sys.modules", site, tmp_path)
    run("import fuseline; fuseline.compile, fuseline.Config()", site, tmp_path)
    assert state_of(site) == before
    assert list(tmp_path.rglob("*")) == []


def test_it_compiles_from_a_folder_that_cannot_be_written(site: Path, tmp_path: Path) -> None:
    before = state_of(site)
    run(PROGRAM.format(site=str(site)), site, tmp_path)
    assert state_of(site) == before
    assert (tmp_path / "cache" / "fuseline").is_dir()
