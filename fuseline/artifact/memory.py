"""The weights and the state that the programs of an artifact share.

On a CPU weights stay in the file, mapped. A GPU gets one copy of them. State is this process's own;
what it began as stays in the file, or is zeros, so that nothing on a GPU is held twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor

from fuseline import errors
from fuseline.artifact import weights
from fuseline.artifact.archive import Archive, Beside, damaged
from fuseline.artifact.bounds import memory_of
from fuseline.artifact.codec import MalformedError
from fuseline.artifact.manifest import Manifest
from fuseline.artifact.program import Input
from fuseline.artifact.weights import Placed, Zeros
from fuseline.runtime.plan import Plan


class Memory:
    """All tensors of an artifact on one device.

    Args:
        archive: of the file.
        manifest: of it.
        device: where programs run.
        written: the names of what a program writes: it is the same tensor for all of them, also
            for those that only read it.

    Raises:
        ArtifactError: FL1102, where a tensor is not there, or does not lie on its memory.
        DeviceError: FL1010, for more state than the device has memory.

    """

    def __init__(
        self, archive: Archive, manifest: Manifest, device: torch.device, written: Collection[str]
    ) -> None:
        self._path = archive.path
        stored = manifest.weights.tensors
        self._hold_to_room(stored, device)
        try:
            memory = weights.read(_bytes_of(archive, manifest))
            begun = {n: at for n, at in stored.items() if n in written and isinstance(at, Placed)}
            self._first = {n: weights.place(memory, at) for n, at in begun.items()}
            weight = {n: at for n, at in stored.items() if n not in written}
            if device.type != "cpu":
                needed = {at.memory for at in weight.values() if isinstance(at, Placed)}
                memory = moved({n: t for n, t in memory.items() if n in needed}, device)
            self.tensors = {
                name: self._zeros(at, device)
                if isinstance(at, Zeros)
                else weights.place(memory, at)
                for name, at in weight.items()
            }
        except MalformedError as error:
            raise damaged(archive.path, str(error)) from error
        self.state: dict[str, Tensor] = {}
        for name in written:
            at = stored.get(name)
            if isinstance(at, Zeros):
                self.state[name] = self._zeros(at, device)
            else:
                self.state[name] = self._whole(name, self._first).to(device, copy=True)
        self._packed: dict[tuple[str, ...], list[Tensor]] = {}

    def _hold_to_room(self, stored: Mapping[str, Placed | Zeros], device: torch.device) -> None:
        """What is stored nowhere costs a file nothing: it may ask for any amount."""
        total = sum(at.nbytes for at in stored.values() if isinstance(at, Zeros))
        if total and total > (most := memory_of(device)):
            self._no_room(f"{most} bytes of memory", total)

    def _zeros(self, at: Zeros, device: torch.device) -> Tensor:
        try:
            return torch.zeros(at.shape, dtype=at.dtype, device=device)
        except (MemoryError, RuntimeError):
            self._no_room("less", at.nbytes)

    def _no_room(self, found: str, nbytes: int) -> NoReturn:
        raise errors.NO_ROOM.error(
            str(self._path),
            found=found,
            expected=f"{nbytes} bytes for state",
            hint="load it where there is more memory, or export it with a shorter cache",
        )

    def reset(self) -> None:
        """Give the state its first values, in place."""
        for name, tensor in self.state.items():
            if name in self._first:
                tensor.copy_(self._first[name])
            else:
                tensor.zero_()

    def _whole(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """A tensor that has memory for each of its elements."""
        if name not in tensors:
            raise damaged(self._path, f"no weight {name!r}")
        if not weights.is_within(tensors[name]):
            raise damaged(self._path, f"{name[:80]!r} that is larger than its memory")
        return tensors[name]

    def given(self, inputs: Sequence[Input], plan: Plan) -> dict[int, Tensor]:
        """The tensors of a program's inputs that are not of a call, by number.

        Raises:
            ArtifactError: FL1102, where one is not there, or is packed and larger than its memory.

        """
        found: dict[int, Tensor] = {}
        packed = {number for group in plan.packed for number in group}
        known = {**self.tensors, **self.state}
        for number, item in enumerate(inputs):
            if item.kind not in ("weight", "constant"):
                continue
            if item.name not in known:
                raise damaged(self._path, f"no weight {item.name!r}")
            whole = number in packed
            found[number] = self._whole(item.name, known) if whole else known[item.name]
        for group in plan.packed:
            names = tuple(inputs[number].name for number in group)
            members = self._side_by_side(names, [found[number] for number in group])
            found |= dict(zip(group, members, strict=True))
        return found

    def _side_by_side(self, names: tuple[str, ...], members: list[Tensor]) -> list[Tensor]:
        """Tensors that one product reads as one: as they are where they lie one behind the other,
        else a copy, which all programs share.
        """
        ends = [t.data_ptr() + t.nbytes for t in members]
        if all(end == t.data_ptr() for end, t in zip(ends, members[1:], strict=False)):
            return members
        if written := [name for name in names if name in self.state]:
            raise damaged(self._path, f"{written[0][:80]!r} that is packed and written")
        if names not in self._packed:
            self._packed[names] = _copied(members)
        return self._packed[names]


def _copied(members: Sequence[Tensor]) -> list[Tensor]:
    """A copy of tensors, one behind the other."""
    buffer = torch.cat([t.reshape(-1) for t in members])
    parts: list[Tensor] = []
    start = 0
    for member in members:
        parts.append(buffer[start : start + member.numel()].view(member.shape))
        start += member.numel()
    return parts


def moved(memory: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Tensors of one file on a device, as far from each other as they are in the file."""
    some = [t for t in memory.values() if t.numel()]  # what is empty lies nowhere
    first = min((t.data_ptr() for t in some), default=0)
    last = max((t.data_ptr() + t.nbytes for t in some), default=0)
    blob = torch.empty(last - first, dtype=torch.uint8, device=device)
    found: dict[str, Tensor] = {}
    for name, tensor in memory.items():
        if not tensor.numel():
            found[name] = tensor.to(device)
            continue
        begin = tensor.data_ptr() - first
        part = blob[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        found[name] = part.copy_(tensor)
    return found


def _bytes_of(archive: Archive, manifest: Manifest) -> memoryview:
    """The safetensors file: a member, or beside the artifact."""
    stored = manifest.weights
    if stored.member is not None:
        return archive.data(stored.member)
    assert stored.file is not None, "the manifest was checked"
    return Beside(archive, *stored.file).data()


__all__ = ["Memory", "moved"]
