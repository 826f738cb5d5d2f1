"""What an artifact holds, as plain data: it is read and checked, and nothing of it is run.

    opened = Opened.of(Path("model.fuse"))
    opened.facts()                             # everything but the bytes, for `fuseline inspect`
    opened.tensors()                           # a digest of each tensor

All bytes are copied out of the file; nothing is mapped, and no compiler is imported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from fuseline import errors
from fuseline.artifact import weights
from fuseline.artifact.archive import Archive, Beside, damaged
from fuseline.artifact.bounds import applies, check_bounds
from fuseline.artifact.check_program import read_program
from fuseline.artifact.codec import MalformedError, encode
from fuseline.artifact.decisions import decisions
from fuseline.artifact.manifest import Manifest, Target, manifest_bytes
from fuseline.artifact.program import HostOp, ProgramFile
from fuseline.artifact.signing import Signature
from fuseline.header import without_head
from fuseline.report import KernelRecord
from fuseline.runtime.executor import ARENA_ALIGNMENT
from fuseline.runtime.plan import WORKERS, Evaluator, LibraryStep, NativeStep, Plan

Facts = dict[str, Any]
"""Dicts, lists, strings, numbers and None, as JSON has them."""


@dataclass(frozen=True)
class Opened:
    """An artifact that is open for reading.

    Attributes:
        archive: the file.
        manifest: what it says of itself.
        digest: the SHA-256 of the manifest, which stands for the whole file.
    """

    archive: Archive
    manifest: Manifest
    digest: str

    @classmethod
    def of(cls, path: Path) -> Opened:
        """Open a file and check what it says of itself; members are not read yet.

        Raises:
            ArtifactError: FL1101, FL1102 or FL1104, if it cannot be read, or is damaged.

        """
        archive = Archive.open(path)
        text = manifest_bytes(archive)
        manifest = Manifest.read(archive, text)
        return cls(archive, manifest, hashlib.sha256(text).hexdigest())

    @cached_property
    def programs(self) -> dict[tuple[str, str], ProgramFile]:
        """Every program for every target, by the target's title and the program's name.

        Raises:
            ArtifactError: FL1102 or FL1103, if one is damaged, or was changed.

        """
        return {
            (target.title, name): read_program(self.archive, self.manifest, target, name)
            for target in self.manifest.targets
            for name in self.manifest.programs
        }

    def wrong(self) -> list[errors.FuselineError]:
        """What is wrong with members, and with weights beside: all bytes are read."""
        found: list[errors.FuselineError] = []
        for name, member in self.manifest.members.items():
            try:
                self.archive.verify(name, member)
            except errors.ArtifactError as error:
                found.append(error)
        if self.manifest.weights.file is not None:
            try:
                Beside(self.archive, *self.manifest.weights.file).verify()
            except errors.ArtifactError as error:
                found.append(error)
        return found

    def stored(self) -> tuple[dict[str, weights.Entry], int]:
        """The memory of weights by name, and where the bytes begin.

        Raises:
            ArtifactError: FL1101 or FL1102, if the weights cannot be read, or are damaged.

        """
        size, read = self._weights()
        try:
            head = weights.head_size(read(0, min(8, size)), size)
            return weights.entries(read(0, head), size)
        except MalformedError as error:
            raise damaged(self.archive.path, str(error)) from error

    def tensors(self) -> dict[str, Facts]:
        """Every tensor by name: its type, sizes, and a digest of the memory that it lies on.

        Raises:
            ArtifactError: FL1101 or FL1102, if the weights cannot be read, or are damaged.

        """
        _, read = self._weights()
        found, start = self.stored()
        digests: dict[str, str] = {}
        for name, entry in found.items():
            digest = hashlib.sha256()
            for at in range(entry.begin, entry.end, _PART):
                digest.update(read(start + at, min(_PART, entry.end - at)))
            digests[name] = digest.hexdigest()
        facts: dict[str, Facts] = {}
        for name, at in self.manifest.weights.tensors.items():
            if isinstance(at, weights.Zeros):
                facts[name] = {
                    "dtype": encode(at.dtype),
                    "shape": list(at.shape),
                    "strides": weights.row_by_row(at.shape),
                    "offset": 0,
                    "sha256": "zeros",
                }
                continue
            if at.memory not in found:
                raise damaged(self.archive.path, f"no memory {at.memory[:80]!r} is stored")
            facts[name] = {
                "dtype": encode(found[at.memory].dtype),
                "shape": list(at.shape),
                "strides": list(at.strides),
                "offset": at.offset,
                "sha256": digests[at.memory],
            }
        return facts

    def _weights(self) -> tuple[int, Callable[[int, int], bytes]]:
        """The size of the safetensors file, and how to read of it."""
        stored = self.manifest.weights
        if stored.member is not None:
            return self.archive.size(stored.member), partial(self.archive.read, stored.member)
        assert stored.file is not None, "the manifest was checked"
        beside = Beside(self.archive, *stored.file)
        return beside.size, beside.read

    def facts(self, at: Mapping[str, int] | None = None) -> Facts:
        """Everything that the file says, but the bytes of its members.

        Args:
            at: sizes that memory is computed for, by name; those that are not given are the
                greatest that they may be, or the least where that is above `MOST_SIZE`.

        Raises:
            ArtifactError: FL1101 to FL1104, if it cannot be read, is damaged, or was changed.

        """
        manifest = self.manifest
        signature = Signature.of(self.archive)
        return {
            "path": str(self.archive.path),
            "bytes": self.archive.nbytes,
            "schema": manifest.schema,
            "fuseline": manifest.fuseline,
            "model": manifest.model,
            "licence": manifest.licence,
            "made_with": dict(manifest.made_with),
            "options": list(manifest.options),
            "digest": self.digest,
            "signature": None
            if signature is None
            else {"algorithm": signature.algorithm, "fingerprint": signature.fingerprint},
            "targets": [self._target(target, dict(at or {})) for target in manifest.targets],
            "native": [
                {
                    "machine": native.machine,
                    "launches_on_gpus": native.launcher is not None,
                    "bindings": list(native.bindings),
                }
                for native in manifest.native
            ],
            "weights": self._weights_facts(),
            "members": {name: vars(member) for name, member in manifest.members.items()},
        }

    def _weights_facts(self) -> Facts:
        found, _ = self.stored()
        kinds: dict[str, Facts] = {}
        for entry in found.values():
            kind = kinds.setdefault(encode(entry.dtype), {"tensors": 0, "bytes": 0})
            kind["tensors"] += 1
            kind["bytes"] += entry.end - entry.begin
        stored = self.manifest.weights
        zeros = [at for at in stored.tensors.values() if isinstance(at, weights.Zeros)]
        return {
            "in": stored.member if stored.file is None else stored.file[0],
            "beside": stored.file is not None,
            "tensors": len(stored.tensors),
            "zeros": {"tensors": len(zeros), "bytes": sum(at.nbytes for at in zeros)},
            "bytes": sum(kind["bytes"] for kind in kinds.values()),
            "dtypes": kinds,
        }

    def _target(self, target: Target, at: Mapping[str, int]) -> Facts:
        programs = {name: self.programs[target.title, name] for name in self.manifest.programs}
        return {
            "title": target.title,
            "name": target.name,
            "isa": target.isa,
            "machine": target.machine,
            "features": list(target.features),
            "programs": {
                name: {
                    **self._program(target, file, at),
                    "plan": self._member(target.programs[name]),
                    "func": self._member(target.ir[name]),
                }
                for name, file in programs.items()
            },
            "libraries": {name: self._member(member) for name, member in target.libraries.items()},
        }

    def _program(self, target: Target, file: ProgramFile, at: Mapping[str, int]) -> Facts:
        plan = file.plan.plan(dict.fromkeys(file.plan.ops, _nothing))
        pairs = list(zip(file.inputs, plan.args, strict=True))
        steps = file.plan.steps
        return {
            "takes": str(file.takes),
            "gives": str(file.gives),
            "inputs": [_input(i, spec) for i, spec in pairs if i.kind in ("user", "symbol")],
            "state": [_input(i, s) for i, s in pairs if s.written and i.kind == "weight"],
            "results": [
                {"dtype": encode(view.dtype), "shape": list(view.shape)} for view in plan.returns
            ],
            "sizes": {
                name: dict(zip(("least", "most"), plan.ranges.get(name, (0, None)), strict=True))
                for name in plan.symbols
            },
            "memory": self._memory(plan, at),
            "steps": {
                "native": sum(isinstance(s, NativeStep) for s in steps),
                "library": sum(isinstance(s, LibraryStep) for s in steps),
                "torch": sum(isinstance(s, HostOp) for s in steps),
            },
            "kernels": [self._kernel(target, record) for record in file.kernels],
            "decisions": decisions(file),
            "sites": [asdict(site) for site in file.sites],
        }

    def _memory(self, plan: Plan, at: Mapping[str, int]) -> Facts:
        sizes = {name: _given(plan, name, at) for name in plan.symbols}
        try:
            value = Evaluator(plan)({**sizes, WORKERS: 1})
            check_bounds(plan, value)
        except (ArithmeticError, MalformedError) as error:
            raise damaged(self.archive.path, f"memory for {sizes}: {error}") from error
        arena = 0
        steps = [s for s in plan.steps if isinstance(s, NativeStep | LibraryStep)]
        scratch = max((value(s.scratch) for s in steps if applies(s, value)), default=0)
        for buffer in plan.buffers:
            if buffer.kind in ("temp", "scratch"):
                nbytes = scratch if buffer.kind == "scratch" else value(buffer.nbytes)
                arena += -(-nbytes // ARENA_ALIGNMENT) * ARENA_ALIGNMENT
        outputs = sum(value(b.nbytes) for b in plan.buffers if b.kind == "output")
        temporaries = [str(b.nbytes) for b in plan.buffers if b.kind == "temp"]
        return {"at": sizes, "arena": arena, "results": outputs, "temporaries": temporaries}

    def _member(self, name: str | None) -> Facts | None:
        return None if name is None else {"member": name, **vars(self.manifest.members[name])}

    def _code(self, name: str) -> str:
        """A digest of a source without its head, which tells where it is used."""
        text = self.archive.read(name).decode("utf-8", "surrogateescape")
        return hashlib.sha256(without_head(text).encode("utf-8", "surrogateescape")).hexdigest()

    def _kernel(self, target: Target, record: KernelRecord) -> Facts:
        found: Facts = {**asdict(record), "resources": dict(record.resources)}
        found["source"] = self._member(target.sources.get(record.symbol))
        if found["source"] is not None:
            found["source"]["code"] = self._code(found["source"]["member"])
        code = target.kernels.get(record.symbol)
        if code is not None:
            found["warps"], found["shared_memory"] = code.warps, code.shared_memory
            found["cubin"], found["ptx"] = self._member(code.cubin), self._member(code.ptx)
        return found


MOST_SIZE = 1 << 20
"""The greatest size that memory is computed for without being asked."""

_PART = 4 << 20
"""Bytes that are read at once."""


def _input(item: Any, spec: Any) -> Facts:
    if spec.kind == "int":
        return {"name": item.name, "dtype": "int", "value": spec.value}
    return {"name": item.name, "dtype": encode(spec.dtype), "shape": list(spec.shape)}


def _given(plan: Plan, name: str, at: Mapping[str, int]) -> int:
    least, most = plan.ranges.get(name, (0, None))
    return at.get(name, least if most is None or most > MOST_SIZE else most)


def _nothing(binding: Mapping[str, int], tensors: Any) -> Any:
    raise NotImplementedError


__all__ = ["Facts", "Opened"]
