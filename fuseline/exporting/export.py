"""`export`: capture, compile for each target, write one file."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fuseline import _version, errors
from fuseline.artifact import machine, weights
from fuseline.artifact.archive import (
    PAGE,
    Member,
    Writer,
    beside,
    check_place,
    copied,
    replacing,
)
from fuseline.artifact.manifest import (
    MANIFEST,
    SCHEMA,
    SIGNATURE,
    CudaKernel,
    Manifest,
    Native,
    Target,
    Text,
    Weights,
)
from fuseline.artifact.program import ProgramFile
from fuseline.artifact.signing import check_key, signed
from fuseline.build import Tools
from fuseline.codegen.targets import TARGETS
from fuseline.compilation import Compilation
from fuseline.compiler import Compiler
from fuseline.config import Config
from fuseline.exporting import describe
from fuseline.exporting.capture import (
    Model,
    OnStage,
    Part,
    Stage,
    captured,
    common_tensors,
    untold,
)
from fuseline.frontend.imported import Whole
from fuseline.frontend.importer import CannotImport
from fuseline.header import Head, kind_of
from fuseline.ir.text import print_func
from fuseline.report import KernelRecord, NumericsRecord
from fuseline.runtime.build import Progress
from fuseline.runtime.gpu.kernels import Launcher
from fuseline.runtime.native import Runner

Emit = Literal["sass", "ptx", "both"]
WEIGHTS = "weights.safetensors"
TOKENIZER = "tokenizer.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        manifest: what it says of itself.
        nbytes: its size.
        programs: each program for each target.
        numerics: what `check_numerics` found, where it was asked for, by program and target.
    """

    path: Path
    manifest: Manifest
    nbytes: int
    programs: tuple[ProgramFile, ...]
    numerics: Mapping[tuple[str, str], tuple[NumericsRecord, ...]]


@dataclass
class _Made:
    """Members of the file, and what is said of them, in the making."""

    members: dict[str, bytes] = field(default_factory=dict[str, bytes])
    targets: list[Target] = field(default_factory=list[Target])
    groups: list[list[str]] = field(default_factory=list[list[str]])
    programs: list[ProgramFile] = field(default_factory=list[ProgramFile])
    numerics: dict[tuple[str, str], tuple[NumericsRecord, ...]] = field(
        default_factory=dict[tuple[str, str], tuple[NumericsRecord, ...]]
    )


def export(
    model: Model,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    path: str | Path,
    targets: Sequence[str] = ("cpu",),
    dynamic_shapes: Any = None,
    **options: Any,
) -> Exported:
    """Compile a model ahead of time and write it to one file.

    Args:
        model: a module, on the CPU; or, without anything else about its inputs, an
            ``ExportedProgram`` of torch, or what `fuseline.frontend.onnx.import_onnx` gives.
        args: example positional arguments.
        kwargs: example keyword arguments.
        path: of the file to write, ``.fuse`` by custom; it is replaced as a whole.
        targets: ``cpu``, ``sm_80``, ``sm_90``, ``sm_100``, ``sm_120``; no GPU is needed.
        dynamic_shapes: which dims may vary, as ``torch.export.export`` takes it.
        options: those of `export_parts`.

    Raises:
        ArtifactError: FL1106, if it cannot be written; FL1107, if the model cannot be captured
            whole.
        BuildError: with ``strict=True``, if a kernel cannot be built.

    """
    part = Part(model, args, dict(kwargs or {}), dynamic_shapes)
    return export_parts({"main": part}, path=path, targets=targets, **options)


def export_parts(
    parts: Mapping[str, Part],
    *,
    path: str | Path,
    targets: Sequence[str] = ("cpu",),
    cpu_isa: Sequence[str] = ("native",),
    emit: Emit = "sass",
    embed_weights: bool = True,
    licence: str = "",
    text: Text | None = None,
    tokenizer: str | None = None,
    command: str = "",
    versions: Iterable[str] = (),
    sign: Path | None = None,
    progress: OnStage | None = None,
    **options: Any,
) -> Exported:
    """Write several programs over one set of weights, such as a prefill and a decode step.

    Parameters and buffers of one name are one tensor in all of them; what programs write (a cache)
    is kept from call to call, by all of them together.

    Args:
        parts: by name.
        path: as in `export`.
        targets: as in `export`.
        cpu_isa: instruction sets of a CPU, each of which gets code of its own: ``native``,
            ``x86-64-v3``, ``baseline``.
        emit: for GPUs: machine code (``sass``), ``ptx``, which later GPUs run too, or both.
        embed_weights: False writes them to a file beside, ``<path>.<digest>.safetensors``.
        licence: of the model, for the manifest.
        text: that the programs are a language model's.
        tokenizer: of the model, in the format of the package tokenizers.
        command: what was typed, for the manifest.
        versions: names of further packages whose versions the manifest notes.
        sign: a PEM file with a private key of Ed25519.
        progress: told of every step.
        options: fields of `fuseline.Config`, such as ``strict``.

    Raises:
        ArtifactError: FL1106 and FL1107, as in `export`; FL1112, if the key cannot be used.
        LoadError: FL0802, without the package that signs.

    """
    path = Path(path)
    _check_options(targets, emit, options)
    check_place(path)
    if sign is not None:
        check_key(sign)
    config: Config = options.pop("config", None) or Config.of(options)
    config = config.replace(reuse=False)
    if config.cache == "latent":
        raise errors.INVALID_OPTION.error(
            "cache",
            found="'latent' for an export",
            expected="'model': a file keeps the model's own",
        )
    tell = progress or untold
    exported = {name: captured(name, part, tell) for name, part in parts.items()}
    made = _Made()
    for wanted in _wanted(targets, cpu_isa):
        made.targets.append(_compiled(wanted, exported, config, emit, made, tell))
    tell(Stage("write"))
    native = _native(Tools.find(config), made, gpu=any(t.name != "cpu" for t in made.targets))
    if config.strict and (without := by_torch(made.programs)):
        raise errors.CANNOT_EXPORT.error(
            " and ".join(parts),
            found=f"no kernel for {'; '.join(map(placed, without))}",
            hint="without strict they run by torch",
        )
    tensors = common_tensors(exported)
    model = next(iter(parts.values())).model
    about = {
        "made_with": _versions(command, versions),
        "options": ("batch_invariant",) if config.batch_invariant else (),
        "model": _title(model),
        "licence": licence,
        "programs": tuple(parts),
        "targets": tuple(made.targets),
        "native": (native,),
        "text": text,
    }
    if text is not None and tokenizer is not None:
        made.members[TOKENIZER] = tokenizer.encode()
        about["text"] = replace(text, tokenizer=TOKENIZER)
    return _written(path, made, tensors, about, embed=embed_weights, sign=sign)


def _check_options(targets: Sequence[str], emit: str, options: Mapping[str, Any]) -> None:
    """Refuse what cannot be meant before anything is compiled."""
    if isinstance(targets, str) or not targets:
        raise errors.INVALID_OPTION.error(
            "targets", found=repr(targets), expected="a list, such as ['cpu', 'sm_90']"
        )
    if "target" in options:
        raise errors.INVALID_OPTION.error(
            "target", found=repr(options["target"]), expected="targets, a list of them"
        )
    if emit not in get_args(Emit):
        expected = f"one of {', '.join(get_args(Emit))}"
        raise errors.INVALID_OPTION.error("emit", found=repr(emit), expected=expected)


def by_torch(programs: Iterable[ProgramFile]) -> list[KernelRecord]:
    """What runs by torch on any target: one record for each operation, as it is first met."""
    records = (record for program in programs for record in program.kernels)
    found = {r.symbol: r for r in reversed(list(records)) if r.status == "reference"}
    return sorted(found.values(), key=lambda record: record.symbol)


def placed(record: KernelRecord) -> str:
    """An operation with its place in the model: ``aten.sort.stable at layers.0 (moe.py:41)``."""
    others = f", and {record.launches - 1} more" if record.launches > 1 else ""
    return f"{record.symbol}{f' at {record.origin}' if record.origin else ''}{others}"


def _check_operators(name: str, wanted: _Wanted, file: ProgramFile) -> None:
    """On a CPU torch traces some layers to operators that no GPU has."""
    for record in by_torch([file]):
        if record.symbol.startswith(("aten.mkldnn", "mkldnn.")):
            raise errors.CANNOT_EXPORT.error(
                name,
                found=f"{placed(record)}, for {wanted.title}",
                expected="an operator that GPUs have: this one is of CPUs alone",
                hint="export it for cpu alone, or write the layer without this operator",
            )


def _title(model: Model) -> str:
    """What the manifest says of a model."""
    if isinstance(model, Whole):
        return model.title
    return f"{type(model).__module__}.{type(model).__qualname__}"


@dataclass(frozen=True)
class _Wanted:
    """A target, and for a CPU which instruction set."""

    name: str
    isa: str = ""

    @property
    def title(self) -> str:
        return f"{self.name}:{self.isa}" if self.isa else self.name


def _wanted(targets: Sequence[str], isas: Sequence[str]) -> list[_Wanted]:
    known = ("native", *machine.ISAS)
    for isa in isas:
        if isa not in known:
            raise errors.INVALID_OPTION.error(
                "cpu_isa", found=repr(isa), expected=f"one of {', '.join(known)}"
            )
    found: list[_Wanted] = []
    for name in dict.fromkeys(targets):
        if name not in TARGETS:
            raise errors.INVALID_OPTION.error(
                "targets", found=repr(name), expected=f"some of {', '.join(TARGETS)}"
            )
        found += [_Wanted(name, isa) for isa in isas] if name == "cpu" else [_Wanted(name)]
    return found


def _compiled(
    wanted: _Wanted,
    exported: Mapping[str, describe.Ahead],
    config: Config,
    emit: Emit,
    made: _Made,
    tell: OnStage,
) -> Target:
    """All programs for one target."""
    folder = wanted.title.replace(":", "-")
    target = Target(wanted.name, wanted.isa, "", (), {}, {}, {}, {}, {})
    programs: dict[str, str] = {}
    ir: dict[str, str] = {}
    libraries: dict[str, str] = {}
    kernels: dict[str, CudaKernel] = {}
    sources: dict[str, str] = {}
    heads: dict[str, Head] = {}
    for name, each in exported.items():
        what = f"compile {name} for {wanted.title}"
        tell(Stage(what))

        def built(at: Progress, what: str = what) -> None:
            tell(Stage(what, at.done, at.total, at.name))

        compiler = Compiler(config.replace(target=wanted.name), built, title=wanted.title)
        if wanted.name == "cpu":
            target = replace(target, **_isa(compiler, wanted.isa))
        try:
            compilation = compiler.ahead(each.captured)
            if config.check_numerics:
                made.numerics[name, wanted.title] = tuple(compiler.checked)
        except CannotImport as error:
            raise errors.CANNOT_EXPORT.error(name, found=str(error)) from error
        try:
            file = describe.program_file(name, each, compilation)
        except TypeError as error:
            raise errors.CANNOT_EXPORT.error(name, found=str(error)) from error
        if wanted.name != "cpu":
            _check_operators(name, wanted, file)
        made.programs.append(file)
        programs[name] = f"programs/{name}/{folder}.json"
        made.members[programs[name]] = _json(file.to_json())
        ir[name] = f"programs/{name}/{folder}.ir"
        made.members[ir[name]] = print_func(compilation.func, locations=True).encode()
        made.groups += describe.groups_of(name, each.captured, compilation)
        _binaries(name, folder, compilation, emit, made, libraries, kernels)
        for symbol, head in compilation.built.heads().items():
            text = compilation.built.sources[symbol]
            heads[symbol] = heads[symbol] + head if symbol in heads else head
            sources[symbol] = f"sources/{folder}/{symbol}.{kind_of(text)}"
            made.members[sources[symbol]] = heads[symbol].on(text).encode()
    return replace(
        target,
        programs=programs,
        ir=ir,
        libraries=libraries,
        kernels=dict(sorted(kernels.items())),
        sources=dict(sorted(sources.items())),
    )


def _isa(compiler: Compiler, isa: str) -> dict[str, Any]:
    """Have a compiler make code for an instruction set; what the target then is."""
    tools = compiler.tools
    if tools.toolchain is None:
        return {"isa": isa, "machine": machine.machine()}
    if isa == "native":
        options = tools.toolchain.cpu
    else:
        options, _ = machine.ISAS[isa]
        chain = replace(tools.toolchain, cpu=options, features=frozenset())
        compiler.use(replace(tools, toolchain=chain))
    needs = (
        machine.ISAS[isa][1]
        if isa != "native"
        else machine.needed(options, tools.toolchain.features)
    )
    return {"isa": isa, "machine": machine.machine(), "features": tuple(sorted(needs))}


def _binaries(
    name: str,
    folder: str,
    compilation: Compilation,
    emit: Emit,
    made: _Made,
    libraries: dict[str, str],
    kernels: dict[str, CudaKernel],
) -> None:
    """The code of a program's kernels."""
    built = compilation.built
    if built.library is not None:
        libraries[name] = f"binaries/{folder}/{name}.so"
        made.members[libraries[name]] = built.library.read_bytes()
    for symbol, binary in built.binaries.items():
        if symbol in kernels or symbol not in built.assembled.kernels:
            continue
        place = f"binaries/{folder}/{symbol}"
        ptx = f"{place}.ptx" if emit in ("ptx", "both") else None
        cubin = f"{place}.cubin" if emit in ("sass", "both") else None
        if cubin:
            made.members[cubin] = binary.cubin
        if ptx:
            made.members[ptx] = binary.ptx.encode()
        kernels[symbol] = CudaKernel(
            cubin,
            ptx,
            binary.parameters,
            binary.warps,
            binary.shared_memory,
            dict(binary.resources),
            binary.waits,
            binary.scratch,
            binary.scratch_pointers,
        )


def _native(tools: Tools, made: _Made, *, gpu: bool) -> Native:
    """The runtime's own code."""
    kind = machine.machine()
    folder = f"native/{kind.replace(' ', '-')}"
    if tools.host is None:
        assert tools.problem is not None, "without a problem there is a compiler"
        raise tools.problem
    runner, binding = Runner.files(tools.cache, tools.host)
    made.members[f"{folder}/runner.so"] = runner.read_bytes()
    launcher = f"{folder}/launcher.so" if gpu else None
    if launcher:
        made.members[launcher] = Launcher.build(tools.cache, tools.host).path.read_bytes()
    bindings: dict[str, str] = {}
    if binding is not None:
        bindings[EXTENSION_SUFFIXES[0]] = f"{folder}/binding{EXTENSION_SUFFIXES[0]}"
        made.members[bindings[EXTENSION_SUFFIXES[0]]] = binding.read_bytes()
    return Native(kind, f"{folder}/runner.so", launcher, bindings)


def _written(
    path: Path,
    made: _Made,
    tensors: Mapping[str, Tensor],
    about: dict[str, Any],
    *,
    embed: bool,
    sign: Path | None,
) -> Exported:
    """The file, with the manifest as its last member."""
    groups = _disjoint(made.groups)
    stored = weights.stored(tensors, groups, describe.state_of(made.programs))
    head, size = weights.header(stored.memory, groups)
    apart = None
    with ExitStack() as together:
        if not embed:
            apart = together.enter_context(_beside(path, stored, head))
        archive = together.enter_context(Writer(together.enter_context(replacing(path))))
        for name, data in sorted(made.members.items()):
            archive.add_bytes(name, data)
        if embed:
            archive.add(WEIGHTS, size, weights.parts(stored.memory, head), align=PAGE)
        manifest = Manifest(
            schema=SCHEMA,
            fuseline=_version.__version__,
            weights=Weights(
                WEIGHTS if embed else None,
                apart,
                dict(sorted(stored.tensors.items())),
            ),
            members=dict(archive.members),
            **about,
        )
        text = manifest.to_bytes()
        archive.add_bytes(MANIFEST, text)
        if sign is not None:
            archive.add_bytes(SIGNATURE, signed(text, sign))
    return Exported(path, manifest, path.stat().st_size, tuple(made.programs), made.numerics)


@contextmanager
def _beside(path: Path, stored: weights.Stored, head: bytes) -> Generator[tuple[str, Member]]:
    """Weights in a file of their own, for an artifact that the block writes.

    They are named by what they are: an earlier artifact keeps its own, and never takes others.
    """
    member = copied(weights.parts(stored.memory, head), lambda part: None)
    name = path.with_name(f"{path.name}.{member.sha256[:12]}.safetensors")
    with beside(name, lambda file: copied(weights.parts(stored.memory, head), file.write)):
        yield name.name, member


def _disjoint(groups: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Groups that can all lie side by side at once: the first to name a tensor has it. Tensors of
    the others are copied together when they are loaded.
    """
    taken: set[str] = set()
    found: list[Sequence[str]] = []
    for group in dict.fromkeys(map(tuple, groups)):
        if not taken & set(group):
            found.append(group)
            taken |= set(group)
        elif not any(set(group) == set(g) for g in found):
            log.info("%s lie elsewhere for another target: copied when loaded", ", ".join(group))
    return found


def _versions(command: str, names: Iterable[str]) -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {**found, "command": command} if command else found


def _json(data: object) -> bytes:
    return json.dumps(data, separators=(",", ":"), sort_keys=True).encode()


__all__ = ["Exported", "export", "export_parts"]
