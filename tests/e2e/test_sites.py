"""The sites of small models, as a user reads them in the report."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import fuseline
from fuseline.report import Report


class Block(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(16)
        self.mlp = nn.Linear(16, 16)
        self.after = nn.RMSNorm(16)
        self.out = nn.Linear(16, 16)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.mlp(self.norm(hidden))
        return hidden + self.out(self.after(hidden))


class Net(nn.Module):
    """An embedding, two blocks, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 16)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.RMSNorm(16)
        self.head = nn.Linear(16, 10, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(self.norm(hidden))


IDS = torch.tensor([[1, 2, 3]])


def report_of(model: nn.Module, *args: Tensor, cache: Path, **options: Any) -> Report:
    compiled: Any = fuseline.compile(model.eval(), cache_dir=cache, **options)
    with torch.no_grad():
        compiled(*args)
    return compiled.report()


def test_a_norm_without_an_addition_before_it_is_one_fused_norm(tmp_path: Path) -> None:
    model = nn.Sequential(nn.RMSNorm(16), nn.Linear(16, 16))
    report = report_of(model, torch.ones(3, 16), cache=tmp_path)
    assert [(s.pattern, s.status) for s in report.sites] == [("rms_norm", "fused")]


def test_each_norm_of_a_model_is_one_site(tmp_path: Path) -> None:
    """The first norm stands alone; every other one follows a residual addition."""
    report = report_of(Net(), IDS, cache=tmp_path)
    found = sorted((s.where.partition(" ")[0], s.pattern, s.status) for s in report.sites)
    assert found == [
        ("layers.0.after", "add_rms_norm", "fused"),
        ("layers.0.norm", "rms_norm", "fused"),
        ("layers.1.after", "add_rms_norm", "fused"),
        ("layers.1.norm", "add_rms_norm", "fused"),
        ("norm", "add_rms_norm", "fused"),
    ]


def test_modules_traced_by_themselves_keep_their_paths_from_the_root(tmp_path: Path) -> None:
    """A module that runs outside leaves its layer in pieces, and the loop over layers untraced."""
    report = report_of(Net(), IDS, cache=tmp_path, eager=("layers.1.mlp",))
    wheres = [s.where for s in report.sites] + [k.origin for k in report.kernels]
    found = {where.partition(" ")[0] for where in wheres}
    assert {"layers.0.norm", "layers.0.after", "layers.1.norm", "layers.1.after"} <= found
    assert all(where.startswith(("layers.", "norm", "head", "embed")) for where in wheres), wheres


def test_a_module_of_torch_alone_is_called_by_its_class(tmp_path: Path) -> None:
    report = report_of(nn.Linear(16, 16), torch.ones(3, 16), cache=tmp_path)
    assert [k.origin for k in report.kernels] == ["Linear"]
    report = report_of(nn.RMSNorm(16), torch.ones(3, 16), cache=tmp_path)
    assert [s.where for s in report.sites] == ["RMSNorm"]


def test_places_are_lines_of_the_users_and_not_of_torch(tmp_path: Path) -> None:
    report = report_of(Net(), IDS, cache=tmp_path)
    assert all("(test_sites.py:" in site.where for site in report.sites)


def test_reasons_name_arguments_as_the_signature_does(tmp_path: Path) -> None:
    def two(left: Tensor, weight: Tensor, other: Tensor) -> Tensor:
        return nn.functional.linear(left, weight) + nn.functional.linear(left, other)

    compiled: Any = fuseline.compile(two, cache_dir=tmp_path)
    compiled(torch.ones(2, 3), torch.ones(4, 3), torch.ones(4, 3))
    reasons = [site.reason for site in compiled.report().sites]
    assert any("comes from argument weight, not from a parameter" in r for r in reasons), reasons


def test_a_fused_site_names_its_kernel(tmp_path: Path) -> None:
    report = report_of(Net(), IDS, cache=tmp_path)
    kernels = {k.symbol: k.op for k in report.kernels}
    assert all(kernels[s.kernel] == s.pattern for s in report.sites), report.sites


class Held(nn.Module):
    """Modules found by odd keys, and under other names than ``self``, after a graph break."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first = nn.RMSNorm(8), nn.RMSNorm(8)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        held = {"a\\b'": self.first}
        last = self.last
        torch._dynamo.graph_break()  # pyright: ignore[reportPrivateUsage]
        return last(held["a\\b'"](x) + 1) + nn.functional.rms_norm(others[0], (8,))


def test_names_after_a_graph_break_are_those_of_the_root_or_none(tmp_path: Path) -> None:
    report = report_of(Held(), torch.ones(3, 8), torch.ones(3, 8), cache=tmp_path)
    places = [site.where.split(" ")[0] for site in report.sites if "norm" in site.pattern]
    line = inspect.getsourcelines(Held.forward)[1] + 4
    assert sorted(places) == ["first", "last", f"test_sites.py:{line}"]


def test_more_arguments_are_named_after_the_one_that_takes_them(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, *scales: Tensor) -> Tensor:
            return torch.cat([x, scales[1]], -1) @ scales[0]

    compiled: Any = fuseline.compile(Scaled(), cache_dir=tmp_path, dump_dir=tmp_path / "dump")
    with torch.no_grad():
        compiled(torch.ones(2, 3), torch.ones(6, 4), torch.ones(2, 3))
    (text,) = (path.read_text() for path in (tmp_path / "dump").glob("*/00-imported.fl"))
    assert all(f"%{name}: f32" in text for name in ("x", "scales_0", "scales_1")), text


def test_a_site_whose_op_has_no_kernel_says_so() -> None:
    """Raised, but run by the plain lowering: float64 has no kernel of norms."""
    norm = nn.RMSNorm(6, eps=1e-6).double()
    compiled = fuseline.compile(norm)
    with torch.no_grad():
        compiled(torch.ones(2, 6, dtype=torch.float64))
    (site,) = [s for s in cast("Any", compiled).report().sites if s.pattern == "rms_norm"]
    assert site.kernel == ""
    assert "f64" in site.details["no kernel"]
