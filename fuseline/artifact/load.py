"""Loads an artifact and runs it: by torch's tensors and the runtime, without any compiler."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fuseline import errors
from fuseline.artifact import natives
from fuseline.artifact.archive import Archive, damaged
from fuseline.artifact.bounds import CheckedProgram
from fuseline.artifact.calls import Call
from fuseline.artifact.check_program import read_program
from fuseline.artifact.choose import Choice, choose
from fuseline.artifact.codec import MalformedError
from fuseline.artifact.machine import machine
from fuseline.artifact.manifest import Manifest, Native, Target, verify_members
from fuseline.artifact.memory import Memory
from fuseline.artifact.program import ProgramFile
from fuseline.config import Config
from fuseline.report import Report
from fuseline.runtime.kernels import HostKernels, Kernels
from fuseline.runtime.native import Runner
from fuseline.runtime.plan import HostCall

if TYPE_CHECKING:
    from fuseline.artifact.on_gpu import Gpu

OPTIONS = ("threads", "graphs", "side_stream", "early_launch")
"""Those fields of `Config` that are about running, and not about compiling."""


class Loaded:
    """A model from an artifact: its programs by name, over one set of weights and state.

    Called itself, it calls the program ``main``, or the only one there is.

    Attributes:
        path: of the file.
        manifest: what the file says of itself.
        choice: what runs, and where.
    """

    def __init__(
        self, archive: Archive, manifest: Manifest, choice: Choice, config: Config
    ) -> None:
        self.path = archive.path
        self.manifest = manifest
        self.choice = choice
        self._archive = archive
        self._config = config
        # All that is only data comes first: of a damaged file no code is loaded.
        target = choice.target
        files = {n: read_program(archive, manifest, target, n) for n in manifest.programs}
        written = sorted(set[str]().union(*(file.state for file in files.values())))
        self._memory = Memory(archive, manifest, choice.device, written)
        native = _native(archive, manifest)
        self._runner = _runner(archive, manifest, native)
        self._gpu: Gpu | None = None
        if choice.device.type == "cuda":
            from fuseline.artifact.on_gpu import Gpu

            assert native.launcher is not None, "the manifest was checked"
            launcher = natives.library(archive, manifest, native.launcher)
            self._gpu = Gpu(archive, manifest, choice, config, launcher)
        self.programs = {name: self._program(name, file) for name, file in files.items()}

    def __repr__(self) -> str:
        programs = "".join(f"\n  {program!r}" for program in self.programs.values())
        return f"<{self.manifest.model} of {self.path}, {self.choice}:{programs}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on arguments like those that it was exported with.

        Raises:
            ArtifactError: FL1108, if they are nested in another way.
            InputError: FL0901 to FL0904, if they are of other types or sizes.

        """
        return self.main(*args, **kwargs)

    @property
    def main(self) -> Call:
        """The program that a call runs."""
        return self.programs.get("main") or next(iter(self.programs.values()))

    def reset(self) -> None:
        """Give all state the values that it had in the file: empty caches."""
        self._memory.reset()

    def member(self, name: str) -> bytes:
        """The bytes of a member, its digest checked."""
        return bytes(self._archive.checked(name, self.manifest.members[name]))

    def report(self) -> Report:
        """Sites and kernels, as they were when the file was made."""
        total = Report()
        for program in self.programs.values():
            total += Report(program.file.sites, program.file.kernels)
        return total

    def _program(self, name: str, file: ProgramFile) -> Call:
        archive = self._archive
        plan = file.plan.plan(self._references(name, file))
        fixed = self._memory.given(file.inputs, plan)
        program = CheckedProgram(
            *(archive.path, plan),
            self._runner,
            self._kernels(name, file),
            threads=self._config.threads or torch.get_num_threads(),
        )
        run = program if self._gpu is None else self._gpu.run(program)
        text = self.manifest.text
        return Call(name, file, program, run, fixed, None if text is None else text.length)

    def _references(self, name: str, file: ProgramFile) -> Mapping[int, HostCall]:
        """What runs by torch: the IR is imported where there is such an op, and nowhere else."""
        if not file.plan.ops:
            return {}
        return references_of(self._archive, self.manifest, self.choice.target, name, file)

    def _kernels(self, name: str, file: ProgramFile) -> Kernels:
        archive, manifest, target = self._archive, self.manifest, self.choice.target
        symbols = file.plan.kernels
        if self._gpu is not None:
            return self._gpu.kernels(symbols)
        if not symbols:
            return HostKernels()
        library = natives.library(archive, manifest, target.libraries[name])
        return HostKernels({symbol: library.address(symbol) for symbol in symbols})


def references_of(
    archive: Archive, manifest: Manifest, target: Target, name: str, file: ProgramFile
) -> Mapping[int, HostCall]:
    """What a program runs by torch, from the func that is beside it.

    Raises:
        ArtifactError: FL1102, if that cannot be read; FL1103, if it was changed.

    """
    member = target.ir[name]
    references: Any = importlib.import_module("fuseline.artifact.references")
    data = archive.checked(member, manifest.members[member], 4 * references.MOST_TEXT)  # as UTF-8
    try:
        return references.references(data.decode(), file.plan.ops, file.traced)
    except (MalformedError, UnicodeDecodeError) as error:
        raise damaged(archive.path, f"{member}: {error}") from error


def _native(archive: Archive, manifest: Manifest) -> Native:
    """The runtime's code for this machine."""
    for native in manifest.native:
        if native.machine == machine():
            return native
    has = ", ".join(native.machine for native in manifest.native)
    raise errors.NO_BINARY.error(str(archive.path), found=f"code for {has}", expected=machine())


def _runner(archive: Archive, manifest: Manifest, native: Native) -> Runner:
    binding = native.bindings.get(EXTENSION_SUFFIXES[0])
    library = natives.library(archive, manifest, native.runner)
    return Runner.of(library, natives.file_of(archive, manifest, binding) if binding else None)


def load(
    path: str | Path,
    *,
    target: str = "auto",
    device: str | torch.device | None = None,
    verify: bool = False,
    verify_key: str | Path | None = None,
    **options: Any,
) -> Loaded:
    """Load a ``.fuse`` file: nothing is compiled, and nothing is written.

    The file holds native code, which runs in this process: load what you trust.

    Args:
        path: of the file.
        target: ``auto`` takes the best for this machine; or one of its targets, such as ``cpu``,
            ``cpu:x86-64-v3`` or ``sm_90``.
        device: where to run; a GPU if there is one that the file has code for, by default.
        verify: read every byte of the file first, and of weights beside it, and compare all
            digests. Without it, those of code and programs are compared, and those of weights are
            not: they stay where they are until they are used.
        verify_key: a PEM file with a public key of Ed25519: only what its owner has signed is
            loaded, and every byte of the file is read first.
        options: ``threads``, ``graphs``, ``side_stream`` and ``early_launch``, as in
            `fuseline.Config`; all others are about compiling, and were settled by the export.

    Raises:
        ArtifactError: FL1101 to FL1105, if the file cannot be read, was damaged, or has nothing
            that runs here; FL1111, if it is not signed with the key.
        DeviceError: FL1010, where its state is larger than the memory of the device.
        BuildError: FL0501, under ``FUSELINE_BATCH_INVARIANT`` for a file that was exported without
            that option.
        LoadError: FL0802, without the package that checks signatures.
        UsageError: FL0102, for an option of another name; FL0101, for a wrong value.

    """
    config = _config(options)
    archive = Archive.open(Path(path))
    if verify_key is not None:
        from fuseline.artifact.signing import verified

        manifest = verified(archive, Path(verify_key))
    else:
        manifest = Manifest.of(archive)
        if verify:
            verify_members(archive, manifest)
    _check_promised(archive.path, manifest, config)
    where = None if device is None else torch.device(device)
    return Loaded(archive, manifest, choose(archive, manifest, target, where), config)


def _config(options: Mapping[str, object]) -> Config:
    """The configuration; an option that would change nothing is a mistake."""
    known = {field.name for field in dataclasses.fields(Config)}
    for name in options:
        if name not in OPTIONS:
            of_compiling = name in known
            raise errors.UNKNOWN_OPTION.error(
                name,
                where="a load",
                found="an option of compiling: nothing is compiled here" if of_compiling else None,
                expected=f"one of {', '.join(OPTIONS)}",
                hint="give it to the export" if of_compiling else None,
            )
    return Config.of(options)


def _check_promised(path: Path, manifest: Manifest, config: Config) -> None:
    """Refuse a file that was exported without what the environment asks of every program."""
    if config.batch_invariant and "batch_invariant" not in manifest.options:
        raise errors.NOT_BATCH_INVARIANT.error(
            str(path),
            found="a file that was exported without batch_invariant",
            expected="one that was exported with it",
            hint="export it with batch_invariant=True, or unset FUSELINE_BATCH_INVARIANT",
        )


__all__ = ["Loaded", "load"]
