"""The binaries of a file for a GPU, as they are given to what launches them; no GPU is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fuseline
from fuseline.artifact.archive import Archive
from fuseline.artifact.choose import Choice
from fuseline.artifact.manifest import Manifest
from fuseline.artifact.on_gpu import Gpu
from fuseline.config import Config
from fuseline.errors import ArtifactError
from fuseline.runtime.gpu.kernels import Launcher


class Step(nn.Module):
    """One kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) * 3 + x


@pytest.mark.parametrize("ptx", [False, True], ids=["cubin", "ptx"])
def test_binaries_are_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ptx: bool
) -> None:
    pytest.importorskip("triton")
    made: list[Any] = []
    monkeypatch.setattr(Launcher, "of", made.append)  # that one needs a driver
    path = tmp_path / "step.fuse"
    fuseline.export(Step(), (torch.ones(8, 32),), path=path, targets=["sm_90"], emit="both")
    archive = Archive.open(path)
    manifest = Manifest.of(archive)
    (target,) = manifest.targets
    library: Any = object()
    choice = Choice(target, torch.device("cuda", 0), ptx)
    gpu = Gpu(archive, manifest, choice, Config(), library)
    assert made == [library]
    kernels = gpu.kernels(target.kernels)
    assert kernels.target == "sm_90"
    assert kernels.binaries.keys() == target.kernels.keys()
    for symbol, known in target.kernels.items():
        member = known.ptx if ptx else known.cubin
        assert member is not None
        binary = kernels.binaries[symbol]
        assert binary.cubin == archive.read(member) + b"\0" * ptx  # the driver reads PTX to a NUL
        assert (binary.warps, binary.parameters) == (known.warps, known.parameters)
    data = bytearray(path.read_bytes())
    (known, *_) = target.kernels.values()
    assert known.cubin is not None
    at = data.index(archive.read(known.cubin))
    data[at + 100] ^= 1
    (tmp_path / "other.fuse").write_bytes(data)
    changed = Archive.open(tmp_path / "other.fuse")
    choice = Choice(target, torch.device("cuda", 0))
    with pytest.raises(ArtifactError, match="FL1103"):
        Gpu(changed, manifest, choice, Config(), library).kernels(target.kernels)
