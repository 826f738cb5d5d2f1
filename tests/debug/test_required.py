"""Patterns that must be fused: what counts, when it is asked, and what is said."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import fuseline
from fuseline.config import Config
from fuseline.debug.required import Requirement, Watch, check_required, patterns, requirements
from fuseline.errors import PassError, UsageError
from fuseline.passes.rewrite import PASSES
from fuseline.report import PLAIN, Report, Site


def fused(pattern: str, where: str = "a", **details: str) -> Site:
    return Site(pattern, where, "fused", details=details)


def missed(pattern: str, where: str = "a", reason: str = "no") -> Site:
    return Site(pattern, where, "missed", reason)


# -- what counts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sites", "good"),
    [
        ("moe", [], False),
        ("moe", [fused("moe")], True),
        ("moe", [fused("moe"), missed("moe")], False),
        ("moe", [fused("rope"), missed("rope")], False),
        ("moe=1", [fused("moe"), missed("moe")], True),
        ("moe=2", [fused("moe"), missed("moe")], False),
        ("moe=2", [fused("moe", "a"), fused("moe", "b")], True),
        ("rope", [fused("qk_norm", swallowed="rope at x (m.py:1); rope at y (m.py:2)")], True),
        ("rope=2", [fused("qk_norm", swallowed="rope at x (m.py:1); rope at y (m.py:2)")], True),
        ("rope=3", [fused("qk_norm", swallowed="rope at x (m.py:1); rope at y (m.py:2)")], False),
        ("rms_norm", [fused("moe", swallowed="route; rms_norm")], True),
        ("rms_norm", [fused("moe", swallowed="add_rms_norm at rms_norm")], False),
    ],
)
def test_what_is_met(text: str, sites: list[Site], good: bool) -> None:
    (required,) = requirements([text])
    assert required.unmet(sites) is not good


def test_every_pattern_of_a_pass_is_known() -> None:
    names = {"qk_norm", "mla", "moe", "gated_mlp", "merged_linear", "add_rms_norm", "rope"}
    assert names | {"attention", "rms_norm", "layer_norm", "route"} <= set(patterns())
    with pytest.raises(UsageError, match="FL0107 unknown pattern qk-norm .*expected qk_norm"):
        requirements(["moe", "qk-norm"])


def test_the_page_of_the_docs_has_every_pattern() -> None:
    page = (Path(__file__).parents[2] / "docs" / "remarks.md").read_text()
    _, _, text = page.partition("The names are those of the report's sites: ")
    own = {
        getattr(c, "pattern", "") for c in PASSES.values() if c.__module__.startswith("fuseline.")
    }
    assert set(re.findall(r"`(\w+)`", text.partition(";")[0])) == own - {""} | {
        "rms_norm",
        "layer_norm",
    }
    with pytest.raises(
        UsageError, match="FL0107 unknown pattern graph_break .*one of add_rms_norm"
    ):
        requirements(["graph_break"])


@pytest.mark.parametrize("wrong", ["moe=0", "moe=", "moe=x", "=4", "moe=4=4", "moe=-1", 7])
def test_a_number_is_one(wrong: Any) -> None:
    with pytest.raises(UsageError, match="FL0101"):
        Config(require=[wrong])


def test_the_option_is_names_between_commas_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSELINE_REQUIRE", "qk_norm, moe = 4")
    assert Config().require == ("qk_norm", "moe=4")


# -- what is said -----------------------------------------------------------------------------


def said(text: str, *sites: Site, **stats: Any) -> str:
    with pytest.raises(PassError) as caught:
        check_required(requirements([text]), Report(sites=sites, stats=stats))
    assert caught.value.diagnostic.code == "FL0401"
    return str(caught.value)


def test_one_reason_is_said_once() -> None:
    sites = [missed("moe", f"layers.{n}") for n in range(6)] + [missed("moe", "last", "odd")]
    text = said("moe", fused("moe"), *sites)
    assert (
        "moe: 1 fused, 7 missed, at layers.0, layers.1, layers.2, layers.3 and 2 more: no" in text
    )
    assert "expected every site of moe, and one at least" in text


def test_what_is_near_is_said_where_there_is_no_site() -> None:
    assert "qk_norm: nothing looks like it, expected" in said("qk_norm", missed("moe"))
    text = said("qk_norm", fused("rope", "r"), missed("rms_norm", "n"), missed("moe"))
    assert "nothing looks like it, nearest: rms_norm missed at n: no, expected" in text
    text = said("qk_norm", fused("rope", "r"), fused("attention", "s"), fused("moe"))
    assert "nearest: rope fused at r, attention fused at s, expected" in text


def test_too_few_are_said_with_their_number() -> None:
    text = said("moe=3", fused("moe"), fused("moe"))
    assert "moe: 2 fused, and nothing else that looks like it, expected 3 of moe" in text


def test_what_was_not_compiled_is_said() -> None:
    assert "not compiled: gradients are on" in said("moe", **{f"{PLAIN}main": "gradients are on"})


# -- calls -------------------------------------------------------------------------------------


class Split(nn.Module):
    """A norm of a sum on either side of a graph break, where that is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.RMSNorm(16), nn.LayerNorm(16)

    def forward(self, x: Tensor, *, cut: bool = True) -> Tensor:
        x = self.first(torch.relu(x))
        if cut:
            torch._dynamo.graph_break()  # pyright: ignore[reportPrivateUsage]
        return self.last(x)


def compiled(model: Any, cache: Path, *require: str, **options: Any) -> Any:
    torch.compiler.reset()
    return fuseline.compile(model, cache_dir=cache, require=require, **options)


X = torch.ones(2, 16)


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


def test_graphs_of_one_call_count_together(tmp_path: Path) -> None:
    """Neither graph has both norms; a graph alone is not what the option is about."""
    program = compiled(Split(), tmp_path, "rms_norm", "layer_norm=1")
    program(X)
    assert program.report().stats["graphs"] == 2
    with pytest.raises(PassError, match="layer_norm: 1 fused, .* graph break: "):
        compiled(Split(), tmp_path, "layer_norm=2")(X)


def test_each_call_is_held_by_what_runs_in_it(tmp_path: Path) -> None:
    """A good call is no excuse for a later one that is compiled to something else."""

    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.RMSNorm(16)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) if x.dim() == 2 else torch.relu(x)

    program = compiled(Either(), tmp_path, "rms_norm")
    program(X)
    with pytest.raises(PassError, match="rms_norm: nothing looks like it"):
        program(X[0])
    program(X)


def test_a_call_fails_every_time(tmp_path: Path) -> None:
    program = compiled(nn.Linear(16, 3), tmp_path, "moe")
    for _ in range(2):
        with pytest.raises(PassError, match="moe: nothing looks like it"):
            program(X)


def test_it_holds_for_programs_from_the_cache_and_is_no_factor_of_it(tmp_path: Path) -> None:
    norm = nn.RMSNorm(16)
    compiled(norm, tmp_path)(X)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    good = compiled(norm, tmp_path, "rms_norm=1")
    good(X)
    bad = compiled(norm, tmp_path, "rms_norm=2", "moe")
    with pytest.raises(PassError, match="rms_norm: 1 fused, .* moe: nothing looks like it"):
        bad(X)
    for program in (good, bad):
        assert program.report().stats["programs from the cache"] == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_a_graph_with_gradients_has_nothing_fused(tmp_path: Path) -> None:
    with torch.enable_grad(), pytest.raises(PassError, match="not compiled: gradients are on"):
        compiled(nn.RMSNorm(16), tmp_path, "rms_norm")(X)


def test_a_class_and_a_function_are_held_as_well(tmp_path: Path) -> None:
    made: Any = fuseline.compile(Split, cache_dir=tmp_path, require=["moe"])
    with pytest.raises(PassError):
        made()(X)

    def plain(x: Tensor) -> Tensor:
        return x + 1

    with pytest.raises(PassError):
        compiled(plain, tmp_path, "moe")(X)


def test_explain_is_held(tmp_path: Path) -> None:
    config = Config(cache_dir=tmp_path, require=("moe",))
    with pytest.raises(PassError):
        fuseline.explain(nn.Linear(16, 3), X, config=config)


def test_a_graph_of_torch_compile_is_held_by_itself(tmp_path: Path) -> None:
    """More than the graph is not known there."""
    options = {"cache_dir": tmp_path, "require": ["rms_norm"]}
    cast("Any", torch).compile(nn.RMSNorm(16), backend="fuseline", options=options)(X)
    torch.compiler.reset()
    with pytest.raises(PassError, match="rms_norm: nothing looks like it, nearest: layer_norm"):
        cast("Any", torch).compile(Split(), backend="fuseline", options=options)(X)


def test_an_export_is_held_before_a_file_is_written(tmp_path: Path) -> None:
    path = tmp_path / "model.fuse"
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache", "require": ["rms_norm", "moe"]}
    with pytest.raises(PassError, match="in main for cpu: found moe: nothing looks like it"):
        fuseline.export(nn.RMSNorm(16), (X,), path=path, **options)
    assert not path.exists()


def test_calls_in_threads_do_not_mix() -> None:
    """Each thread has its own call."""
    watch = Watch((Requirement("moe"),))
    good = watch.around(lambda: None, (fused("moe"),))
    other = watch.around(lambda: None, (fused("rope"),))
    watch.begin()
    thread = threading.Thread(target=good)
    thread.start()
    thread.join()
    other()
    with pytest.raises(PassError, match="moe: nothing looks like it"):
        watch.end(Report())
    watch.begin()
    good()
    watch.end(Report())


# -- the commands -----------------------------------------------------------------------------

MODEL = """
import torch

def make():
    return torch.nn.RMSNorm(16), (torch.ones(2, 16),)
"""


def test_the_commands_fail_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fuseline.cli import main

    name = "model_that_has_one_norm"
    (tmp_path / f"{name}.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    model = f"{name}:make"
    assert main(["explain", model, "--require", "rms_norm=1"]) == 0
    assert main(["explain", model, "--require", "rms_norm", "--require", "moe=4"]) == 1
    assert "FL0401" in capsys.readouterr().err
    assert main(["run", model, "--runs", "1", "--require", "rms_norm,moe"]) == 1
    assert main(["export", model, "-o", "model.fuse", "--require", "moe"]) == 1
    assert "moe: nothing looks like it" in capsys.readouterr().err
    assert main(["explain", model, "--require", "moes"]) == 2
    assert "FL0107" in capsys.readouterr().err
    assert main(["export", model, "-o", "model.fuse"]) == 0
    assert main(["run", "model.fuse", "--require", "rms_norm"]) == 2
    written = ["export", model, "-o", "m.onnx", "--format", "onnx"]
    assert main([*written, "--remarks"]) == 2
    assert main(written) == 0
    assert main(["explain", "m.onnx", "--require", "rms_norm"]) == 0
    assert main(["explain", "m.onnx", "--require", "moe"]) == 1
    assert main(["explain", "--zoo", "--remarks-missed"]) == 2
    assert main(["explain", model, "--remarks=fuse-("]) == 2
    assert "--remarks" in capsys.readouterr().err
