"""`fuseline bisect` names what breaks a compilation: planted faults of every kind."""

from __future__ import annotations

import json
import math
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from fuseline.cli import main
from fuseline.codegen.cpu.norm import NormKernel
from fuseline.frontend.captured import Captured
from fuseline.frontend.importer import import_captured
from fuseline.ir.core import Func, Value
from fuseline.ir.ops.pointwise import Abs, Add, Neg, Sub
from fuseline.passes.rewrite import FuncPass, Rewrite
from tests.debug.cases import GOOD, LOAD, PIPELINES, PLANTED, answer

Print = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class PlantedDrop(FuncPass):
    """Loses the last addition, as a pass over the whole func."""

    def run(self, func: Func) -> None:
        adds = [op for op in func.ops if isinstance(op, Add)]
        func.edit(replace_values={adds[-1].y: adds[-1].lhs})


@dataclass(frozen=True)
class PlantedRaise(Rewrite[Sub], root=Sub):
    """Raises at the first subtraction."""

    def rewrite(self, op: Sub, func: Func) -> None:
        raise ZeroDivisionError("planted")


@pytest.mark.parametrize(
    ("name", "number", "place"),
    [("eps", 10, "3#1"), ("order", 5, "4.parts.2#1")],
)
def test_one_rewrite_is_named(
    planted_model: Path, capsys: Print, name: str, number: int, place: str
) -> None:
    code, found = answer(capsys, "bisect", str(planted_model), *LOAD, "-p", PIPELINES[name])
    assert code == 0
    assert (found["found"], found["number"], found["alone"]) == ("rewrite", number, True)
    assert found["name"] == f"{found['pass']}@{place}"
    assert found["pass"].startswith("planted-")
    assert "planted_model.py:" in found["where"]
    assert found["searched"] <= 2 + math.log2(found["rewrites"])
    assert found["together_with"] == []


def test_what_is_removed_and_added_is_shown(planted_model: Path, capsys: Print) -> None:
    """With the names and types that it had, so that the lost eps can be seen."""
    _, found = answer(capsys, "bisect", str(planted_model), *LOAD, "-p", PIPELINES["eps"])
    add, norm = found["removed"]
    assert " = add " in add
    assert "eps = 0.25" in norm
    (fused,) = found["added"]
    assert "add_rms_norm" in fused
    assert "eps = 1e-06" in fused
    assert norm.split(" = ")[0] in fused.split(" = ")[0]
    assert add.endswith(": f32[5, 24]")


def test_a_fault_that_needs_another_rewrite(planted_model: Path, capsys: Print) -> None:
    code, found = answer(capsys, "bisect", str(planted_model), *LOAD, "-p", PIPELINES["together"])
    assert code == 0
    assert found["name"] == "planted-linear-add@0#1"
    assert found["alone"] is False
    (partner,) = found["together_with"]
    assert partner["name"] == "fuse-add-rms-norm@0#1"
    assert not partner["enables"], "the fused product is made without the norm, too, and is right"
    assert found["searched"] <= 2 + math.log2(found["rewrites"])


@pytest.mark.parametrize("name", PIPELINES)
def test_turning_it_off_mends_it(planted_model: Path, capsys: Print, name: str) -> None:
    """The option that is printed for the one rewrite, where it is the only one that is wrong."""
    words = (str(planted_model), *LOAD, "-p", PIPELINES[name])
    _, found = answer(capsys, "bisect", *words)
    off = [f"disable={found['pass']}"]
    off += [f"skip-rewrites={found['name']}"] if name != "together" else []
    for option in off:
        _, again = answer(capsys, "bisect", *words, "--set", option)
        assert again["found"] == "nothing", option


def test_people_are_told(planted_model: Path, capsys: Print) -> None:
    assert main(["bisect", str(planted_model), *LOAD, "-p", PIPELINES["together"]]) == 0
    printed = capsys.readouterr()
    assert "rewrite #13 of 18 breaks it: planted-linear-add" in printed.out
    assert "no: only together with #7 fuse-add-rms-norm@0#1" in printed.out
    assert "FUSELINE_SKIP_REWRITES='planted-linear-add@0#1'" in printed.out
    assert "compilation 5: 13 of 18 rewrites: bad" in printed.err


def test_the_session_in_the_docs_is_what_is_printed(planted_model: Path, capsys: Print) -> None:
    """Apart from the errors, which depend on the inputs."""
    page = (Path(__file__).parents[2] / "docs" / "debugging.md").read_text()
    for pipeline in PIPELINES.values():
        assert main(["bisect", str(planted_model), *LOAD, "-p", pipeline]) == 0
        lines = capsys.readouterr().out.splitlines()
        for line in lines:
            assert "  check  " in line or line in page, line


def test_where_nothing_fails(planted_model: Path, capsys: Print) -> None:
    code, found = answer(capsys, "bisect", str(planted_model), "-p", GOOD)
    assert (code, found["found"]) == (1, "nothing")
    assert found["compilations"] == 2, "of the passes, and with kernels"


def test_a_pass_over_the_whole_func(planted_model: Path, capsys: Print) -> None:
    pipeline = f"{GOOD},{PlantedDrop.name}"
    code, found = answer(capsys, "bisect", str(planted_model), "-p", pipeline)
    assert code == 0
    assert (found["found"], found["pass"]) == ("pass", PlantedDrop.name)


def test_a_pass_that_spoils_what_a_rewrite_leaves(tmp_path: Path, capsys: Print) -> None:
    """The rewrite is right; what it leaves is an addition more, which the later pass loses."""
    file = tmp_path / "f.fl"
    file.write_text(
        "func @f(%x: f32[4], %y: f32[4]) {\n  %n = neg %y\n  %s = sub %x, %n\n"
        "  %t = add %s, %x\n  %u = mul %t, %t\n  return %s\n}\n"
    )
    code, found = answer(
        capsys, "bisect", str(file), "-p", f"{PlantedAddOfSub.name},{PlantedDropFirst.name}"
    )
    assert code == 0
    assert (found["found"], found["pass"]) == ("rewrite", PlantedAddOfSub.name)
    assert found["later_pass"] == PlantedDropFirst.name


@dataclass(frozen=True)
class PlantedAddOfSub(Rewrite[Sub], root=Sub):
    """``x - y`` is ``x + -y``."""

    def rewrite(self, op: Sub, func: Func) -> dict[Any, Any]:
        from fuseline.ir.ops.pointwise import Neg

        return {op.y: Add(op.lhs, Neg(op.rhs).y).y}


@dataclass(frozen=True)
class PlantedDropFirst(FuncPass):
    """Loses every addition to a negated value."""

    def run(self, func: Func) -> None:
        for op in func.ops:
            if isinstance(op, Add) and op.rhs.owner is not None and op.rhs.owner.name == "neg":
                func.edit(replace_values={op.y: op.lhs})


def test_a_pass_that_raises(tmp_path: Path, capsys: Print) -> None:
    file = tmp_path / "f.fl"
    file.write_text("func @f(%x: f32[4], %y: f32[4]) {\n  %s = sub %x, %y\n  return %s\n}\n")
    words = (str(file), "-p", f"cse,{PlantedRaise.name}", "--check", "raises")
    code, found = answer(capsys, "bisect", *words)
    assert code == 0
    assert (found["found"], found["pass"]) == ("pass", PlantedRaise.name)
    assert "ZeroDivisionError: planted" in found["said"]


def test_a_command_is_the_check(planted_model: Path, tmp_path: Path, capsys: Print) -> None:
    """It sees what is compiled in its environment, and tells by its exit status."""
    script = tmp_path / "check.py"
    script.write_text(
        "import json, os, sys\n"
        "limit = int(os.environ.get('FUSELINE_FUSE_LIMIT', 99))\n"
        "only = os.environ.get('FUSELINE_ONLY_REWRITES', '').split(',')\n"
        "disabled = os.environ.get('FUSELINE_DISABLE', '')\n"
        "alone = 'planted-add-norm@3#1' in only\n"
        "open(sys.argv[1] + '.log', 'a').write(f'{limit} {len(only)} {disabled}\\n')\n"
        "sys.exit(125 if limit == 9 else alone or (only == [''] and limit >= 10))\n"
    )
    command = f"{shlex.quote(sys.executable)} {script} {tmp_path}/seen {{}}"
    words = (str(planted_model), *LOAD, "-p", PIPELINES["eps"], "--check", command)
    code, found = answer(capsys, "bisect", *words)
    assert code == 0
    assert (found["number"], found["alone"]) == (10, True)
    assert found["not_told"] == [9]
    lines = (tmp_path / "seen.log").read_text().splitlines()
    assert len(lines) == found["compilations"]


def test_a_kernel_is_named(
    planted_model: Path, capsys: Print, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The rewrites are right, and the template of a kernel is not."""
    monkeypatch.setenv("FUSELINE_CACHE_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    render = NormKernel.render

    def wrong(self: NormKernel) -> str:
        text = render(self)
        assert "0.25" in text or "1e-06" in text
        return text.replace("0.25", "0.5")

    monkeypatch.setattr(NormKernel, "render", wrong)
    code, found = answer(capsys, "bisect", str(planted_model), "-p", GOOD)
    assert code == 0
    assert (found["found"], found["alone"]) == ("kernel", True)
    assert found["template"].endswith(".cpp.jinja")
    assert found["where"].startswith("3 (planted_model.py:")


@pytest.fixture
def in_planted(monkeypatch: pytest.MonkeyPatch) -> str:
    """The model itself, by name."""
    torch.compiler.reset()
    monkeypatch.chdir(PLANTED)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return "planted_model:make"


def test_a_model_is_bisected_with_its_own_weights(in_planted: str, capsys: Print) -> None:
    code, found = answer(capsys, "bisect", in_planted, *LOAD, "-p", PIPELINES["eps"])
    assert (code, found["name"], found["alone"]) == (0, "planted-add-norm@3#1", True)


def test_what_is_wrong_before_all_passes(
    in_planted: str, capsys: Print, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import that loses an addition: the graph is right by itself, but not the model's."""

    def wrong(captured: Captured) -> Func:
        func = import_captured(captured)
        PlantedDrop().run(func)
        return func

    monkeypatch.setattr("fuseline.captures.import_captured", wrong)
    code, found = answer(capsys, "bisect", in_planted, "-p", "cse")
    assert (code, found["found"], found["pass"]) == (0, "before", "")
    assert "eager's" in found["said"]


def test_json_of_a_file_that_is_missing(capsys: Print) -> None:
    assert main(["bisect", "nothing.fl", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "FL0830"


BESIDE = """func @f(%x: f32[16, 64], %s: f32[4]) {
  %e = exp %x
  %large = exp %e
  %small = neg %s
  return %large, %small
}
"""


@dataclass(frozen=True)
class PlantedSign(Rewrite[Neg], root=Neg):
    """What is negative becomes what is positive."""

    def rewrite(self, op: Neg, func: Func) -> dict[Value, Value]:
        return {op.y: Abs(op.x).y}


def test_a_small_wrong_result_beside_a_large_one(tmp_path: Path, capsys: Print) -> None:
    path = tmp_path / "beside.fl"
    path.write_text(BESIDE)
    _, found = answer(capsys, "bisect", str(path), "-p", PlantedSign.name)
    assert found["name"].startswith(f"{PlantedSign.name}@")


def test_opt_is_a_check(planted_model: Path, capsys: Print) -> None:
    """It obeys the variables that a trial is told by."""
    words = [*LOAD, "-p", PIPELINES["eps"]]
    opt = shlex.join([sys.executable, "-m", "fuseline.cli", "opt", *words])
    check = f"{opt} {{}} | (! grep -q add_rms_norm)"
    _, found = answer(capsys, "bisect", str(planted_model), *words, "--check", check)
    assert found["pass"] == "planted-add-norm"


@pytest.mark.parametrize("command", ["kill -9 $$", "no-such-command-of-this-test"])
def test_a_command_that_cannot_run_is_no_verdict(
    tmp_path: Path, capsys: Print, command: str
) -> None:
    path = tmp_path / "it's.fl"
    path.write_text(BESIDE)
    assert main(["bisect", str(path), "--check", command]) == 2
    assert "FL0103 wrong argument --check" in capsys.readouterr().err
    code, found = answer(capsys, "bisect", str(path), "--check", "test -f {}")
    assert (code, found["found"]) == (1, "nothing")


@dataclass(frozen=True)
class PlantedKnot(Rewrite[Add], root=Add):
    """Gives what is made of the sum itself."""

    def rewrite(self, op: Add, func: Func) -> dict[Value, Value]:
        return {op.y: next(iter(func.users(op.y))).results[0]}


def test_a_rewrite_that_ties_a_knot(planted_model: Path, capsys: Print) -> None:
    """Its result reads itself: nothing is there to be shown in order."""
    words = (str(planted_model), "-p", f"{PlantedKnot.name},{GOOD}")
    code, found = answer(capsys, "bisect", *words)
    assert code == 0
    assert found["pass"] == PlantedKnot.name
