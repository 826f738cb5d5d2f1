"""Compiled programs in the cache: one process keeps them, another one runs them."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fuseline
from fuseline._torch import precompile
from fuseline.config import Config
from fuseline.errors import FuselineWarning
from fuseline.ir.layout import Layout
from fuseline.ir.text import parse_func, print_func
from fuseline.ir.types import symbol
from fuseline.report import Site
from fuseline.runtime.cache import Cache
from fuseline.runtime.packing import is_packed
from fuseline.saved import SavedForms, SavedProgram, placement, sources_digest

TEXT = """func @f(%x: f32[B, 64], %n: int<B>, %w: f32[64] = param "w") {
  %y = rms_norm %x, %w {eps = 1e-06}
  return %y
}"""


def test_a_program_round_trips_as_text() -> None:
    func = parse_func(TEXT)
    site = Site("rms_norm", "norm (net.py:3)", "fused", kernel="k", details={"rows": "B"})
    layouts = {func.args[0]: Layout(0, (64, 1)), func.args[2]: Layout(0, (1,))}
    layouts[func.ops[0].results[0]] = Layout(0, (1, symbol("B")))
    saved = SavedProgram("f", func, layouts, (site,), (0,))
    back = SavedProgram.of_text(saved.to_text())
    assert print_func(back.func) == print_func(func)
    assert [back.layouts[a].strides for a in back.func.args if a in back.layouts] == [(64, 1), (1,)]
    assert back.layouts[back.func.ops[0].results[0]].strides == (1, symbol("B"))
    assert (back.name, back.sites, back.places) == ("f", (site,), (0,))
    assert back.to_text() == saved.to_text()


def test_forms_are_numbered_and_told_apart_by_factors(tmp_path: Path) -> None:
    forms = SavedForms(Cache.open(tmp_path / "cache"), Config())
    forms.save({"class": "A"}, "1", b"one", "{}")
    forms.save({"class": "A"}, "2", b"two", "{}")
    forms.save({"class": "A"}, "1", b"one again", "{}")
    forms.save({"class": "B"}, "1", b"three", "{}")
    assert [trace for trace, _ in forms.load({"class": "A"})] == [b"one", b"two"]
    assert [trace for trace, _ in forms.load({"class": "B"})] == [b"three"]
    other = SavedForms(forms.cache, Config(disable=("cse",)))
    assert not list(other.load({"class": "A"}))


def test_a_cache_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("not a directory")
    forms = SavedForms(Cache.open(path), Config())
    forms.save({"class": "A"}, "1", b"one", "{}")
    assert not list(forms.load({"class": "A"}))


def test_placement_tells_tied_parameters() -> None:
    plain, tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Sequential()
    shared = nn.Linear(4, 4)
    tied.append(shared).append(nn.Linear(4, 4))
    tied[1].weight = shared.weight
    assert placement(plain) == placement(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    assert placement(plain) != placement(tied)
    assert placement(print) == ""


def test_the_digest_of_the_sources_is_stable() -> None:
    sources_digest.cache_clear()
    assert sources_digest() == sources_digest()


class Mlp(nn.Module):
    """A gated MLP with a norm before it: weights are merged, so that packing is in play."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(24, eps=1e-6)
        self.gate = nn.Linear(24, 40, bias=False)
        self.up = nn.Linear(24, 40, bias=False)
        self.down = nn.Linear(40, 24, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


PROGRAM = """
import json, sys, torch, fuseline
from tests.test_saved import Mlp
torch.manual_seed(0)
torch.set_num_threads(1)
model = Mlp()
compiled = fuseline.compile(model, dynamic=True)
x = torch.linspace(-1, 1, 3 * 24).reshape(3, 24)
with torch.no_grad():
    error = float((compiled(x) - model(x)).abs().max())
report = compiled.report()
sites = [[s.pattern, s.status, s.kernel] for s in report.sites]
found = {"error": error, "sites": sites, "stats": dict(report.stats), "report": str(report)}
print(json.dumps(found))
"""


def run(cache: Path) -> Any:
    """The program in a process of its own."""
    env = {**os.environ, "FUSELINE_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    root = Path(fuseline.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        cwd=root,
        env={**env, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not precompile.available(), reason="this torch cannot serialise guards")
def test_a_second_process_traces_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first, second = run(cache), run(cache)
    assert first["stats"]["graphs"] == 1
    assert second["stats"]["graphs"] == 0
    assert second["stats"]["graphs from the cache"] == 1
    assert second["sites"] == first["sites"]
    line = "from the cache, where no passes run: 1 of 1 programs"
    assert (line in first["report"], line in second["report"]) == (False, True)
    assert max(first["error"], second["error"]) < 1e-5


@pytest.mark.skipif(not precompile.available(), reason="this torch cannot serialise guards")
@pytest.mark.parametrize("reuse", [True, False])
def test_packing_that_is_refused_later_runs_op_by_op(tmp_path: Path, reuse: bool) -> None:
    """Once where a parameter's new memory cannot be moved; and packs again where it can be."""
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache", "dynamic": True, "reuse": reuse}
    x = torch.linspace(-1, 1, 3 * 24).reshape(3, 24)
    with torch.no_grad():
        fuseline.compile(Mlp(), **options)(x)
        model = Mlp()
        compiled: Any = fuseline.compile(model, **options)
        torch.testing.assert_close(compiled(x), model(x))
        assert compiled.report().stats.get("graphs from the cache", 0) == int(reuse)
        whole = torch.linspace(-0.1, 0.1, 80 * 24).reshape(80, 24)
        model.gate.weight.data = whole[:40]
        with pytest.warns(FuselineWarning, match="FL0903 runs op by op"):
            torch.testing.assert_close(compiled(x), model(x))
        torch.testing.assert_close(compiled(x), model(x))  # said once
        model.gate.weight.data = whole.clone()[40:]
        torch.testing.assert_close(compiled(x), model(x))
        assert is_packed([model.gate.weight, model.up.weight])
        model.up.weight = nn.Parameter(whole.clone()[40:])
        torch.testing.assert_close(compiled(x), model(x))
        assert is_packed([model.gate.weight, model.up.weight])


def shift(x: Tensor, kept: Tensor) -> Tensor:
    """Writes one argument between two readings of another, which may share its memory."""
    y = x * 2
    kept.add_(1)
    return y + x


@pytest.mark.skipif(not precompile.available(), reason="this torch cannot serialise guards")
def test_overlapping_arguments_are_traced_where_the_program_is_from_the_cache(
    tmp_path: Path,
) -> None:
    def apart() -> tuple[Tensor, Tensor]:
        return torch.linspace(-1, 1, 6), torch.linspace(1, 2, 6)

    def overlapping() -> tuple[Tensor, Tensor]:
        whole = torch.linspace(-1, 1, 8)
        return whole[:6], whole[2:]

    with torch.no_grad():
        fuseline.compile(shift, cache_dir=tmp_path, dynamic=False)(*apart())
        compiled: Any = fuseline.compile(shift, cache_dir=tmp_path, dynamic=False)
        for given in (apart, overlapping, apart, overlapping):
            mine, theirs = given(), given()
            torch.testing.assert_close(compiled(*mine), shift(*theirs))
            torch.testing.assert_close(mine, theirs)
    gc.collect()
    stats = compiled.report().stats
    assert (stats["programs"], stats["graphs"]) == (1, 1), "what was given up does not count"
    assert "graphs from the cache" not in stats


class WithoutGradients(nn.Module):
    """Turns gradients off itself, and has a step that torch runs, and a returned view."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.topk(self.linear(x), 3)[0], x[1:]


def test_a_program_traced_with_gradients_on_is_kept_for_no_other_process(tmp_path: Path) -> None:
    model = WithoutGradients()
    for _ in range(2):
        torch.compiler.reset()
        compiled: Any = fuseline.compile(model, cache_dir=tmp_path)
        x = torch.linspace(-1, 1, 48).reshape(3, 16).requires_grad_()
        for got, want in zip(compiled(x), model(x), strict=True):
            torch.testing.assert_close(got, want)
            assert not got.requires_grad
        assert "graphs from the cache" not in compiled.report().stats
