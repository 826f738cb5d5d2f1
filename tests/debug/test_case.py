"""Reproducers: what is in the file, that other readers read it, and what is replayed from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fuseline.cli import main
from fuseline.config import Config
from fuseline.debug.case import HEAD, Case, given_options, versions
from fuseline.debug.seeded import make_arguments, make_binding
from fuseline.errors import LoadError, UsageError
from fuseline.ir.text import parse_func, print_func
from tests.debug.cases import GOOD, LOAD, PIPELINES, answer

Print = pytest.CaptureFixture[str]
TEXT = """func @f(%x: f32[B, 4], %w: f32[6, 4] = param "w", %i: i64[B]) where B in 2.. {
  %y = linear %x, %w
  %z = index_select %y, %i {axis = 0}
  return %z
}
"""


def _case() -> Case:
    return Case(
        parse_func(TEXT),
        "canonicalize,cse",
        {"tolerance": "2.0"},
        seed=7,
        sizes={"B": 5},
        strides={"x": [1, 5]},
        failed="cse: ValueError: two\nlines",
        versions=versions(),
    )


def test_a_case_comes_back_from_its_text() -> None:
    case = _case()
    again = Case.of_text(case.to_text(), "text")
    assert again.to_text() == case.to_text()
    assert (again.pipeline, again.seed, again.sizes) == ("canonicalize,cse", 7, {"B": 5})
    assert again.failed == "cse: ValueError: two lines"


def test_readers_of_ir_read_the_whole_file() -> None:
    text = _case().to_text()
    assert text.startswith(HEAD)
    assert print_func(parse_func(text)) == print_func(parse_func(TEXT))


def test_a_file_of_ir_without_a_head_is_a_case() -> None:
    case = Case.of_text("// another comment\n" + TEXT, "text")
    assert (case.pipeline, case.seed) == (None, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "found line 1, column 1"),
        (TEXT.replace("linear", "liner"), "line 2, column 8: found 'liner'"),
        (f"{HEAD}\n// seed: x\n{TEXT}", "invalid literal"),
        (f"{HEAD}\n// sizes: [1]\n{TEXT}", "FL0830"),
        (f"{HEAD}\n// sizes: {{\n{TEXT}", "FL0830"),
    ],
)
def test_what_is_no_case_is_refused(text: str, said: str) -> None:
    with pytest.raises(LoadError, match="FL0830 not a reproducer here") as caught:
        Case.of_text(text, "here")
    assert said in str(caught.value)


def test_arguments_are_seeded_laid_out_and_in_range() -> None:
    """They are the same wherever they are made, and no integer leaves what it indexes."""
    x, w, i = _case().arguments()
    again = _case().arguments()
    for one, other in zip((x, w, i), again, strict=True):
        assert isinstance(one, Tensor)
        assert isinstance(other, Tensor)
        assert torch.equal(one, other)
    assert isinstance(x, Tensor)
    assert isinstance(i, Tensor)
    assert x.shape == (5, 4)
    assert x.stride() == (1, 5)
    assert bool((x != 0).all())
    assert torch.equal(i.sort().values, torch.arange(5))


def test_a_root_is_taken_of_what_is_above_zero() -> None:
    func = parse_func("func @f(%x: f32[64]) {\n  %y = rsqrt %x\n  return %y\n}")
    (x,) = make_arguments(func, make_binding(func))
    assert isinstance(x, Tensor)
    assert bool((x > 0).all())


def test_only_options_about_the_compilation_are_kept(tmp_path: Path) -> None:
    config = Config(cache_dir=tmp_path, tolerance=2.0, skip_rewrites=("a", "b"))
    assert given_options(config) == {"tolerance": "2.0", "skip_rewrites": "a,b"}


def test_a_model_is_written_down(planted_model: Path) -> None:
    text = planted_model.read_text()
    case = Case.of_text(text, "text")
    assert case.pipeline is not None
    assert "fuse-add-rms-norm" in case.pipeline
    assert case.versions == versions()
    assert "planted_model.py:" in text
    assert str(planted_model.parent) not in text
    assert len(text) < 40_000, "there are no weights in it"


def test_a_replay_is_right_or_wrong(planted_model: Path, capsys: Print) -> None:
    code, said = answer(capsys, "repro", str(planted_model), "-p", GOOD)
    assert (code, said["failed"]) == (0, False)
    assert said["kernels"]["count"] > 0
    code, said = answer(capsys, "repro", str(planted_model), *LOAD, "-p", PIPELINES["eps"])
    assert (code, said["failed"], "kernels" in said) == (1, True, False)


def test_a_replay_says_what_else_it_was_seen_with(planted_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.fl"
    head, versions_, rest = planted_model.read_text().partition('"torch": "')
    other.write_text(head + versions_ + "1." + rest)
    assert main(["repro", str(other), "-p", "cse", "--check", "raises"]) == 0


def test_the_replay_of_a_pass_that_raised_raises(tmp_path: Path, capsys: Print) -> None:
    file = tmp_path / "f.fl"
    func = parse_func("func @f(%x: f32[4], %y: f32[4]) {\n  %s = sub %x, %y\n  return %s\n}")
    passes = tmp_path / "passes.py"
    passes.write_text(
        "from fuseline.passes.rewrite import FuncPass\n"
        "class RaiseAlways(FuncPass):\n"
        "    def run(self, func): raise KeyError('planted')\n"
    )
    Case(func, "raise-always", failed="raise-always: KeyError: 'planted'").write(file)
    code, said = answer(capsys, "repro", str(file), "--load", str(passes))
    assert code == 1
    assert "KeyError: 'planted'" in said["passes"]["said"]


def test_weights_are_written_beside_it_where_asked(
    tmp_path: Path, capsys: Print, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("safetensors", reason="writes a file of safetensors")
    (tmp_path / "tiny_model.py").write_text(
        "import torch\n"
        "def make():\n"
        "    model = torch.nn.Linear(4, 3)\n"
        "    return model, torch.full((2, 4), 7.0)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    torch.compiler.reset()
    code, said = answer(
        capsys, "repro", "tiny_model:make", "-o", str(tmp_path / "tiny.fl"), "--weights"
    )
    assert code == 0
    name, digest = said["files"][0]["weights"]
    case = Case.read(tmp_path / "tiny.fl")
    assert case.weights == (name, digest)
    given = [a for a in case.arguments(tmp_path) if isinstance(a, Tensor)]
    assert any(torch.equal(a, torch.full((2, 4), 7.0)) for a in given)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(tmp_path / "tiny.fl", elsewhere)
    assert main(["repro", str(elsewhere / "tiny.fl"), "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["found"]) == ("FL0830", "no such file")


def test_arguments_of_the_one_with_the_other_are_refused(
    planted_model: Path, capsys: Print
) -> None:
    assert main(["repro", str(planted_model), "--weights"]) == 2
    assert main(["repro", "some_module:make"]) == 2
    assert "expected -o FILE.fl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("strides: [1]", "no JSON object"),
        ('strides: {"x": "a"}', "no list of numbers"),
        ('strides: {"x": [-1, 1]}', "no list of numbers"),
        ("options: []", "no JSON object"),
        ("versions: 3", "no JSON object"),
        ('sizes: {"S": "many"}', "invalid literal"),
        ("pipelin: cse", "pipelin in the head"),
    ],
)
def test_a_head_that_is_none_is_told(line: str, why: str) -> None:
    text = f"{HEAD}\n// {line}\nfunc @f(%x: f32[3, 4]) {{\n  return %x\n}}\n"
    with pytest.raises(LoadError, match=f"FL0830.*{why}"):
        Case.of_text(text, "f.fl")


def test_strides_for_other_dims_are_told() -> None:
    text = "func @f(%x: f32[3, 4]) {\n  return %x\n}\n"
    case = Case.of_text(f'{HEAD}\n// strides: {{"x": [1]}}\n{text}', "f.fl")
    with pytest.raises(LoadError, match="FL0830.*2 dims"):
        case.arguments()


def test_a_place_that_cannot_be_written_is_told() -> None:
    case = Case(parse_func("func @f(%x: f32[3]) {\n  return %x\n}"))
    with pytest.raises(UsageError, match="FL0103.*--output"):
        case.write(Path("/proc/no/such/case.fl"))


def test_a_file_of_another_version_is_told() -> None:
    with pytest.raises(LoadError, match="FL0830.*only version 1"):
        Case.of_text(f"{HEAD[:-1]}9\nfunc @f(%x: f32[3]) {{\n  return %x\n}}\n", "f.fl")


def test_a_missing_file_is_told(capsys: Print) -> None:
    assert main(["repro", "no-such-file.fl"]) == 1
    assert "FL0830" in capsys.readouterr().err
