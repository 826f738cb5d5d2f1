"""Models written as ONNX: names, state, ties, weights beside, metadata, and what is refused."""

from __future__ import annotations

import hashlib
import resource
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast
from unittest import mock

import onnx
import pytest
import torch
from torch import Tensor, nn

import fuseline
from fuseline.errors import ArtifactError, LoadError, UsageError
from fuseline.exporting.onnx import file
from fuseline.frontend.onnx import import_onnx
from tests.exporting.onnx.running import seeded
from tests.onnx.models import by_onnxruntime

ROWS = torch.export.Dim("rows", min=1, max=64)


class Block(nn.Module):
    """A norm, products of which two have one weight, a buffer that counts, a nested result."""

    def __init__(self) -> None:
        super().__init__()
        cast("Any", torch).manual_seed(0)
        self.norm = nn.RMSNorm(48, eps=1e-6)
        self.q, self.k = nn.Linear(48, 40), nn.Linear(48, 24)
        self.out = nn.Linear(40, 48, bias=False)
        self.back = nn.Linear(40, 48, bias=False)
        self.back.weight = self.out.weight
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> dict[str, Any]:
        self.calls.add_(1)
        y = self.norm(x)
        z = self.out(self.q(y)) + self.back(nn.functional.silu(self.q(y))) * 0.3
        return {"z": (z, self.k(y)), "x": x, "count": x.shape[0] * 2, "none": None}


def written(folder: Path, model: nn.Module, *args: Any, **options: Any) -> onnx.ModelProto:
    """The file of a model."""
    fuseline.export_onnx(model.eval(), args, path=folder / "model.onnx", **options)
    return cast("Any", onnx).load(folder / "model.onnx")


def test_names_state_and_other_sizes(tmp_path: Path) -> None:
    model = Block()
    proto = written(tmp_path, model, seeded(5, 48), dynamic_shapes=({0: ROWS},))
    graph = proto.graph
    assert [i.name for i in graph.input] == ["calls", "x"]
    assert [o.name for o in graph.output] == ["z.0", "z.1", "x_1", "count", "calls_out"]
    assert graph.input[1].type.tensor_type.shape.dim[0].dim_param == "rows"
    program = import_onnx(proto)
    for rows in (5, 1, 37):
        x = seeded(rows, 48, seed=rows)
        found = by_onnxruntime(proto, {"x": x, "calls": torch.tensor(rows)})
        back = program.run({"x": x})  # the state is constant there
        want = model(x)
        for each in (found, back):
            torch.testing.assert_close(each["z.0"], want["z"][0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(each["z.1"], want["z"][1], atol=1e-5, rtol=1e-5)
        assert torch.equal(found["x_1"], x)
        assert int(found["count"]) == rows * 2
        assert int(found["calls_out"]) == rows + 1


def test_state_starts_as_the_model_has_it(tmp_path: Path) -> None:
    """An input with a value of its own need not be given."""
    model = Block()
    model.calls.fill_(41)
    proto = written(tmp_path, model, seeded(5, 48))
    assert int(by_onnxruntime(proto, {"x": seeded(5, 48)})["calls_out"]) == 42


def test_a_tied_weight_is_there_once(tmp_path: Path) -> None:
    proto = written(tmp_path, Block(), seeded(5, 48))
    names = [i.name for i in proto.graph.initializer]
    tied = {"out.weight", "back.weight"}.intersection(names)
    assert len(tied) == 1
    assert {"norm.weight", "q.weight", "q.bias", "k.weight", "k.bias"} <= set(names)


def test_the_same_bytes_twice(tmp_path: Path) -> None:
    digests: set[str] = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written(tmp_path / name, Block(), seeded(5, 48), dynamic_shapes=({0: ROWS},))
        data = (tmp_path / name / "model.onnx").read_bytes()
        digests.add(hashlib.sha256(data).hexdigest())
    assert len(digests) == 1
    assert str(tmp_path).encode() not in data


def test_weights_beside(tmp_path: Path) -> None:
    model, x = Block(), seeded(5, 48)
    found = fuseline.export_onnx(
        model.eval(), (x,), path=tmp_path / "model.onnx", embed_weights=False
    )
    assert found.beside is not None
    name, size = found.beside
    assert (tmp_path / name).stat().st_size == size
    assert name.startswith("model.onnx.")
    assert name.endswith(".data")
    proto = cast("Any", onnx).load(tmp_path / "model.onnx", load_external_data=False)
    apart = [i for i in proto.graph.initializer if i.data_location == onnx.TensorProto.EXTERNAL]
    assert {i.name for i in apart} >= {"q.weight", "k.weight"}
    y = import_onnx(tmp_path / "model.onnx").run({"x": x})["z.0"]
    torch.testing.assert_close(y, model(x)["z"][0], atol=1e-5, rtol=1e-5)


def test_weights_that_a_file_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go beside without being asked."""
    from fuseline.exporting.onnx import weights

    monkeypatch.setattr(weights, "LARGEST", 4096)
    found = fuseline.export_onnx(Block().eval(), (seeded(5, 48),), path=tmp_path / "model.onnx")
    assert found.beside is not None
    assert len(list(tmp_path.iterdir())) == 2


def test_what_the_checker_refuses_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, *, full_check: bool) -> None:
        raise ValueError(f"{full_check}: no")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(fuseline.InternalError, match=r"onnx\.checker refuses .*True: no"):
        written(tmp_path, Block(), seeded(5, 48), embed_weights=False)
    assert not list(tmp_path.iterdir())


@contextmanager
def refusing() -> Generator[None]:
    """The checker refuses what it is shown."""
    with (
        mock.patch.object(onnx.checker, "check_model", side_effect=ValueError("no")),
        pytest.raises(fuseline.InternalError, match=r"onnx\.checker refuses .*no"),
    ):
        yield


@contextmanager
def without_room() -> Generator[None]:
    """As on a full disk: there is room for the weights, and none for the model."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    write = file.replacing

    @contextmanager
    def full(path: Path) -> Generator[BinaryIO]:
        with write(path) as opened:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
            yield opened

    try:
        with (
            mock.patch.object(file, "replacing", full),
            pytest.raises(ArtifactError, match=r"FL1106.*File too large"),
        ):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("failing", [refusing, without_room])
@pytest.mark.parametrize("embed", [True, False], ids=["embedded", "beside"])
def test_an_earlier_model_stays_where_a_later_one_fails(
    tmp_path: Path, failing: Callable[[], AbstractContextManager[None]], embed: bool
) -> None:
    """Also where the weights, and so the file beside, are the same."""
    written(tmp_path, Block(), seeded(5, 48), embed_weights=embed)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    changed = Block()
    with torch.no_grad():
        changed.q.weight[3] += 1
    for model in (Block(), changed):
        with failing():
            written(tmp_path, model, seeded(7, 48), embed_weights=embed)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_link_to_another_folder(tmp_path: Path) -> None:
    """The weights lie where they are looked for: beside the link."""
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "it.onnx", tmp_path / "model.onnx"
    link.symlink_to(real)
    model, x = Block(), seeded(5, 48)
    written(tmp_path, model, x, embed_weights=False)
    assert link.is_symlink()
    assert list((tmp_path / "real").iterdir()) == [real]
    assert len(list(tmp_path.iterdir())) == 3
    y = import_onnx(link).run({"x": x})["z.0"]
    torch.testing.assert_close(y, model(x)["z"][0], atol=1e-5, rtol=1e-5)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        cast("Any", torch).manual_seed(0)
        self.gate, self.up = (nn.Linear(16, 24, bias=False) for _ in range(2))
        self.down = nn.Linear(24, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


@pytest.mark.parametrize(("disable", "calls"), [((), 1), (("raise-gated-mlp",), 0)])
def test_passes_may_be_left_out(tmp_path: Path, disable: tuple[str, ...], calls: int) -> None:
    proto = written(tmp_path, Gated(), seeded(5, 16), disable=disable)
    assert sum(n.domain == "fuseline" for n in proto.graph.node) == calls
    found = by_onnxruntime(proto, {"x": seeded(5, 16)})["output"]
    torch.testing.assert_close(found, Gated()(seeded(5, 16)), atol=1e-6, rtol=1e-5)


def test_where_it_comes_from(tmp_path: Path) -> None:
    proto = written(tmp_path, Block(), seeded(5, 48), licence="MIT", command="fuseline export x")
    about = {p.key: p.value for p in proto.metadata_props}
    assert proto.producer_name == "fuseline"
    assert proto.producer_version == fuseline.__version__
    assert about["licence"] == "MIT"
    assert about["command"] == "fuseline export x"
    assert about["model"].endswith(".Block")
    places = [{p.key: p.value for p in n.metadata_props} for n in proto.graph.node]
    assert any(place.get("fuseline.module") == "k" for place in places)


@pytest.mark.parametrize(("opset", "kind"), [(23, "Sigmoid"), (24, "Swish"), (25, "Swish")])
def test_a_later_version(tmp_path: Path, opset: int, kind: str) -> None:
    proto = written(tmp_path, Block(), seeded(5, 48), opset=opset)
    assert proto.opset_import[0].version == opset
    assert kind in {n.op_type for n in proto.graph.node}


@pytest.mark.parametrize("opset", [0, 22, 1000])
def test_no_such_version(tmp_path: Path, opset: int) -> None:
    with pytest.raises(UsageError, match=rf"FL0101.*\b{opset}\b"):
        fuseline.export_onnx(Block(), (seeded(5, 48),), path=tmp_path / "m.onnx", opset=opset)


class Cached(nn.Module):
    """Writes what it is given into a cache that is an argument."""

    def forward(self, x: Tensor, at: Tensor, cache: Tensor) -> Tensor:
        cache.index_copy_(1, at, x)
        return cache.sum(1)


def test_an_argument_that_is_written(tmp_path: Path) -> None:
    x, at, cache = seeded(2, 3, 6), torch.tensor([4, 0, 2]), seeded(2, 8, 6, seed=1)
    proto = written(tmp_path, Cached(), x, at, cache.clone())
    found = by_onnxruntime(proto, {"x": x, "at": at, "cache": cache})
    want = Cached()(x, at, cache)
    torch.testing.assert_close(found["output"], want)
    assert torch.equal(found["cache_out"], cache)


class Inverse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.logdet(x)


class Half(nn.Module):
    """Gives back a part of what it has written."""

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1)[:2]


def test_what_has_no_form(tmp_path: Path) -> None:
    for model, what in ((Inverse(), "slogdet"), (Half(), "part of the input")):
        with pytest.raises(ArtifactError, match=f"FL1109.*{what}"):
            written(tmp_path, model, seeded(4, 4))
    assert not list(tmp_path.iterdir())


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(LoadError, match=r"FL0802.*onnx.*fuseline\[onnx\]"):
        fuseline.export_onnx(Block(), (seeded(5, 48),), path=tmp_path / "model.onnx")


def test_an_old_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx.defs, "onnx_opset_version", lambda: 22)
    with pytest.raises(LoadError, match=r"FL0802.*onnx.*1\.18 or newer"):
        fuseline.export_onnx(Block(), (seeded(5, 48),), path=tmp_path / "model.onnx")


def test_bfloat16_is_written_as_it_is(tmp_path: Path) -> None:
    """And read back in: no runtime at hand computes with it on a CPU."""
    model, x = Block().to(torch.bfloat16), seeded(5, 48, dtype=torch.bfloat16)
    proto = written(tmp_path, model, x)
    assert proto.graph.input[1].type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16
    found = import_onnx(proto).run({"x": x})["z.0"]
    torch.testing.assert_close(found, model(x)["z"][0], atol=3e-2, rtol=3e-2)
