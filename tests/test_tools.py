"""What builds native code here, and what a cache that was filled elsewhere can do in its place."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch

import fuseline
from fuseline.build import Tools
from fuseline.codegen.targets import TARGETS
from fuseline.config import Config
from fuseline.errors import BuildError, FuselineWarning
from fuseline.runtime import toolchain as module
from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu.kernels import Launcher
from fuseline.runtime.native import Runner
from fuseline.runtime.toolchain import find_toolchain


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the runner, the binding and the launcher."""
    root = tmp_path_factory.mktemp("filled")
    cache = Cache.open(root)
    toolchain = find_toolchain(cache)
    Runner.open(cache, toolchain)
    Launcher.build(cache, toolchain)
    return root


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a compiler."""
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)


def test_the_compiler_here_builds_everything(filled: Path) -> None:
    tools = Tools.find(Config(cache_dir=filled))
    assert tools.toolchain is not None
    assert tools.host == tools.toolchain
    assert not tools.missing


@pytest.mark.usefixtures("bare")
def test_a_filled_cache_serves_gpus_whatever_the_processor(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no CPU: kernels for that are built for one processor."""
    monkeypatch.setattr(module, "_processor", lambda: "another")
    tools = Tools.find(Config(cache_dir=filled))
    assert tools.toolchain is None
    assert tools.host is not None
    assert (tools.host.command, tools.host.cpu) == ((), ())
    tools.require(TARGETS["sm_90"], strict=True)
    with pytest.raises(BuildError, match="FL0701"):
        tools.require(TARGETS["cpu"], strict=True)


@pytest.mark.usefixtures("bare")
def test_a_cache_of_another_kind_of_machine_serves_nothing(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.platform, "machine", lambda: "riscv64")
    monkeypatch.setattr(module, "_processor", lambda: "another")
    tools = Tools.find(Config(cache_dir=filled))
    assert (tools.toolchain, tools.host) == (None, None)
    with pytest.raises(BuildError, match="FL0701"):
        tools.require(TARGETS["sm_90"], strict=True)


@pytest.mark.usefixtures("bare")
def test_a_cache_without_the_runner_serves_nothing(tmp_path: Path, filled: Path) -> None:
    """Also where its compiler was probed on this very processor."""
    cache = Cache.open(tmp_path / "probed")
    (probed,) = [e for e in Cache.open(filled).entries() if e.kind == "toolchain"]
    text = probed.file("probe.json").read_text()

    def write(folder: Path) -> None:
        (folder / "probe.json").write_text(text)

    cache.get_or_build("toolchain", probed.factors, write)
    tools = Tools.find(Config(cache_dir=tmp_path / "probed"))
    assert (tools.toolchain, tools.host) == (None, None)
    assert tools.missing == "no C++ compiler was found"


def test_building_for_a_gpu_leaves_the_launcher_in_the_cache(tmp_path: Path) -> None:
    """So that the cache can be taken to a machine with a GPU and no compiler."""
    pytest.importorskip("triton", reason="Triton is not installed")

    def double(x: torch.Tensor) -> torch.Tensor:
        return x + x

    compiled = fuseline.compile(double, target="sm_90", cache_dir=tmp_path)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FuselineWarning)
        compiled(torch.ones(4))
    names = {entry.name for entry in Cache.open(tmp_path).entries()}
    assert {"fl_gpu_launch", "fuseline_runner"} <= names
