"""Pages: which programs are on them, when they are written, and what is never collected."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fuseline
from fuseline.cli.opt import optimised
from fuseline.compiler import Compiler
from fuseline.config import Config
from fuseline.debug.machine import Machine
from fuseline.debug.page import page as pages
from fuseline.debug.page.data import PageView
from fuseline.debug.page.look import Look
from fuseline.debug.page.page import page_at
from fuseline.debug.page.program import Program
from fuseline.debug.page.samples import take
from fuseline.errors import FuselineWarning, PassError, UsageError
from fuseline.ir.core import Func
from fuseline.passes.dce import Dce
from fuseline.passes.fuse_add_rms_norm import FuseAddRmsNorm
from fuseline.passes.manager import PassManager
from fuseline.passes.rewrite import FuncPass

HERE = Machine(1e9, 1e12, 1e12, "a machine of this test")

TEXT = """func @f(%x: f32[B, 4], %r: f32[B, 4], %w: f32[4]) {
  %a = add %x, %r
  %y = rms_norm %a, %w
  return %y, %a
}"""


class Block(nn.Module):
    """A product, a residual and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp, self.norm = nn.Linear(16, 16), nn.RMSNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.mlp(x))


@pytest.fixture(autouse=True)
def own_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins as a process does."""
    torch.compiler.reset()
    monkeypatch.setattr(pages, "_PAGES", type(pages._PAGES)())  # pyright: ignore[reportPrivateUsage]


def compiled(path: Path, **options: Any) -> Any:
    return fuseline.compile(Block().eval(), html=path, **options)


def called(model: Any, *shape: int) -> None:
    with torch.no_grad():
        model(torch.ones(shape))


def on_page(path: Path) -> PageView:
    return page_at(path).view()


def test_a_program_is_on_the_page_once_it_is_compiled(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    model = compiled(path)
    assert not path.exists(), "nothing is compiled yet"
    called(model, 3, 16)
    assert "Block" in path.read_text(encoding="utf-8")
    view = on_page(path)
    (program,) = view.programs
    assert (view.title, program.name, program.target) == ("Block", "Block", "cpu")
    assert [s.pattern for s in program.sites if s.status == "fused"] == ["add_rms_norm"]
    assert {k.record.symbol for k in program.kernels if k.language == "cpp" and k.source} == {
        step.symbol for step in program.steps if step.kind == "native"
    }
    assert {"import", "optimise", "build"} <= set(program.seconds)
    assert view.versions["torch"] == torch.__version__
    assert [f.name for f in tmp_path.iterdir()] == ["report.html"]


def test_what_is_compiled_again_is_on_the_same_page(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    model = compiled(path, dynamic=False)
    called(model, 3, 16)
    called(model, 5, 16)
    called(compiled(path), 3, 16)
    assert [p.imported != () for p in on_page(path).programs] == [True] * 3


def test_two_spellings_of_a_file_are_one_page(tmp_path: Path) -> None:
    path, link = tmp_path / "report.html", tmp_path / "link.html"
    called(compiled(path), 3, 16)
    link.symlink_to(path)
    called(compiled(link), 3, 16)
    assert len(on_page(path).programs) == 2
    assert sorted(f.name for f in tmp_path.iterdir()) == ["link.html", "report.html"]


def test_each_program_has_its_own_options(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    called(compiled(path, disable=("fuse-add-rms-norm",)), 3, 16)
    called(compiled(path, verify=True), 3, 16)
    options = [program.options for program in on_page(path).programs]
    assert options == [{"disable": "fuse-add-rms-norm"}, {"verify": "True"}]


def test_a_page_that_is_full_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MOST", 2)
    path = tmp_path / "report.html"
    for _ in range(3):
        called(compiled(path), 3, 16)
    view = on_page(path)
    assert len(view.programs) == 2
    assert view.notes == ("this page is full: it has 2 programs, and takes no more",)


def test_what_torch_runs_as_it_is_stands_on_the_page(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    model = compiled(path)
    for _ in range(2):  # with gradients
        model(torch.ones(3, 16))
    (note,) = on_page(path).notes
    assert note.startswith("torch ran a call of Block as it is, not compiled: gradients are on")
    assert "gradients are on" in path.read_text(encoding="utf-8")


def test_graph_breaks_stand_on_the_page_with_their_places(tmp_path: Path) -> None:
    path = tmp_path / "report.html"

    def f(x: Tensor) -> Tensor:
        y = x * 2
        torch._dynamo.graph_break()  # pyright: ignore[reportPrivateUsage]
        return y + 1

    model: Any = fuseline.compile(f, html=path)
    for rows in (3, 5):
        called(model, rows, 16)
    page = on_page(path)
    assert len(page.programs) >= 2
    (note,) = page.notes
    line = f.__code__.co_firstlineno + 2
    assert note.startswith(f"graph break at test_page.py:{line}, what is in no graph runs in eager")


def test_a_page_that_cannot_be_written_any_more_ends_no_call(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    model = compiled(folder / "report.html")
    folder.rmdir()
    with pytest.warns(FuselineWarning, match="FL0101 invalid value for the option html"):
        called(model, 3, 16)


def test_a_dump_has_a_page_of_its_program_beside_it(tmp_path: Path) -> None:
    model = fuseline.compile(Block().eval(), dump_dir=tmp_path)
    called(model, 3, 16)
    page = tmp_path / "Block-00" / "index.html"
    assert "fuse-add-rms-norm" in page.read_text(encoding="utf-8")


def test_samples_are_those_of_steps_and_of_calls(tmp_path: Path) -> None:
    path, eager = tmp_path / "report.html", Block().eval()
    model: Any = fuseline.compile(eager, html=path, dynamic=True)
    x = torch.randn(3, 16)
    with torch.no_grad():
        before = model(x)
        take(page_at(path), lambda: model(x), lambda: eager(x), 4, lambda _: HERE)
        torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    (program,) = on_page(path).programs
    ran = [step for step in program.steps if step.seconds]
    assert ran
    assert all(len(step.seconds) == 4 and min(step.seconds) > 0 for step in ran)
    assert {name: len(seconds) for name, seconds in program.calls.items()} == {
        "eager": 4,
        "compiled": 4,
    }
    measured = [layer.seconds for layer in program.layers if layer.seconds is not None]
    middle = sum(sorted(s.seconds)[1] + sorted(s.seconds)[2] for s in ran) / 2
    assert sum(measured) == pytest.approx(middle)
    assert program.machine == str(HERE)
    assert all(step.floor is None for step in program.steps if not step.seconds)
    floors = [step.floor for step in ran if step.floor is not None]
    assert len(floors) == len(ran), "each op of this model has one step"
    moved = sum(layer.compiled[1] for layer in program.layers)
    assert sum(floors) == pytest.approx(moved / HERE.bandwidth)
    assert sum(layer.floor or 0.0 for layer in program.layers) == pytest.approx(sum(floors))


def test_no_samples_are_taken_of_what_does_not_run_here(tmp_path: Path) -> None:
    page = page_at(tmp_path / "report.html")
    take(page, lambda: None, lambda: None, 2, lambda _: HERE)
    assert page.view().notes == (
        "nothing was timed: no program of this page runs by its kernels here",
    )


@dataclass(frozen=True)
class _Breaks(FuncPass):
    """Raises."""

    def run(self, func: Func) -> None:
        raise RuntimeError("this pass is broken")


def test_the_page_of_a_pass_that_fails_shows_those_before_it(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    config = Config(html=path, dump_dir=tmp_path)
    with pytest.raises(PassError):
        optimised(PassManager([FuseAddRmsNorm(), _Breaks(), Dce()]), TEXT, "f.fl", config)
    assert path.is_file()
    view = on_page(path)
    (program,) = view.programs
    assert [p.name for p in program.passes] == ["fuse-add-rms-norm"]
    assert any("add_rms_norm" in program.lines[line] for line in program.final)
    assert view.notes == ("f: _-breaks: RuntimeError: this pass is broken",)


def test_where_no_page_is_asked_for_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise AssertionError("nobody has asked for this")

    monkeypatch.setattr(Program, "__init__", refuse)
    called(fuseline.compile(Block().eval(), cache_dir=tmp_path), 3, 16)
    look = Look.of(Config(), "f", "cpu", dict)
    assert (look.program, look.pages, look.observers) == (None, (), [])


def test_what_is_on_a_page_does_not_come_from_the_cache() -> None:
    assert Compiler(Config()).keeps_forms
    assert not Compiler(Config(html=Path("report.html"))).keeps_forms


@pytest.mark.parametrize(
    ("name", "found"), [("", "it is a directory"), ("none/report.html", "no directory")]
)
def test_a_page_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, name: str, found: str
) -> None:
    with pytest.raises(UsageError, match=f"FL0101 invalid value for the option html.*{found}"):
        compiled(tmp_path / name)
