"""What an artifact says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from fuseline import errors
from fuseline.artifact.archive import Archive, Beside, Member, damaged
from fuseline.artifact.check import check_manifest
from fuseline.artifact.codec import MOST_JSON, MalformedError, decode, encode, parse
from fuseline.artifact.weights import Placed, Zeros

MANIFEST = "manifest.json"
SCHEMA = 2
"""Of the manifest and of programs; files with another one are refused."""

SIGNATURE = "signature.json"
"""The member that the manifest cannot know, as it is of it; see `fuseline.artifact.signing`."""


@dataclass(frozen=True)
class CudaKernel:
    """A kernel for GPUs; its cubin and PTX are members.

    Attributes:
        cubin: for one generation; None where only PTX is stored.
        ptx: for that generation and later ones; None where only the cubin is stored.
        parameters: the types of its arguments.
        warps: of a block.
        shared_memory: bytes of dynamic shared memory.
        resources: what was read of its machine code.
        waits: whether it waits itself for the kernel ahead of it.
        scratch: bytes of memory that the pointers behind its parameters want.
        scratch_pointers: how many of them there are.
    """

    cubin: str | None
    ptx: str | None
    parameters: tuple[str, ...]
    warps: int
    shared_memory: int
    resources: Mapping[str, int]
    waits: bool
    scratch: int
    scratch_pointers: int


@dataclass(frozen=True)
class Target:
    """What a file holds for one target.

    Attributes:
        name: ``cpu``, ``sm_90``, ...
        isa: of a CPU: ``x86-64-v3``, ``baseline``, or that of the processor it was made on.
        machine: of a CPU, as ``x86_64 linux``.
        features: of a CPU, that its code needs, in the words of the operating system.
        programs: the member of each program, by name.
        ir: the member with the func of each program.
        libraries: the member with the kernels of each program, for a CPU.
        kernels: for GPUs, by symbol.
        sources: the member with the source of each kernel.
    """

    name: str
    isa: str
    machine: str
    features: tuple[str, ...]
    programs: Mapping[str, str]
    ir: Mapping[str, str]
    libraries: Mapping[str, str]
    kernels: Mapping[str, CudaKernel]
    sources: Mapping[str, str]

    @property
    def title(self) -> str:
        """What it is called where there are several for CPUs."""
        return f"{self.name}:{self.isa}" if self.isa else self.name


@dataclass(frozen=True)
class Native:
    """The code of the runtime for one kind of machine.

    Attributes:
        machine: as ``x86_64 linux``.
        runner: the member that runs plans.
        launcher: the member that launches kernels of GPUs; None where there are none.
        bindings: by the suffix of extension modules of a Python, how that enters the runner.
    """

    machine: str
    runner: str
    launcher: str | None
    bindings: Mapping[str, str]


@dataclass(frozen=True)
class Weights:
    """Where tensors are.

    Attributes:
        member: a safetensors file; None where it lies beside the artifact.
        file: its name there, and what it must be; None where it is a member.
        tensors: by name; those that begin as zeros are stored nowhere.
    """

    member: str | None
    file: tuple[str, Member] | None
    tensors: Mapping[str, Placed | Zeros]


@dataclass(frozen=True)
class Text:
    """That the programs ``prefill`` and ``decode`` are those of a language model over one cache.

    Attributes:
        batch: sequences.
        length: tokens that the cache has room for.
        stop: tokens that end a text.
        tokenizer: the member with the tokenizer, in the format of the package tokenizers; None
            where there is none.
    """

    batch: int
    length: int
    stop: tuple[int, ...]
    tokenizer: str | None


@dataclass(frozen=True)
class Manifest:
    """All of it.

    Attributes:
        schema: `SCHEMA`.
        fuseline: the version that wrote it.
        made_with: versions of what took part, and the command.
        options: of the export, by name: those that say what its programs promise.
        model: the class of the model.
        licence: of the model, as its owner gave it; empty where he did not.
        programs: their names.
        targets: what there are binaries for.
        native: the runtime's code.
        weights: the tensors.
        text: of a language model that generates; None for any other.
        members: all others, with size and digest.
    """

    schema: int
    fuseline: str
    made_with: Mapping[str, str]
    options: tuple[str, ...]
    model: str
    licence: str
    programs: tuple[str, ...]
    targets: tuple[Target, ...]
    native: tuple[Native, ...]
    weights: Weights
    text: Text | None
    members: Mapping[str, Member]

    def to_bytes(self) -> bytes:
        """The text of the member."""
        return json.dumps(encode(self), indent=1, sort_keys=True).encode()

    @classmethod
    def of(cls, archive: Archive) -> Manifest:
        """The manifest of an archive.

        Raises:
            ArtifactError: FL1102, if it is not what it should be; FL1104, if it is of another
                schema.

        """
        return cls.read(archive, manifest_bytes(archive))

    @classmethod
    def read(cls, archive: Archive, data: bytes) -> Manifest:
        """The manifest of an archive, of which the member was read; see `of`."""
        raw = load_json(archive, MANIFEST, data)
        known = isinstance(raw, dict)
        schema = cast("dict[str, object]", raw).get("schema") if known else None
        if type(schema) is int and schema != SCHEMA:
            raise errors.ARTIFACT_SCHEMA.error(
                str(archive.path), found=f"schema {schema}", expected=f"schema {SCHEMA}"
            )
        try:
            manifest = decode(cls, raw, MANIFEST)
            names = set(manifest.members)
            if odd := names ^ (set(archive.names) - {MANIFEST, SIGNATURE}):
                raise MalformedError(f"a member that only one list has: {min(odd)!r}")
            check_manifest(manifest, {name: archive.size(name) for name in names})
        except (MalformedError, RecursionError) as error:
            raise damaged(archive.path, str(error)) from error
        return manifest


def manifest_bytes(archive: Archive) -> bytes:
    """The text of the manifest.

    Raises:
        ArtifactError: FL1102, if there is none, or it has too many bytes.

    """
    if (size := archive.size(MANIFEST)) > MOST_JSON:
        raise damaged(archive.path, f"a manifest of {size} bytes")
    return archive.read(MANIFEST)


def verify_members(archive: Archive, manifest: Manifest) -> None:
    """Hold every member, and the weights beside, to what the manifest says.

    Raises:
        ArtifactError: FL1103, where one is another; FL1101 or FL1102, where one is not there.

    """
    for name, member in manifest.members.items():
        archive.verify(name, member)
    if manifest.weights.file is not None:
        Beside(archive, *manifest.weights.file).verify()


def load_json(archive: Archive, name: str, data: bytes) -> object:
    """The JSON of a member.

    Raises:
        ArtifactError: FL1102, if it is none.

    """
    try:
        return parse(data, name)
    except MalformedError as error:
        raise damaged(archive.path, str(error)) from error


__all__ = [
    "MANIFEST",
    "SCHEMA",
    "SIGNATURE",
    "CudaKernel",
    "Manifest",
    "Native",
    "Target",
    "Text",
    "Weights",
    "manifest_bytes",
    "verify_members",
]
