"""What a loaded artifact holds: state that begins as zeros, and copies of merged weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fuseline.artifact.archive import Archive
from fuseline.artifact.check import check_manifest
from fuseline.artifact.codec import MalformedError
from fuseline.artifact.manifest import Manifest, Weights
from fuseline.artifact.memory import Memory
from fuseline.artifact.program import Input
from fuseline.artifact.weights import Placed, Zeros, header, parts, place, read, stored
from fuseline.errors import ArtifactError, DeviceError
from fuseline.runtime.plan import ArgSpec, Plan
from tests.artifact import handmade

STATE = ("begun", "cache")


def tensors() -> dict[str, Tensor]:
    """Two weights that are merged in one program, state of zeros, and state of numbers."""
    generator = torch.Generator().manual_seed(0)
    return {
        "cache": torch.zeros(3, 1000),
        "q": torch.randn(4, 8, generator=generator),
        "begun": torch.arange(5.0),
        "k": torch.randn(2, 8, generator=generator),
        "minus": -torch.zeros(4),
        "plain": torch.zeros(7),
    }


def written(folder: Path, groups: Any = (), **changes: Any) -> tuple[Archive, Manifest]:
    """A file with these tensors."""
    how = stored(tensors(), groups, (*STATE, "minus"))
    head, _ = header(how.memory, groups)
    data = b"".join(parts(how.memory, head))
    placed: Mapping[str, Placed | Zeros] = {**how.tensors, **changes}
    weights = Weights(handmade.WEIGHTS, None, placed)
    path = handmade.write(folder / "model.fuse", weights=weights, stored=data)
    archive = Archive.open(path)
    return archive, Manifest.of(archive)


def test_state_of_zeros_is_stored_nowhere_and_other_state_behind_weights() -> None:
    how = stored(tensors(), [("q", "k")], (*STATE, "minus"))
    assert list(how.memory) == ["q", "k", "plain", "begun", "minus"]  # minus zero has a bit
    assert how.tensors["cache"] == Zeros(torch.float32, (3, 1000))
    head, size = header(how.memory, [("q", "k")])
    assert size < 1000
    memory = read(memoryview(bytearray(b"".join(parts(how.memory, head)))))
    for name, at in how.tensors.items():
        assert isinstance(at, Zeros) or torch.equal(place(memory, at), tensors()[name])


def test_state_that_lies_another_way_is_stored() -> None:
    turned = {"a": torch.zeros(4, 3).t(), "b": torch.zeros(2).expand(3, 2), "c": torch.zeros(0, 3)}
    how = stored(turned, [], tuple(turned))
    assert isinstance(how.tensors["a"], Placed)
    assert isinstance(how.tensors["b"], Placed)
    assert how.tensors["c"] == Zeros(torch.float32, (0, 3))


def test_reset_gives_state_what_it_began_with(tmp_path: Path) -> None:
    memory = Memory(*written(tmp_path), torch.device("cpu"), STATE)
    for name in STATE:
        assert torch.equal(memory.state[name], tensors()[name])
        memory.state[name].add_(3)
    before = {name: tensor.data_ptr() for name, tensor in memory.state.items()}
    memory.reset()
    for name in STATE:
        assert torch.equal(memory.state[name], tensors()[name])
        assert memory.state[name].data_ptr() == before[name]
    assert not set(STATE) & set(memory.tensors)


def test_a_device_holds_no_state_twice(tmp_path: Path) -> None:
    """By a device without data."""
    memory = Memory(*written(tmp_path), torch.device("meta"), STATE)
    held = [*memory.tensors.values(), *memory.state.values()]
    assert {t.device.type for t in held} == {"meta"}
    assert set(memory.state) == set(STATE)
    kept: list[Any] = [t.untyped_storage() for t in held]
    storages = {storage._cdata: storage.nbytes() for storage in kept}
    own = sum(t.nbytes for t in tensors().values())
    assert own <= sum(storages.values()) <= own + 4 * 64  # padding between weights
    memory.reset()


def merged(*names: str) -> tuple[tuple[Input, ...], Plan]:
    """A program that reads weights as one."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors().items()}
    args = tuple(ArgSpec(name, "tensor", torch.float32, shapes[name]) for name in names)
    plan = Plan(args, (), (), (), {}, {}, packed=(tuple(range(len(names))),))
    return tuple(Input(name, "weight") for name in names), plan


def test_programs_share_a_copy_of_merged_weights(tmp_path: Path) -> None:
    memory = Memory(*written(tmp_path), torch.device("cpu"), ())
    one = memory.given(*merged("k", "q"))
    other = memory.given(*merged("k", "q"))
    assert one[0].data_ptr() + one[0].nbytes == one[1].data_ptr()
    assert [t.data_ptr() for t in one.values()] == [t.data_ptr() for t in other.values()]
    assert torch.equal(one[0], tensors()["k"])
    assert torch.equal(one[1], tensors()["q"])
    another = memory.given(*merged("q", "k"))  # lies the other way round
    assert another[0].data_ptr() + another[0].nbytes == another[1].data_ptr()


def test_merged_weights_that_lie_so_are_not_copied(tmp_path: Path) -> None:
    memory = Memory(*written(tmp_path, [("q", "k")]), torch.device("cpu"), ())
    found = memory.given(*merged("q", "k"))
    assert found[0].data_ptr() == memory.tensors["q"].data_ptr()


def test_merged_weights_that_are_written_are_refused(tmp_path: Path) -> None:
    memory = Memory(*written(tmp_path), torch.device("cpu"), ("k",))
    with pytest.raises(ArtifactError, match=r"FL1102.*packed and written"):
        memory.given(*merged("q", "k"))


def test_more_zeros_than_memory_are_refused(tmp_path: Path) -> None:
    archive, manifest = written(tmp_path, cache=Zeros(torch.float32, (1 << 30, 1 << 20)))
    with pytest.raises(DeviceError, match=r"FL1010.*bytes for state"):
        Memory(archive, manifest, torch.device("cpu"), STATE)


@pytest.mark.parametrize("shape", [(-1,), (1 << 40, 1 << 40), (1,) * 65, (0, 1 << 60, 1 << 60)])
def test_zeros_of_no_size_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ArtifactError, match="FL1102"):
        written(tmp_path, cache=Zeros(torch.float32, shape))
    with pytest.raises(MalformedError):
        _ = Zeros(torch.float32, shape).nbytes


def test_zeros_that_pass_64_bits_together_are_refused(tmp_path: Path) -> None:
    archive, manifest = written(tmp_path)
    many = {str(n): Zeros(torch.float64, ((1 << 60) - 1,)) for n in range(2)}
    changed = Weights(handmade.WEIGHTS, None, many)
    sizes = {name: archive.size(name) for name in manifest.members}
    with pytest.raises(MalformedError, match="zeros of"):
        check_manifest(replace(manifest, weights=changed), sizes)
