"""Programs that ``torch.export`` has captured, written to artifacts, with their own dims."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.export.graph_signature import OutputKind

from fuseline.artifact.load import Loaded, load
from fuseline.errors import ArtifactError, InputError, UsageError
from fuseline.exporting import export
from fuseline.exporting.capture import Model
from tests.codegen import oracle

DATA = {"x": {0: torch.export.Dim("rows", min=2, max=64)}, "scale": None, "flag": None}


def seeded(*shape: int, seed: int = 0) -> Tensor:
    """Numbers that are the same in every run."""
    return oracle.seeded(*shape, dtype=torch.float32, seed=seed)


class Block(nn.Module):
    """Parameters, a buffer that counts, one that is not stored, a literal; a dict of results."""

    def __init__(self) -> None:
        super().__init__()
        cast("Any", torch).manual_seed(0)
        self.inner = nn.Linear(12, 7)
        self.calls: Tensor
        self.table: Tensor
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("table", seeded(7), persistent=False)

    def forward(self, x: Tensor, *, scale: Tensor | None, flag: bool = True) -> dict[str, Any]:
        self.calls.add_(1)
        y = self.inner(x) * self.table + torch.tensor([2.0])
        y = y if scale is None else y * scale
        return {"y": y if flag else -y, "rows": x.shape[0], "nothing": None}


def captured(model: nn.Module, *args: Any, shapes: Any = None, **kwargs: Any) -> Any:
    with torch.no_grad():
        trace = cast("Any", torch.export.export)
        return trace(model.eval(), args, kwargs, dynamic_shapes=shapes, strict=False)


def block() -> Any:
    return captured(Block(), seeded(3, 12), shapes=DATA, scale=None, flag=True)


def saved(program: Any, folder: Path) -> Any:
    torch.export.save(program, folder / "program.pt2")
    return torch.export.load(folder / "program.pt2")


def functional(program: Any, folder: Path) -> Any:
    del folder
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own code
        return program.run_decompositions({})


def plain(program: Any, folder: Path) -> Any:
    del folder
    return program


def both(program: Any, folder: Path) -> Any:
    return saved(functional(program, folder), folder)


FORMS = pytest.mark.parametrize("form", [plain, saved, functional, both])


def exported(folder: Path, program: Any, **options: Any) -> Loaded:
    return load(export(program, path=folder / "model.fuse", **options).path, threads=1)


@FORMS
def test_dims_state_and_constants_are_the_programs_own(tmp_path: Path, form: Any) -> None:
    program = block()
    before = str(program.graph)
    loaded = exported(tmp_path, form(program, tmp_path))
    assert str(program.graph) == before
    assert set(loaded.manifest.weights.tensors) >= {"inner.weight", "inner.bias", "calls", "table"}
    model = Block()
    for count, rows in enumerate((3, 2, 64, 17), 1):
        x = seeded(rows, 12, seed=rows)
        with torch.no_grad():
            want = model(x, scale=None)
        found = loaded(x)
        torch.testing.assert_close(found["y"], want["y"], atol=2e-6, rtol=2e-6)
        assert (found["rows"], found["nothing"]) == (rows, None)
        assert int(loaded.main.state["calls"]) == count
    for rows in (1, 65):
        with pytest.raises(InputError, match="FL0902"):
            loaded(seeded(rows, 12))
    with pytest.raises(ArtifactError, match="FL1108"):
        loaded(seeded(3, 12), scale=None, flag=False)


class InPlace(nn.Module):
    """Writes an input, gives what was there before, a view, and an input as it is."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        before = x.clone()
        x.add_(y)
        return before, x[1:], x.sum(), y


@FORMS
def test_writes_into_inputs(tmp_path: Path, form: Any) -> None:
    program = captured(InPlace(), seeded(4), seeded(4, seed=1))
    loaded = exported(tmp_path, form(program, tmp_path))
    x, y = seeded(4, seed=2), seeded(4, seed=3)
    want_x = x.clone()
    want = InPlace()(want_x, y)
    found = loaded(x, y)
    torch.testing.assert_close(x, want_x)
    for ours, theirs in zip(found, want, strict=True):
        torch.testing.assert_close(ours, theirs)


class Sizes(nn.Module):
    """Takes an integer."""

    def forward(self, x: Tensor, n: int) -> Tensor:
        return x[:n] * n


def test_integers(tmp_path: Path) -> None:
    dynamic = torch.export.Dim.DYNAMIC
    program = captured(Sizes(), seeded(9), 4, shapes=(None, dynamic))
    loaded = exported(tmp_path, saved(program, tmp_path))
    for n in (2, 4, 9):
        torch.testing.assert_close(loaded(seeded(9), n), seeded(9)[:n] * n)


def test_a_program_for_a_gpu_without_one(tmp_path: Path) -> None:
    made = export(block(), path=tmp_path / "model.fuse", targets=("cpu", "sm_80"))
    assert [target.name for target in made.manifest.targets] == ["cpu", "sm_80"]
    assert made.manifest.targets[1].kernels
    assert made.manifest.model == "torch.export.exported_program.ExportedProgram"


def test_wrong_uses(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"FL0101.*inputs for a ExportedProgram"):
        export(block(), (seeded(3, 12),), path=tmp_path / "model.fuse")
    with pytest.raises(ArtifactError, match=r"FL1107.*nn.Module"):
        export(cast("Model", "model.pt2"), path=tmp_path / "model.fuse")
    assert not list(tmp_path.iterdir())


class Pair(nn.Module):
    """One product."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ x


def test_outputs_that_no_caller_gets_are_refused(tmp_path: Path) -> None:
    """As a training step has them, which gives gradients."""
    program = captured(Pair(), seeded(3, 3))
    program.graph_signature.output_specs[0].kind = OutputKind.LOSS_OUTPUT
    with pytest.raises(ArtifactError, match=r"FL1107.*an output that is a LOSS_OUTPUT"):
        export(program, path=tmp_path / "model.fuse")


class Branching(nn.Module):
    """Cannot be captured whole."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if bool(x.sum() > 0) else x - 1


def test_only_our_diagnostic_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Torch prints the graph so far, twice, and logs: that goes to our log, for debugging."""
    caplog.set_level(logging.DEBUG, "fuseline")
    with pytest.raises(ArtifactError, match=r"FL1107.*data-dependent"):
        export(Branching(), (seeded(4),), path=tmp_path / "model.fuse")
    assert capfd.readouterr().err == ""
    assert "def forward(self, arg0_1" in caplog.text
    assert not hasattr(__import__("torch.export._trace", fromlist=["_trace"]), "print")
