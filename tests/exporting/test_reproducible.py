"""The same model gives the same bytes, wherever it is exported; what is another is told by name."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fuseline.artifact.archive import Archive
from fuseline.artifact.differences import differences
from fuseline.artifact.inspecting import Opened
from fuseline.exporting import export
from tests.cli.helpers import save_directory
from tests.exporting.test_export import seeded

ROWS = torch.export.Dim("rows", min=1, max=64)


class Mixed(nn.Module):
    """Products that are merged, a tied one, a turned one, state, a constant of the code."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(1 + 0.1 * seeded(48, seed=1))
        self.q, self.k, self.v = (nn.Linear(48, n, bias=n == 40) for n in (40, 24, 24))
        self.out, self.back = nn.Linear(40, 48, bias=False), nn.Linear(40, 48, bias=False)
        self.turned = nn.Parameter(seeded(48, 24, seed=2).t())
        self.calls: Tensor
        self.register_buffer("calls", torch.ones(3))
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                if parameter.is_contiguous():
                    parameter.copy_(seeded(*parameter.shape, seed=10 + number))
        self.back.weight = self.out.weight

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.calls.add_(1)
        y = nn.functional.rms_norm(x, (48,), self.scale)
        q = self.q(y)
        table = torch.tensor([1.0, 0.5])
        both = self.out(q) + self.back(q * 2) * table[1]
        return both, self.k(y) * self.v(y), y @ self.turned.t()


def written(path: Path, change: Mapping[str, float], **options: Any) -> Path:
    """The file of the model, some parameters or buffers of which have another last element."""
    model = Mixed().eval()
    with torch.no_grad():
        for name, by in change.items():
            tensor = model.get_parameter(name) if name != "calls" else model.calls
            tensor[(-1,) * tensor.dim()] += by
    path.parent.mkdir(exist_ok=True)
    given: dict[str, Any] = {"cpu_isa": ("baseline",), "dynamic_shapes": ({0: ROWS},), **options}
    return export(model, (seeded(5, 48),), path=path, **given).path


@pytest.mark.parametrize("embed", [True, False], ids=["embedded", "beside"])
def test_a_weight_that_changed_is_named(tmp_path: Path, embed: bool) -> None:
    """Also one that is merged with others, tied, turned in memory, or state; and nothing else."""
    before = Opened.of(written(tmp_path / "before" / "m.fuse", {}, embed_weights=embed))
    tensors = set(before.tensors())
    cases = {"out.weight": {"out.weight", "back.weight"} & tensors, "k.weight": {"k.weight"}}
    cases |= {name: {name} for name in ("scale", "turned", "calls") if embed}
    assert set().union(*cases.values()) <= tensors
    for name, expected in cases.items():
        now = Opened.of(written(tmp_path / name / "m.fuse", {name: 0.5}, embed_weights=embed))
        found = differences(before, now)
        assert {w["name"] for w in found["weights"]["changed"]} == expected
        assert found["weights"]["same"] == len(tensors) - len(expected)
        assert found["about"] == found["native"] == []
        assert {t["status"] for t in found["targets"]} == {"same"}
        one, other = before.tensors(), now.tensors()
        assert len({one[n]["sha256"] for n in tensors} - {t["sha256"] for t in other.values()}) == 1
        changed = {n for n, m in before.manifest.members.items() if now.manifest.members[n] != m}
        assert changed == ({"weights.safetensors"} if embed else set())


def test_an_option_that_changed_tells_the_kernels(tmp_path: Path) -> None:
    """Without merging, the merged product's kernels are gone, and the others what they were."""
    before = Opened.of(written(tmp_path / "before.fuse", {}))
    now = Opened.of(written(tmp_path / "now.fuse", {}, disable=("merge-linears",)))
    found = differences(before, now)
    assert not found["same"]
    (target,) = found["targets"]
    status = {kernel["symbol"]: kernel["status"] for kernel in target["kernels"]}
    sources = [
        {k["symbol"] for k in opened.facts()["targets"][0]["programs"]["main"]["kernels"]}
        for opened in (before, now)
    ]
    assert {s for s, what in status.items() if what == "same"} == sources[0] & sources[1]
    assert set(status.values()) > {"same"}
    assert any("merged_linear" in change["what"] for change in target["changes"])
    assert found["weights"]["changed"] == []


def test_a_file_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    """Nor the user, whose home is often where Python is."""
    path = written(tmp_path / "m.fuse", {})
    data = path.read_bytes()
    folders = {sys.prefix, sys.base_prefix, str(Path.home()), str(Path.cwd()), str(tmp_path)}
    folders |= {os.environ["FUSELINE_CACHE_DIR"], str(Path(torch.__file__).parent)}
    assert {folder for folder in folders if len(folder) > 1 and folder.encode() in data} == set()


EXPORT = """
import sys
from pathlib import Path
from fuseline.cli import main
sys.exit(main(sys.argv[1:]))
"""


def by_command(folder: Path, *arguments: str, cache: Path, seed: str) -> Path:
    """The file that a process of its own has written into a folder."""
    folder.mkdir(parents=True)
    cache.mkdir(mode=0o700, exist_ok=True)
    environment = {
        **{n: v for n, v in os.environ.items() if not n.startswith("FUSELINE_")},
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "PYTHONHASHSEED": seed,
        "FUSELINE_CACHE_DIR": str(cache),
    }
    words = [sys.executable, "-c", EXPORT, "export", *arguments, "-o", f"{seed}.fuse"]
    done = subprocess.run(
        words, capture_output=True, text=True, env=environment, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.iterdir()
    return path


def assert_same(one: Path, other: Path) -> None:
    """The same bytes; where they are not, the members that differ are told."""
    files = [Archive.open(path) for path in (one, other)]
    digests = [{n: hashlib.sha256(f.read(n)).hexdigest() for n in f.names} for f in files]
    assert digests[0] == digests[1]
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "arguments",
    [
        ("--decode", "static:64", "--target", "cpu", "--target", "sm_90"),
        ("--input", "input_ids:int64[B=1..4,S=1..64]", "--dtype", "bfloat16"),
    ],
    ids=["decode", "forward"],
)
def test_processes_write_the_same_bytes(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """In other folders, with other hashes of strings, an empty cache, a warm one, another one."""
    if "sm_90" in arguments:
        pytest.importorskip("triton", reason="compiling for GPUs needs Triton")
    save_directory(tmp_path / "llama")
    model = str(tmp_path / "llama")
    one, other = tmp_path / "cache", tmp_path / "another-and-longer-cache"
    first = by_command(tmp_path / "a", model, *arguments, cache=one, seed="1")
    assert_same(first, by_command(tmp_path / "b" / "c", model, *arguments, cache=one, seed="2"))
    assert_same(
        first, by_command(tmp_path / "deep" / "er", model, *arguments, cache=other, seed="3")
    )
