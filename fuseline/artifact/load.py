"""Loads an artifact and runs it: by torch's tensors and the runtime, without any compiler."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fuseline import errors
from fuseline.artifact import natives, weights
from fuseline.artifact.archive import Archive, Beside, damaged
from fuseline.artifact.bounds import CheckedProgram
from fuseline.artifact.calls import Call
from fuseline.artifact.check_program import read_program
from fuseline.artifact.choose import Choice, choose
from fuseline.artifact.codec import MalformedError
from fuseline.artifact.machine import machine
from fuseline.artifact.manifest import Manifest, Native, Target
from fuseline.artifact.program import Input, ProgramFile
from fuseline.artifact.signing import verified
from fuseline.config import Config
from fuseline.report import Report
from fuseline.runtime.executor import Program
from fuseline.runtime.gpu.aligned import Aligned
from fuseline.runtime.gpu.binary import Binary
from fuseline.runtime.gpu.kernels import DeviceKernels, Launcher
from fuseline.runtime.graphs import CudaGraphs, Graphed
from fuseline.runtime.kernels import HostKernels, Kernels
from fuseline.runtime.native import Runner
from fuseline.runtime.plan import HostCall, Plan

OPTIONS = ("threads", "graphs", "side_stream", "early_launch")
"""Those fields of `Config` that are about running, and not about compiling."""

Run = Any
"""Takes the flat arguments of a plan, and gives its results."""


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
        self._memory = _Memory(archive, manifest, choice.device)
        native = _native(archive, manifest)
        self._runner = _runner(archive, manifest, native)
        self._launcher: Launcher | None = None
        if choice.device.type == "cuda":
            assert native.launcher is not None
            self._launcher = Launcher.of(natives.library(archive, manifest, native.launcher))
        target = choice.target
        files = {n: read_program(archive, manifest, target, n) for n in manifest.programs}
        self._memory.keep(
            item.name
            for file in files.values()
            for item, spec in zip(file.inputs, file.plan.args, strict=True)
            if spec.written and item.kind in ("weight", "constant")
        )
        self.programs = {name: self._program(name, file) for name, file in files.items()}

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
        return Call(name, file, program, self._run(program, plan), fixed)

    def _run(self, program: Program, plan: Plan) -> Run:
        """The program; from graphs, where it is on a GPU."""
        if program.device.type == "cpu":
            return program
        graphs = self._config.graphs
        run: Run = program
        if graphs != "none":
            mode = "full" if graphs == "full" else "piecewise"
            largest = 512 if graphs == "auto" else None
            run = Graphed(program, CudaGraphs(program.device), mode=mode, largest=largest)
        return Aligned(run, plan)

    def _references(self, name: str, file: ProgramFile) -> Mapping[int, HostCall]:
        """What runs by torch: the IR is imported where there is such an op, and nowhere else."""
        if not file.plan.ops:
            return {}
        return references_of(self._archive, self.manifest, self.choice.target, name, file)

    def _kernels(self, name: str, file: ProgramFile) -> Kernels:
        archive, manifest, target = self._archive, self.manifest, self.choice.target
        symbols = file.plan.kernels
        if self.choice.device.type == "cpu":
            if not symbols:
                return HostKernels()
            library = natives.library(archive, manifest, target.libraries[name])
            return HostKernels({symbol: library.address(symbol) for symbol in symbols})
        assert self._launcher is not None
        binaries = {symbol: self._binary(symbol) for symbol in symbols}
        return DeviceKernels(
            *(binaries, self._launcher, self.choice.device, target.name),
            branches=self._config.side_stream,
            early=self._config.early_launch,
        )

    def _binary(self, symbol: str) -> Binary:
        """The code of a kernel: a cubin, or PTX, of which the driver makes one."""
        kernel = self.choice.target.kernels[symbol]
        member = kernel.ptx if self.choice.ptx else kernel.cubin
        assert member is not None
        code = self._archive.checked(member, self.manifest.members[member])
        return Binary(
            symbol=symbol,
            cubin=code + b"\0" * self.choice.ptx,
            parameters=kernel.parameters,
            warps=kernel.warps,
            shared_memory=kernel.shared_memory,
            resources=dict(kernel.resources),
            scratch=kernel.scratch,
            scratch_pointers=kernel.scratch_pointers,
            waits=kernel.waits,
        )


class _Memory:
    """The weights and the state of all programs."""

    def __init__(self, archive: Archive, manifest: Manifest, device: torch.device) -> None:
        self.device = device
        stored = manifest.weights
        try:
            memory = weights.read(_bytes_of(archive, manifest))
            if device.type != "cpu":
                memory = _moved(memory, device)
            self.tensors = {n: weights.place(memory, p) for n, p in stored.tensors.items()}
        except MalformedError as error:
            raise damaged(archive.path, str(error)) from error
        self._state: dict[str, Tensor] = {}
        self._path = archive.path

    def reset(self) -> None:
        """Give the state its first values, in place."""
        for name, tensor in self._state.items():
            tensor.copy_(self.tensors[name])

    def keep(self, names: Iterable[str]) -> None:
        """Make what programs write this process's own: the same for all of them, also for those
        that only read it.
        """
        for name in names:
            if name not in self._state:
                self._state[name] = self._stored(name, whole=True).clone()

    def _stored(self, name: str, *, whole: bool) -> Tensor:
        """A tensor of the file; a whole one has memory for each of its elements.

        Raises:
            ArtifactError: FL1102, where it is not there.

        """
        if name not in self.tensors:
            raise damaged(self._path, f"no weight {name!r}")
        if whole and not weights.is_within(self.tensors[name]):
            raise damaged(self._path, f"{name[:80]!r} that is larger than its memory")
        return self.tensors[name]

    def given(self, inputs: Sequence[Input], plan: Plan) -> dict[int, Tensor]:
        """The tensors of inputs that are not of a call, by number."""
        found: dict[int, Tensor] = {}
        packed = {number for group in plan.packed for number in group}
        for number, item in enumerate(inputs):
            if item.kind in ("weight", "constant"):
                tensor = self._stored(item.name, whole=number in packed)
                found[number] = self._state.get(item.name, tensor)
        for group in plan.packed:
            found |= _side_by_side(group, found)
        return found


def _side_by_side(group: Sequence[int], found: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Tensors that one product reads as one; as they are where they lie one behind the other."""
    members = [found[i] for i in group]
    ends = [t.data_ptr() + t.nbytes for t in members]
    if all(end == t.data_ptr() for end, t in zip(ends, members[1:], strict=False)):
        return {}
    buffer = torch.cat([t.reshape(-1) for t in members])
    parts: dict[int, Tensor] = {}
    start = 0
    for number, member in zip(group, members, strict=True):
        parts[number] = buffer[start : start + member.numel()].view(member.shape)
        start += member.numel()
    return parts


def _moved(memory: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
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
    assert stored.file is not None
    return Beside(archive, *stored.file).data()


def references_of(
    archive: Archive, manifest: Manifest, target: Target, name: str, file: ProgramFile
) -> Mapping[int, HostCall]:
    """What a program runs by torch, from the func that is beside it.

    Raises:
        ArtifactError: FL1102, if that cannot be read; FL1103, if it was changed.

    """
    member = target.ir[name]
    data = archive.checked(member, manifest.members[member])
    references: Any = importlib.import_module("fuseline.artifact.references")
    try:
        return references.references(data.decode(), file.plan.ops)
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
        verify_key: a PEM file with a public key of Ed25519: only what its owner has signed is
            loaded, and every byte of the file is read first.
        options: ``threads``, ``graphs``, ``side_stream`` and ``early_launch``, as in
            `fuseline.Config`; all others are about compiling, and were settled by the export.

    Raises:
        ArtifactError: FL1101 to FL1105, if the file cannot be read, or has nothing that runs here;
            FL1111, if it is not signed with the key, or was changed.
        LoadError: FL0802, without the package that checks signatures.
        UsageError: FL0102, for an option of another name; FL0101, for a wrong value.

    """
    config = _config(options)
    archive = Archive.open(Path(path))
    manifest = Manifest.of(archive) if verify_key is None else verified(archive, Path(verify_key))
    where = None if device is None else torch.device(device)
    return Loaded(archive, manifest, choose(archive, manifest, target, where), config)


def _config(options: Mapping[str, object]) -> Config:
    """The configuration; an option that would change nothing is a mistake."""
    config = Config.of(options)
    for name in options:
        if name not in OPTIONS:
            raise errors.UNKNOWN_OPTION.error(
                name,
                where="a load",
                found="an option of compiling: nothing is compiled here",
                expected=f"one of {', '.join(OPTIONS)}",
                hint="give it to the export",
            )
    return config


__all__ = ["Loaded", "load"]
