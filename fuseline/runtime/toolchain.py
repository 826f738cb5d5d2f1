"""The C++ compiler of this machine: which it is, and what it generates code for.

A `Toolchain` is part of every key of built code, so it names the compiler by its version, and the
processor by explicit options: what ``-march=native`` stands for here, not the word. Finding it
costs one run of the compiler; the rest is probed once and kept in the cache.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import cast

from fuseline import config, errors
from fuseline.runtime.cache import Cache, Entry, Factors, Json

CANDIDATES = ("c++", "g++", "clang++")

FEATURES = {
    "__AVX2__": "avx2",
    "__FMA__": "fma",
    "__F16C__": "f16c",
    "__AVX512F__": "avx512f",
    "__AVX512BW__": "avx512bw",
    "__AVX512DQ__": "avx512dq",
    "__AVX512VL__": "avx512vl",
    "__AVX512BF16__": "avx512bf16",
    "__AVX512FP16__": "avx512fp16",
    "__AVX512VNNI__": "avx512vnni",
    "__AVXVNNI__": "avxvnni",
    "__AMX_TILE__": "amx_tile",
    "__AMX_BF16__": "amx_bf16",
    "__AMX_INT8__": "amx_int8",
    "__ARM_NEON": "neon",
    "__ARM_FEATURE_BF16": "bf16",
    "__ARM_FEATURE_FP16_VECTOR_ARITHMETIC": "fp16",
    "__ARM_FEATURE_SVE": "sve",
}
"""Predefined macros that tell what the processor can do, and our names for it."""

_PROBE_SECONDS = 60.0


@dataclass(frozen=True)
class Toolchain:
    """A C++ compiler that works; or one that is not here, but whose work is in the cache.

    Attributes:
        command: how it is called; empty where it is not here, so that nothing can be built.
        identity: its version; the same wherever this compiler is installed.
        cpu: the options that select this processor.
        features: what the processor can do, in the words of `FEATURES`.
    """

    command: tuple[str, ...]
    identity: str
    cpu: tuple[str, ...]
    features: frozenset[str]

    @property
    def factors(self) -> dict[str, Json]:
        """What a key says of the toolchain."""
        return {"compiler": self.identity, "cpu": list(self.cpu)}

    @property
    def portable(self) -> Toolchain:
        """The same compiler, for code that every processor of this kind of machine runs."""
        return replace(self, cpu=(), features=frozenset())


def find_toolchain(cache: Cache, cxx: str | None = None) -> Toolchain:
    """The compiler `cxx`, else that of the variable CXX, else the first of `CANDIDATES`.

    On a machine without any, the one that has filled the cache on a machine with the same processor
    (an image may bring the cache, and leave the compiler out).

    Raises:
        BuildError: FL0701 if there is none, FL0702 if the one that was named does not work.
    """
    named = cxx or config.host_compiler()
    for command in [_words(named)] if named else [[name] for name in CANDIDATES]:
        program = shutil.which(command[0])
        if program is not None:
            return _toolchain(cache, (program, *command[1:]))
    if named:
        raise errors.COMPILER_UNUSABLE.error(named, found="no such program")
    return _absent_toolchain(cache)


def _words(named: str) -> list[str]:
    """A command line as words, at least one."""
    try:
        words = shlex.split(named)
    except ValueError as error:
        raise errors.COMPILER_UNUSABLE.error(named, found=str(error)) from error
    if not words:
        raise errors.COMPILER_UNUSABLE.error(repr(named), found="no program's name")
    return words


def python_include() -> Path | None:
    """The directory of ``Python.h`` for this interpreter, None where it is not installed."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}{sys.abiflags}"
    usual = Path(sys.base_prefix, "include", version)  # sysconfig takes milliseconds to say so
    if (usual / "Python.h").is_file():
        return usual
    folders = (Path(sysconfig.get_path(name)) for name in ("include", "platinclude"))
    return next((folder for folder in folders if (folder / "Python.h").is_file()), None)


def toolchains_of_others(cache: Cache) -> list[Toolchain]:
    """The toolchains that have filled the cache on machines of this kind, with whatever processor,
    the one used last first: for portable code that is in the cache, and for nothing else.
    """
    here = f" {_machine()}"
    found = [_of_entry(e) for e in _toolchain_entries(cache) if here in _compiler(e)]
    return [toolchain.portable for toolchain in found]


def _absent_toolchain(cache: Cache) -> Toolchain:
    """The toolchain that was used last for the entries of the cache."""
    processor = _processor()
    for entry in _toolchain_entries(cache):
        if entry.factors.get("processor") == processor:
            return _of_entry(entry)
    raise no_compiler()


def _toolchain_entries(cache: Cache) -> list[Entry]:
    """What the cache says of compilers, the latest use first."""
    entries = [entry for entry in cache.entries() if entry.kind == "toolchain"]
    return sorted(entries, key=lambda entry: entry.used, reverse=True)


def _compiler(entry: Entry) -> str:
    """What an entry says of the version; empty where it says nothing, as one of others may."""
    return str(entry.factors.get("compiler", ""))


def _of_entry(entry: Entry) -> Toolchain:
    """A toolchain that is not here."""
    return _described((), _compiler(entry), entry)


def no_compiler() -> errors.FuselineError:
    """The error that says that a compiler is missing."""
    return errors.NO_COMPILER.error(expected=f"one of {', '.join(CANDIDATES)}")


@lru_cache
def _toolchain(cache: Cache, command: tuple[str, ...]) -> Toolchain:
    identity = _identity(command)
    factors: Factors = {"compiler": identity, "processor": _processor()}
    entry = cache.get_or_build("toolchain", factors, lambda folder: _probe(command, folder))
    return _described(command, identity, entry)


def _described(command: tuple[str, ...], identity: str, entry: Entry) -> Toolchain:
    found = cast("dict[str, list[str]]", json.loads(entry.file("probe.json").read_text()))
    return Toolchain(
        command=command,
        identity=identity,
        cpu=tuple(found["cpu"]),
        features=frozenset(found["features"]),
    )


def _identity(command: Sequence[str]) -> str:
    """The compiler's version line, without the name that it was called by, its target, and the
    options that it is always called with.
    """
    lines = _run(command, "--version").stdout.splitlines()
    target = [line for line in lines if line.startswith("Target:")]
    version = lines[0].split(maxsplit=1)[-1] if lines else ""
    options = itertools.dropwhile(lambda word: not word.startswith("-"), command[1:])
    return " ".join([version, *target, _machine(), *options])


def _machine() -> str:
    """The kind of machine that code is built for."""
    return f"{platform.machine()} {sys.platform}"


def _processor() -> str:
    """A digest of what the operating system says of the processor; any change probes anew."""
    wanted = ("flags", "Features", "model", "model name", "cpu family", "CPU part", "vendor_id")
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        lines = [line for line in first.splitlines() if line.split("\t")[0].strip() in wanted]
    except OSError:
        lines = [platform.processor()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _probe(command: Sequence[str], folder: Path) -> None:
    native = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    macros = _run(command, native, "-dM", "-E", "-x", "c++", "/dev/null").stdout
    defined = {line.split()[1] for line in macros.splitlines() if line.startswith("#define ")}
    if not defined & {"__GNUC__", "__clang__"}:
        raise errors.COMPILER_UNUSABLE.error(command[0], found="neither GCC nor Clang")
    shown = _run(command, native, "-###", "-c", "-x", "c++", "/dev/null").stderr
    cpu = _clang_options(shown) if "__clang__" in defined else _gcc_options(shown)
    features = sorted(FEATURES[macro] for macro in defined & FEATURES.keys())
    found = {"cpu": cpu or [native], "features": features}
    (folder / "probe.json").write_text(json.dumps(found))


def _gcc_options(shown: str) -> list[str]:
    """The machine options that GCC's driver hands to the compiler proper.

    Cache sizes (``--param l1-cache-size``) are left out: they say little, and tell apart machines
    that could share what they build.
    """
    line = next((line for line in shown.splitlines() if "cc1plus" in line), "")
    return [word for word in shlex.split(line) if word.startswith("-m")]


def _clang_options(shown: str) -> list[str]:
    """The processor and its features, as Clang's driver hands them on."""
    words = shlex.split(next((line for line in shown.splitlines() if '"-cc1"' in line), ""))
    pairs = list(itertools.pairwise(words))
    options = [f"-march={value}" for word, value in pairs if word == "-target-cpu"]
    for feature in sorted(value for word, value in pairs if word == "-target-feature"):
        options += ["-Xclang", "-target-feature", "-Xclang", feature]
    return options


def _run(command: Sequence[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            [*command, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise errors.COMPILER_UNUSABLE.error(command[0], found=str(error)) from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise errors.COMPILER_UNUSABLE.error(command[0], found=said[-1])
    return done
