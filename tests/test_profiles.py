"""What a profile shows of a compiled model, and what the head of a kernel's source tells."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import fuseline
from fuseline.header import kind_of, without_head


class Block(nn.Module):
    """A residual block whose branch is one norm and two products."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(24)
        self.up, self.down = nn.Linear(24, 40), nn.Linear(40, 24)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Net(nn.Module):
    """Blocks one behind the other."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return torch.cumsum(x, 0).sort(dim=-1).values


def rows() -> Tensor:
    return torch.randn(5, 24, generator=torch.Generator().manual_seed(0))


def profiled(compiled: Any, *args: Tensor) -> tuple[Any, profile]:
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        found = compiled(*args)
    return found, profiler


def test_a_profile_shows_each_step_by_its_op_and_place(tmp_path: Path) -> None:
    compiled, x = fuseline.compile(Net(2)), rows()
    with torch.no_grad():
        want = compiled(x)
    found, profiler = profiled(compiled, x)
    torch.testing.assert_close(found, want, rtol=0, atol=0)
    keys = [str(e.key) for e in cast("Any", profiler.key_averages())]
    seen = [key for key in keys if key.startswith("fuseline::")]
    here = r"\(test_profiles\.py:\d+\)"
    for place in (r"layers\.0\.up", r"layers\.0\.down"):
        assert any(re.fullmatch(rf"fuseline::linear {place} {here}", name) for name in seen)
    assert any(re.fullmatch(r"fuseline::sort test_profiles\.py:\d+", name) for name in seen), seen
    path = tmp_path / "trace.json"
    profiler.export_chrome_trace(str(path))
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("ph") == "X"]
    assert {e["name"] for e in events if e["name"].startswith("fuseline::")} == set(seen)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), want, rtol=0, atol=0)


def dumped(folder: Path, layers: int) -> dict[str, str]:
    compiled = fuseline.compile(Net(layers), dump_dir=folder)
    with torch.no_grad():
        compiled(rows())
    (kernels,) = folder.glob("*/kernels")
    return {p.name: p.read_text() for p in kernels.iterdir() if p.suffix == ".cpp"}


def test_a_kernel_is_the_same_wherever_it_is_used_and_its_head_tells_where(tmp_path: Path) -> None:
    two, three = dumped(tmp_path / "two", 2), dumped(tmp_path / "three", 3)
    assert two.keys() == three.keys()
    for name, text in two.items():
        assert without_head(text) == without_head(three[name])
        assert kind_of(text) == "cpp"
    norm, more = (
        next(t for n, t in texts.items() if n.startswith("row_norm")) for texts in (two, three)
    )
    assert norm != more, "its head tells of one layer more"
    head = more.partition("\n\n")[0]
    assert "layers.1..2.norm (" in head
    assert "f32[5, 24]" in head
    assert f"fuseline {fuseline.__version__}" in head
    assert str(tmp_path) not in more


@pytest.mark.parametrize("source", ["// a\n\n// b\n", '"""doc"""\n\nx = 1\n', "int x;\n"])
def test_a_source_without_a_head_stays(source: str) -> None:
    assert without_head(source) == source
