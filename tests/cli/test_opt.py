"""`fuseline opt`: passes over IR text, what is printed on the way, and what is refused."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fuseline.cli import main
from fuseline.config import warn_of_unknown_variables
from fuseline.passes.pipeline import default_pipeline
from fuseline.passes.rewrite import PASSES

Print = pytest.CaptureFixture[str]

TEXT = """\
func @f(%x: f32[B, 4], %w: f32[4]) {
  %a = exp %x : f32[B, 4] @ "layer" "model.py:3"
  %b = exp %x : f32[B, 4]
  %c = sin %a : f32[B, 4]
  return %b
}
"""
AFTER_CSE = TEXT.replace("  %b = exp %x : f32[B, 4]\n", "").replace("return %b", "return %a")
AFTER_DCE = AFTER_CSE.replace("  %c = sin %a : f32[B, 4]\n", "")


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "f.fl"
    path.write_text(TEXT)
    return str(path)


def ran(capsys: Print, *words: str, code: int = 0) -> tuple[str, str]:
    """What the command says on standard output, and on standard error."""
    assert main(["opt", *words]) == code
    printed = capsys.readouterr()
    return printed.out, printed.err


def test_passes_are_run_in_order_and_places_kept(file: str, capsys: Print) -> None:
    assert ran(capsys, file, "-p", "cse") == (AFTER_CSE, "")
    assert ran(capsys, file, "-p", "cse,dce", "--verify-each") == (AFTER_DCE, "")
    assert ran(capsys, file, "-p", "cse, dce", "--no-locations")[0] == AFTER_DCE.replace(
        ' @ "layer" "model.py:3"', ""
    )


def test_standard_input_and_a_file_for_the_output(
    file: str, tmp_path: Path, capsys: Print, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in ([], ["-"], ["-", "-o", "-"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
        assert ran(capsys, "-p", "cse,dce", *words) == (AFTER_DCE, "")
    assert ran(capsys, file, "-p", "cse", "-o", str(tmp_path / "out.fl")) == ("", "")
    assert (tmp_path / "out.fl").read_text() == AFTER_CSE


def test_without_a_pipeline_that_of_a_compilation_runs(file: str, capsys: Print) -> None:
    _, said = ran(capsys, file, "--timing")
    rows = [line.split() for line in said.splitlines()]
    assert [row[4] for row in rows[1:-1]] == [each.name for each in default_pipeline()]
    assert [row[4] for row in rows[1:-1] if row[-1] == "changed"] == ["cse", "dce"]
    assert rows[-1][1:] == ["100.0", "%", "all"]
    shares = [float(row[2]) for row in rows[1:-1]]
    assert 95 < sum(shares) < 105
    _, said = ran(capsys, file, "--timing", "--gpu")
    assert " fuse-norm-linear" in said


def banners(said: str) -> list[str]:
    return [line[11:-11] for line in said.splitlines() if line.startswith("// -----// ")]


def test_printing_around_passes(file: str, capsys: Print) -> None:
    pipeline = ["-p", "canonicalize,cse,dce,fuse-qk-norm"]
    _, said = ran(capsys, file, *pipeline, "--print-ir-before=d.*,cse", "--print-ir-after=cse")
    assert banners(said) == ["IR before cse", "IR after cse", "IR before dce"]
    parts = said.split("// -----// ")
    assert parts[1].partition("\n")[2] == TEXT
    assert parts[2].partition("\n")[2] == parts[3].partition("\n")[2] == AFTER_CSE
    _, said = ran(capsys, file, *pipeline, "--print-ir-after")
    names = ["canonicalize", "cse", "dce", "fuse-qk-norm{rope=true}"]
    assert banners(said) == [f"IR after {name}" for name in names]
    _, said = ran(capsys, file, *pipeline, "--print-ir-after-change")
    assert banners(said) == ["IR after cse", "IR after dce"]
    _, said = ran(capsys, file, *pipeline, "--print-ir-after-change", "--print-ir-after=c.*")
    assert banners(said) == ["IR after cse"]


def test_a_diff_of_each_change(file: str, capsys: Print) -> None:
    _, said = ran(capsys, file, "-p", "cse,cse,dce", "--print-changed=diff")
    assert banners(said) == ["Change by cse", "Change by dce"]
    changed = [line for line in said.splitlines() if line[:1] in "+-"]
    assert changed == [
        *("--- before cse", "+++ after cse", "-  %b = exp %x : f32[B, 4]"),
        *("-  return %b", "+  return %a"),
        *("--- before dce", "+++ after dce", "-  %c = sin %a : f32[B, 4]"),
    ]


def test_at_most_so_many_rewrites(tmp_path: Path, capsys: Print) -> None:
    path = tmp_path / "f.fl"
    lines = [f"  %m{i} = matmul %x, %x : f32[4, 4]\n" for i in range(3)]
    path.write_text(f"func @f(%x: f32[4, 4]) {{\n{''.join(lines)}  return %m0, %m1, %m2\n}}\n")
    for limit in range(4):
        words = [str(path), "-p", "lower-matmul", "--fuse-limit", str(limit), "--json"]
        data = json.loads(ran(capsys, *words)[0])
        assert len(data["rewrites"]) == limit
        assert data["ir"].count("matmul") == 3 - limit
    with pytest.raises(SystemExit, match="2"):
        main(["opt", str(path), "--fuse-limit", "few"])


def test_json_has_the_ir_and_the_passes(file: str, capsys: Print) -> None:
    data = json.loads(ran(capsys, file, "-p", "cse,dce", "--json")[0])
    assert data["ir"] == AFTER_DCE
    assert [(each["name"], each["changed"]) for each in data["passes"]] == [
        ("cse", True),
        ("dce", True),
    ]


PLANTED = """
from dataclasses import dataclass
from fuseline.ir.ops.fused import AddRmsNorm
from fuseline.ir.ops.pointwise import Add
from fuseline.ir.ops.raised import RmsNorm
from fuseline.passes.rewrite import Replace, Rewrite

@dataclass(frozen=True)
class LosesEpsOfThisTest(Rewrite[RmsNorm], root=RmsNorm, pattern="add_rms_norm"):
    def rewrite(self, op, func):
        match op.x.owner:
            case Add(lhs, rhs):
                fused = AddRmsNorm(lhs, rhs, op.weight)
                return Replace({op.x: fused.sum, op.y: fused.y})
"""
NORM = """\
func @f(%x: f32[5, 48], %r: f32[5, 48], %w: f32[48]) {
  %s = add %x, %r
  %y = rms_norm %s, %w {eps = 0.25} @ "layers.0.norm" "model.py:3"
  return %y
}
"""


def test_rewrites_of_ones_own_are_told_of_and_checked(tmp_path: Path, capsys: Print) -> None:
    path, passes, remarks = (tmp_path / name for name in ("f.fl", "mine.py", "remarks.yaml"))
    path.write_text(NORM)
    passes.write_text(PLANTED)
    words = [str(path), "--remarks=.*", "--remarks-output", str(remarks), "--check-numerics"]
    _, said = ran(capsys, *words, "-p", "fuse-add-rms-norm")
    assert "fused add_rms_norm at layers.0.norm" in said
    assert "fuse-add-rms-norm" in remarks.read_text()
    data = json.loads(ran(capsys, *words, "-p", "fuse-add-rms-norm", "--json")[0])
    assert [each["share"] <= 1 for each in data["numerics"] if each["number"] == 1] == [True]
    words = [*words, "--load", str(passes), "-p", "loses-eps-of-this-test"]
    _, said = ran(capsys, *words, code=1)
    assert "FL0410 numbers break at rewrite #1 loses-eps-of-this-test in layers.0.norm" in said
    assert "loses-eps-of-this-test" in remarks.read_text(), "what was done until then"


def test_a_rewrite_to_another_type_is_named(tmp_path: Path, capsys: Print) -> None:
    """Also where nothing that reads the value would mind; and the replay finds the pass."""
    path, passes = tmp_path / "f.fl", tmp_path / "mine.py"
    path.write_text(NORM)
    text = PLANTED.replace("LosesEps", "Narrows").replace("op.y: fused.y", "op.y: op.weight")
    passes.write_text(text)
    words = ["--load", str(passes), "-p", "narrows-of-this-test", "--verify-each"]
    _, said = ran(capsys, str(path), *words, "--fuse-limit", "3", code=1)
    assert "narrows-of-this-test: f32[5, 48] is replaced by f32[48]" in said
    assert "FL0402 a pass of your own failed: narrows-of-this-test in mine.py:10" in said
    again = shlex.split(said.partition("Hint: replay it by ")[2].strip().rstrip("."))[1:]
    assert again[-4:] == ["--fuse-limit", "3", "--load", str(passes)]
    assert "is replaced by f32[48]" in ran(capsys, *again[1:], code=1)[1]


def test_a_rewrite_that_returns_something_else_is_named(tmp_path: Path, capsys: Print) -> None:
    path, passes = tmp_path / "f.fl", tmp_path / "mine.py"
    path.write_text(NORM)
    text = PLANTED.replace("LosesEps", "Bare").replace("Replace({op.x: fused.sum, ", "fused.y  # ")
    passes.write_text(text)
    words = [str(path), "--load", str(passes), "-p", "bare-of-this-test"]
    _, said = ran(capsys, *words, code=1)
    assert "FL0402 a pass of your own failed: bare-of-this-test in mine.py:10: found" in said
    assert "rewrite returned a Value, expected Replace, a mapping of old values" in said


def test_every_pass_is_listed_with_its_options(capsys: Print) -> None:
    text, _ = ran(capsys, "--list-passes")
    assert "\nfuse-qk-norm{rope=true}\n    Join the norms, and the rotations" in text
    listed: list[Any] = json.loads(ran(capsys, "--list-passes", "--json")[0])["passes"]
    assert {each["name"] for each in listed} == set(PASSES)
    names = [each["name"] for each in listed]
    assert names[:3] == ["fold-constants", "canonicalize", "cse"]
    (found,) = [each for each in listed if each["name"] == "fuse-qk-norm"]
    assert (found["options"], found["pattern"]) == ({"rope": True}, "qk_norm")
    assert "Before:" in found["doc"]


UNDEFINED = """\
FL0301 this is no IR in f.fl:4:12: found '%nowhere', expected a value defined before this line.
  4 |   %c = sin %nowhere : f32[B, 4]
    |            ^
"""
LONG_LINE = f"""\
FL0301 this is no IR in f.fl:1:222: found '{{', expected ','.
  1 | ... {"x" * 59}: f32[B, 4] {{
    |     {" " * 71}^
"""
THE_END = """\
FL0301 this is no IR in f.fl:1:22: found the end, expected the name of an op.
  1 | func @f(%x: f32[B]) {
    |                      ^
"""
INVALID = """\
FL0302 invalid IR in f.fl:1:28: found full: attribute value reads S, which nothing gives.
  1 | func @f(%x: f32[B]) { %y = full {value = S, dtype = i64} return %y }
    |                            ^
"""
FULL = "func @f(%x: f32[B]) { %y = full {value = S, dtype = i64} return %y }"
UNKNOWN_SIZE = """\
FL0303 a size that only the data tells in f.fl: found only the data tells the size of what \
aten.nonzero gives. Hint: leave known-sizes out, with -p.
"""
NONZERO = """\
func @f(%x: i64[4]) where u in 0.. {
  %y = aten.call [%x] {target = "aten.nonzero", args = ($0,), types = (i64[u, 1],)}
  return %y
}
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(TEXT.replace("sin %a", "sin %nowhere"), UNDEFINED, id="undefined"),
        pytest.param(f"func @f(%{'x' * 200}: f32[B, 4] {{\n", LONG_LINE, id="long-line"),
        pytest.param("func @f(%x:\tf32[B]) {", THE_END, id="end"),
        pytest.param(FULL, INVALID, id="invalid"),
        pytest.param(NONZERO, UNKNOWN_SIZE, id="unknown-size"),
    ],
)
def test_text_that_is_wrong(
    text: str, said: str, tmp_path: Path, capsys: Print, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f.fl").write_text(text)
    out, err = ran(capsys, "f.fl", code=1)
    assert (out, err) == ("", said)
    data = json.loads(ran(capsys, "f.fl", "--json", code=1)[0])
    assert data["error"]["code"] == said[:6]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.fl"], "FL0103 wrong argument FILE: found nowhere.fl (No such file"),
        (["f.fl", "-p", "cse,no"], "FL0104 unknown pass no in a pipeline"),
        (["f.fl", "-p", "cse{x=1}"], "FL0106 wrong pipeline cse"),
        (["f.fl", "-p", "cse", "--gpu"], "FL0103 wrong argument --gpu: found it with -p"),
        (["f.fl", "-o", "no/where.fl"], "FL0103 wrong argument -o: found no/where.fl (No such"),
        (["-p", "cse", "--print-ir-after", "f.fl"], "FL0103 wrong argument --print-ir-after: f"),
        (["--remarks", "f.fl"], "FL0103 wrong argument --remarks: found f.fl, expected a regular"),
        (["f.fl", "--print-ir-before=cse,("], "FL0103 wrong argument --print-ir-before: found '('"),
    ],
)
def test_wrong_usage(
    words: list[str], said: str, file: str, capsys: Print, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(file).parent)
    out, err = ran(capsys, *words, code=2)
    assert out == ""
    assert err.startswith(said), err


def test_what_the_environment_says_is_held_to_what_there_is(
    file: str, capsys: Print, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSELINE_DISABLE", "nope")
    said = "FL0104 unknown pass nope in the option disable"
    for command in ("opt", "repro", "bisect"):
        assert main([command, file]) == 2
        assert said in capsys.readouterr().err, command
    monkeypatch.setenv("FUSELINE_DISABLE", "cse")
    monkeypatch.setenv("FUSELINE_FUSELIMIT", "3")
    warn_of_unknown_variables.cache_clear()  # it warns once in a process
    _, err = ran(capsys, file, "-p", "dce")
    assert "FL0102 unknown option FUSELINE_FUSELIMIT in the environment" in err


def test_bytes_that_are_no_text(tmp_path: Path, capsys: Print) -> None:
    (tmp_path / "f.fl").write_bytes(b"func \xff")
    _, err = ran(capsys, str(tmp_path / "f.fl"), code=1)
    assert err == f"FL0301 this is no IR in {tmp_path / 'f.fl'}: found bytes that are no UTF-8.\n"


def test_a_pipe_of_two(file: str) -> None:
    """One command's output is another's input."""
    opt = [sys.executable, "-m", "fuseline.cli", "opt"]
    first = subprocess.run([*opt, "-p", "cse", file], capture_output=True, check=True)
    second = subprocess.run(
        [*opt, "-p", "dce"], input=first.stdout, capture_output=True, check=True
    )
    assert second.stdout.decode() == AFTER_DCE
