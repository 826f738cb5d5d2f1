"""`fuseline inspect`: what a file holds, whether its bytes are right, and what changed."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import fuseline
from fuseline.artifact.bounds import applies
from fuseline.artifact.inspecting import Opened
from fuseline.cli import main
from fuseline.cli.output import printable
from fuseline.runtime.plan import WORKERS, Evaluator, HostStep, NativeStep
from tests.artifact.mutate import Good
from tests.artifact.small import make, shared

Print = pytest.CaptureFixture[str]


def answer(capsys: Print) -> Any:
    return json.loads(capsys.readouterr().out)


def test_what_a_file_holds(capsys: Print) -> None:
    assert main(["inspect", str(shared()), "--json"]) == 0
    facts = answer(capsys)
    assert facts["model"] == "tests.artifact.small.Small"
    assert facts["licence"] == "Apache-2.0"
    assert facts["made_with"]["torch"] == torch.__version__
    assert facts["signature"] is None
    assert facts["weights"]["dtypes"] == {"float32": {"tensors": 3, "bytes": 4 * (16 + 768)}}
    assert facts["weights"]["zeros"] == {"tensors": 1, "bytes": 16}  # the counter
    (target,) = facts["targets"]
    assert target["title"] == "cpu:baseline"
    program = target["programs"]["main"]
    assert program["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["B", 16]}]
    assert program["state"] == [{"name": "count", "dtype": "float32", "shape": [4]}]
    assert program["results"][2] == {"dtype": "int64", "shape": ["B", 24]}
    assert program["sizes"] == {"B": {"least": 0, "most": 64}}
    assert program["steps"]["torch"] == 1
    assert [site["pattern"] for site in program["sites"]] == ["rms_norm"]
    assert {k["status"] for k in program["kernels"]} == {"native", "reference"}
    assert sum(m["size"] for m in facts["members"].values()) < facts["bytes"]


def test_memory_is_what_a_call_takes(capsys: Print) -> None:
    """The arena of the loaded program, for the same sizes."""
    model = fuseline.load(shared(), threads=1)
    for rows in (1, 7, 64):
        assert main(["inspect", str(shared()), "--json", "--at", f"B={rows}"]) == 0
        memory = answer(capsys)["targets"][0]["programs"]["main"]["memory"]
        bound = model.main.program.bind((rows,))
        assert memory["arena"] == bound.arena
        assert memory["at"] == {"B": rows}
        assert memory["results"] == 16 + 64 * rows


def test_the_text(capsys: Print) -> None:
    assert main(["inspect", str(shared()), "--full", "--verify"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "licence     Apache-2.0",
        "digests     all checked",
        "target cpu:baseline\n  x86_64 linux",
        "input      x: float32[B, 16]",
        "size       B in 0..64",
        "zeros              1 not stored  16 B",
        "temporary  2 x 96*B bytes",
        "sort at small.py",
        "fused  rms_norm",
        "weights.safetensors",
    ):
        assert part in shown, part


@pytest.mark.parametrize(
    ("given", "said"),
    [("B", "NAME=SIZE"), ("B=-1", "NAME=SIZE"), ("B=65", "0 to 64"), ("S=1", "one of B")],
)
def test_sizes_that_are_none(given: str, said: str, capsys: Print) -> None:
    assert main(["inspect", str(shared()), "--at", given]) == 2
    assert said in capsys.readouterr().err


def test_a_size_is_given_once(capsys: Print) -> None:
    assert main(["inspect", str(shared()), "--at", "B=3", "--at", "B=5"]) == 2
    assert "found B twice, expected one size of each" in capsys.readouterr().err


def test_verify_names_every_member_that_was_changed(tmp_path: Path, capsys: Print) -> None:
    good = Good(shared())
    data = bytearray(good.data)
    names = ["weights.safetensors", "binaries/cpu-baseline/main.so"]
    for name in names:
        data[data.index(good.members[name]) + len(good.members[name]) - 1] ^= 1
    path = tmp_path / "changed.fuse"
    path.write_bytes(data)
    assert main(["inspect", str(path)]) == 0, "digests are only read with --verify"
    capsys.readouterr()
    assert main(["inspect", str(path), "--verify", "--json"]) == 1
    wrong = answer(capsys)["wrong"]
    assert len(wrong) == 2
    for name in names:
        assert any(f"{path}, {name}" in w["title"] for w in wrong)
    assert {w["code"] for w in wrong} == {"FL1103"}


def test_no_file(tmp_path: Path, capsys: Print) -> None:
    assert main(["inspect", str(tmp_path / "none.fuse")]) == 1
    assert "FL1101" in capsys.readouterr().err


def test_nothing_in_a_file_reaches_the_terminal(tmp_path: Path, capsys: Print) -> None:
    """Text of a file could move the cursor, or say that all is well."""
    good = Good(shared())
    about = json.loads(json.dumps(good.manifest))
    about["licence"] = "free\x1b[2J\r\u202esigned"
    path = tmp_path / "odd.fuse"
    path.write_bytes(good.with_members({}, about))
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "free\\x1b[2J\\r\\u202esigned" in shown
    assert printable(shown) == shown


def test_two_builds_are_the_same(tmp_path: Path, capsys: Print) -> None:
    again = make(tmp_path / "again.fuse")
    assert again.read_bytes() == shared().read_bytes()
    assert main(["inspect", str(again), "--diff", str(shared()), "--json"]) == 0
    found = answer(capsys)
    assert found["same"]
    assert found["equal_manifests"]
    assert {k["status"] for k in found["targets"][0]["kernels"]} == {"same"}


def test_one_weight_that_changed(tmp_path: Path, capsys: Print) -> None:
    good = Good(shared())
    data = bytearray(good.members["weights.safetensors"])
    data[-1] ^= 1  # of the last tensor: the others have the digests that they had
    path = tmp_path / "trained.fuse"
    path.write_bytes(good.with_members({"weights.safetensors": bytes(data)}))
    assert main(["inspect", str(path), "--diff", str(shared()), "--json"]) == 1
    found = answer(capsys)
    assert not found["same"]
    assert [w["name"] for w in found["weights"]["changed"]] == ["down"]
    assert found["weights"]["same"] == 3
    assert found["targets"][0]["status"] == "same"
    assert main(["inspect", str(path), "--diff", str(shared())]) == 1
    assert "changed  down: float32[16, 24], sha256:" in capsys.readouterr().out


def test_another_model(tmp_path: Path, capsys: Print) -> None:
    """Other options, another target, other kernels: each is told."""
    other = make(tmp_path / "other.fuse", cpu_isa=("x86-64-v3", "baseline"), licence="MIT", seed=1)
    assert main(["inspect", str(other), "--diff", str(shared()), "--json"]) == 1
    found = answer(capsys)
    assert found["about"] == [{"what": "licence", "one": "Apache-2.0", "other": "MIT"}]
    assert {t["title"]: t["status"] for t in found["targets"]} == {
        "cpu:baseline": "same",
        "cpu:x86-64-v3": "new",
    }
    changed = {w["name"] for w in found["weights"]["changed"]}
    assert changed == {"norm", "up", "down"}
    kernels = {t["title"]: t["kernels"] for t in found["targets"]}
    fresh = kernels["cpu:x86-64-v3"]
    assert {k["symbol"] for k in fresh} == {k["symbol"] for k in kernels["cpu:baseline"]}
    assert fresh
    assert {k["status"] for k in fresh} == {"new"}
    assert main(["inspect", str(other), "--diff", str(shared())]) == 1
    _, _, shown = capsys.readouterr().out.partition("target cpu:x86-64-v3: new\n")
    assert re.search(rf"kernels +{len(fresh)} new\n", shown)
    assert re.search(r"new +program main\n", shown)
    assert main(["inspect", str(shared()), "--diff", str(other), "--json"]) == 1
    gone = next(t for t in answer(capsys)["targets"] if t["title"] == "cpu:x86-64-v3")
    assert gone["changes"] == [{"what": "program main", "status": "gone"}]
    assert {k["status"] for k in gone["kernels"]} == {"gone"}


def test_a_kernel_that_changed(tmp_path: Path, capsys: Print) -> None:
    good = Good(shared())
    name = next(n for n in good.members if n.startswith("sources/"))
    path = tmp_path / "other.fuse"
    library = "binaries/cpu-baseline/main.so"
    path.write_bytes(good.with_members({name: good.members[name] + b"// other\n"}))
    assert main(["inspect", str(path), "--diff", str(shared()), "--json"]) == 1
    kernels = answer(capsys)["targets"][0]["kernels"]
    changed = [k["symbol"] for k in kernels if k["status"] == "changed source"]
    assert changed == [Path(name).stem]
    path.write_bytes(good.with_members({library: good.members[library] + b"\0"}))
    assert main(["inspect", str(path), "--diff", str(shared()), "--json"]) == 1
    (target,) = answer(capsys)["targets"]
    assert target["changes"] == [{"what": "library of main", "status": "changed binary only"}]


def test_a_kernel_that_is_used_elsewhere_is_the_same(tmp_path: Path, capsys: Print) -> None:
    """The head of a source tells where in the model the kernel is from, and is not compiled."""
    good = Good(shared())
    name = next(n for n in good.members if n.startswith("sources/"))
    text = good.members[name]
    moved = text.replace(b"//   from ", b"//   from other.", 1)
    assert moved != text
    path = tmp_path / "other.fuse"
    path.write_bytes(good.with_members({name: moved}))
    main(["inspect", str(path), "--diff", str(shared()), "--json"])
    kernels = answer(capsys)["targets"][0]["kernels"]
    assert {k["status"] for k in kernels} == {"same"}


def test_kernels_tell_all_places_that_they_came_from(capsys: Print) -> None:
    main(["inspect", str(shared()), "--json"])
    (target,) = answer(capsys)["targets"]
    (program,) = target["programs"].values()
    sources = {k["symbol"]: k["sources"] for k in program["kernels"]}
    assert all(places for places in sources.values())
    main(["inspect", str(shared())])
    _, _, shown = capsys.readouterr().out.partition("made from\n")
    for symbol, places in sources.items():
        assert re.search(rf"{symbol} +{re.escape(places[0].rpartition(':')[0])}:", shown)


class Gated(nn.Module):
    """Products that are done by one kernel for few rows, and by another for many."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(32, 48, bias=False), nn.Linear(32, 48, bias=False)
        self.down = nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x)) + self.down(self.up(x))


def gated(path: Path, **options: Any) -> Path:
    sizes = ({0: torch.export.Dim("B", min=1, max=300)},)
    fuseline.export(
        Gated().eval(), (torch.ones(4, 32),), path=path, dynamic_shapes=sizes, **options
    )
    return path


@pytest.mark.slow
def test_decisions_are_what_runs(tmp_path: Path, capsys: Print) -> None:
    """For each size of each table, in order, the steps that the plan runs."""
    pytest.importorskip("triton", reason="compiling for GPUs needs Triton")
    path = gated(tmp_path / "gated.fuse", targets=["cpu", "sm_90"])
    opened = Opened.of(path)
    found = {t["name"]: t["programs"]["main"]["decisions"] for t in opened.facts()["targets"]}
    for (title, _), file in opened.programs.items():
        plan = file.plan.plan(cast("Any", dict.fromkeys(file.plan.ops)))
        tables = found[title.partition(":")[0]]
        known = {run["kernel"] for t in tables for row in t["rows"] for run in row["runs"]}
        assert sum(len(table["rows"]) > 1 for table in tables) >= 2
        for rows in (1, 2, 3, 8, 9, 16, 17, 33, 129, 300):
            value = Evaluator(plan)({"B": rows, WORKERS: 1})
            runs = Counter(
                run["kernel"]
                for table in tables
                for row in table["rows"]
                if row["least"] <= rows and (row["most"] is None or rows <= row["most"])
                for run in row["runs"] * table["ops"]
            )
            steps = [s for s in plan.steps if applies(s, value) and not isinstance(s, HostStep)]
            names = [s.symbol if isinstance(s, NativeStep) else s.name for s in steps]
            assert runs == Counter(n for n in names if n in known), (title, rows)
            assert {s.symbol for s in steps if isinstance(s, NativeStep) and s.when} <= known
    by = {run["by"] for tables in found.values() for t in tables for r in t["rows"]
          for run in r["runs"]}  # fmt: skip
    assert by == {"rule", "model"}
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"B: 1 +linear_small_\w+ +by rule", shown)
    assert re.search(r"B: 3 to 4 +linear_rows_\w+ +warps \d by model", shown)
    assert main(["inspect", str(path), "--full"]) == 0
    assert re.search(r"warps \d by model, of warps \d [0-9.]+ us", capsys.readouterr().out)


def test_ops_that_are_decided_alike_are_one_table(tmp_path: Path) -> None:
    """The two products of `down`, whose steps are the same."""
    opened = Opened.of(gated(tmp_path / "gated.fuse", cpu_isa=("baseline",)))
    (target,) = opened.facts()["targets"]
    tables = target["programs"]["main"]["decisions"]
    assert [t["ops"] for t in tables if t["op"] == "linear"]
    (file,) = opened.programs.values()
    native = Counter(s.symbol for s in file.plan.steps if isinstance(s, NativeStep))
    for table in tables:
        for row in table["rows"]:
            assert all(native[run["kernel"]] >= table["ops"] for run in row["runs"])


class Step(nn.Module):
    """One kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) * 3 + x


def test_kernels_of_a_gpu(tmp_path: Path, capsys: Print) -> None:
    """Registers, shared memory, spills, size, and what each was chosen from; no GPU is needed."""
    pytest.importorskip("triton", reason="compiling for GPUs needs Triton")
    path = tmp_path / "gpu.fuse"
    fuseline.export(Step(), (torch.ones(8, 32),), path=path, targets=["sm_90"], emit="both")
    assert main(["inspect", str(path), "--json", "--verify"]) == 0
    facts = answer(capsys)
    (kernel,) = facts["targets"][0]["programs"]["main"]["kernels"]
    assert kernel["resources"]["registers"] > 0
    assert kernel["resources"]["spills"] == 0
    assert kernel["warps"] > 0
    assert kernel["cubin"]["size"] == kernel["resources"]["bytes"]
    assert kernel["ptx"]["member"].endswith(".ptx")
    assert kernel["choices"]
    assert main(["inspect", str(path), "--full"]) == 0
    shown = capsys.readouterr().out
    assert "registers" in shown
    assert "by model" in shown
