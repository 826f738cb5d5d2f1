"""Reproducers: one text file with a func, and all that is needed to do with it what was done.

    // fuseline reproducer 1
    // pipeline: canonicalize,fuse-pointwise{max-ops=8}
    // seed: 0
    // sizes: {"B": 3}
    func @f(%x: f32[B, 64]) {
      ...

The head is comments, so that whatever reads IR text reads the whole file. Weights are not in it:
arguments are made from their types and the seed. Where they are wanted they lie beside it, in a
file of safetensors that the head names, with its digest.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from fuseline import errors
from fuseline._version import __version__
from fuseline.config import Config
from fuseline.debug.files import replace_file, replace_text
from fuseline.debug.seeded import make_binding, model_arguments
from fuseline.ir.core import Func, IRError
from fuseline.ir.evaluate import Argument
from fuseline.ir.layout import Layout
from fuseline.ir.text import parse_func, print_func
from fuseline.ir.types import IntType, substitute

T = TypeVar("T")

HEAD = "// fuseline reproducer 1"

_KEYS = ("pipeline", "failed", "seed", "sizes", "strides", "options", "weights", "versions")


PLACES = (
    *("cache_dir", "cache_base", "dump_dir", "html", "log", "reuse", "threads"),
    *("remarks", "remarks_missed", "remarks_output", "require", "check_numerics", "cost"),
)
"""Options that are about a machine, or what is told, and not about what is compiled."""


def given_options(config: Config) -> dict[str, str]:
    """The options that were given, as text, without those that are about this machine."""
    found: dict[str, str] = {}
    for source in config.sources():
        if source.origin == "default" or source.name in (*PLACES, "disable"):
            continue
        found[source.name] = _text_of(source.value)
    return found


def _text_of(value: object) -> str:
    """An option as its variable has it."""
    if not isinstance(value, tuple):
        return str(value)
    return ",".join(map(str, cast("tuple[object, ...]", value)))


def versions() -> dict[str, str]:
    """What the numbers and the code of a compilation depend on here."""
    found = {"fuseline": __version__, "torch": str(torch.__version__)}
    return found | {"python": platform.python_version(), "machine": platform.machine()}


@dataclass(frozen=True)
class Case:
    """A func and what is done with it.

    Attributes:
        func: before the pipeline.
        pipeline: its text; None: the pipeline of a compilation.
        options: those of the compilation that were given, by name.
        seed: of the arguments.
        sizes: of symbols; others get small ones.
        strides: of arguments that are not dense, by name.
        failed: the pass that failed on it and what it said; empty where none did.
        versions: of what it was seen with.
        weights: the file of arguments beside it, and its digest.
    """

    func: Func
    pipeline: str | None = None
    options: Mapping[str, str] = field(default_factory=dict[str, str])
    seed: int = 0
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])
    strides: Mapping[str, Sequence[int]] = field(default_factory=dict[str, Sequence[int]])
    failed: str = ""
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    weights: tuple[str, str] | None = None

    def to_text(self) -> str:
        """The file's text."""
        lines = [HEAD]
        lines += [f"// pipeline: {self.pipeline}"] if self.pipeline is not None else []
        lines += [f"// failed: {' '.join(self.failed.split())}"] if self.failed else []
        lines.append(f"// seed: {self.seed}")
        for name in ("sizes", "strides", "options", "weights", "versions"):
            value = getattr(self, name)
            lines += [f"// {name}: {json.dumps(value)}"] if value else []
        return "\n".join([*lines, print_func(self.func, locations=True)])

    @classmethod
    def of_text(cls, text: str, where: str) -> Case:
        """A case from IR text with such a head, or without one.

        Args:
            text: of a reproducer, or of any IR file.
            where: the file, for diagnostics.

        Raises:
            LoadError: FL0830, for what is neither.

        """
        try:
            func = parse_func(text)
            head = _head(text)
            weights = json.loads(head.get("weights", "null"))
            return cls(
                func,
                head.get("pipeline"),
                options=_mapping(head, "options", str),
                seed=int(head.get("seed", "0")),
                sizes=_mapping(head, "sizes", int),
                strides=_mapping(head, "strides", _strides),
                failed=head.get("failed", ""),
                versions=_mapping(head, "versions", str),
                weights=None if weights is None else (str(weights[0]), str(weights[1])),
            )
        except (IRError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
            raise errors.BAD_REPRODUCER.error(where, found=str(error)) from error

    @classmethod
    def read(cls, path: Path) -> Case:
        """The case in a file.

        Raises:
            LoadError: FL0830, if it is none or cannot be read.

        """
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            found = getattr(error, "strerror", None) or "no text"
            raise errors.BAD_REPRODUCER.error(str(path), found=found) from error
        return cls.of_text(text, str(path))

    def write(self, path: Path) -> None:
        """Put it into a file, at once: a reader finds the old text or the new one.

        Raises:
            UsageError: FL0103, if it cannot be written.

        """
        _written(path, lambda: replace_text(path, self.to_text()))

    def with_weights(self, arguments: Sequence[Argument], path: Path) -> Case:
        """The same case with its arguments in a file beside ``path``, which is written.

        Raises:
            LoadError: FL0802, without the package safetensors.
            UsageError: FL0103, if the file cannot be written.

        """
        save_file = _safetensors("save_file")
        tensors = {
            str(number): value.detach().contiguous().clone()
            for number, value in enumerate(arguments)
            if isinstance(value, Tensor)
        }
        beside = path.with_suffix(".safetensors")
        _written(beside, lambda: replace_file(beside, lambda to: save_file(tensors, str(to))))
        return replace(self, weights=(beside.name, _digest(beside)))

    def arguments(self, folder: Path | None = None) -> list[Argument]:
        """Seeded arguments, or those in the file beside the reproducer, in ``folder``.

        Raises:
            LoadError: FL0830, if that file is not there or not the one that was written.

        """
        known = {name: size for name, size in self.sizes.items() if name in self.func.symbols}
        binding = make_binding(self.func) | known
        made = model_arguments(self.func, seed=self.seed, binding=binding)
        stored = self._stored(folder)
        for number, arg in enumerate(self.func.args):
            if isinstance(arg.type, IntType):
                made[number] = substitute(arg.type.value, binding)
                continue
            value = stored.get(str(number), cast("Tensor", made[number]))
            made[number] = _laid_out(value, self.strides.get(arg.hint))
        return made

    def layouts(self) -> dict[str, Layout]:
        """How the arguments that are not dense lie in memory, by name."""
        return {name: Layout(0, tuple(strides)) for name, strides in self.strides.items()}

    def _stored(self, folder: Path | None) -> Mapping[str, Tensor]:
        if self.weights is None:
            return {}
        name, digest = self.weights
        path = (folder or Path()) / Path(name).name
        found = "no such file" if not path.is_file() else _digest(path)
        if found != digest:
            raise errors.BAD_REPRODUCER.error(f"arguments {path}", found=found, expected=digest)
        return cast("Mapping[str, Tensor]", _safetensors("load_file")(str(path)))


def _written(path: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        found = f"{path} ({error.strerror or error})"
        raise errors.BAD_ARGUMENT.error(
            "--output", found=found, expected="a file that can be written"
        ) from error


def _mapping(head: Mapping[str, str], name: str, kind: Callable[[Any], T]) -> dict[str, T]:
    """A key of the head that is a JSON object; ``kind`` is what its values are."""
    found: object = json.loads(head.get(name, "{}"))
    if not isinstance(found, dict):
        raise ValueError(f"{name}, which are no JSON object")
    return {str(k): kind(v) for k, v in cast("dict[object, Any]", found).items()}


def _strides(value: Any) -> tuple[int, ...]:
    found = cast("list[object]", value) if isinstance(value, list) else [None]
    numbers = tuple(n for n in found if isinstance(n, int) and n >= 0)
    if len(numbers) != len(found):
        raise ValueError(f"strides {value}, which are no list of numbers")
    return numbers


def _head(text: str) -> dict[str, str]:
    """The keys of the comments before the func; none where the first is not ours."""
    lines = text.splitlines()
    first = lines[0].strip() if lines else ""
    if not first.startswith(HEAD.rpartition(" ")[0]):
        return {}
    if first != HEAD:
        raise ValueError(f"{first.removeprefix('// ')!r}, and only version 1 is known here")
    found: dict[str, str] = {}
    for line in lines[1:]:
        if not line.startswith("//"):
            break
        key, _, value = line.removeprefix("//").partition(":")
        found[key.strip()] = value.strip()
    if unknown := found.keys() - _KEYS:
        raise ValueError(f"{', '.join(sorted(unknown))} in the head, which has {', '.join(_KEYS)}")
    return found


def _laid_out(value: Tensor, strides: Sequence[int] | None) -> Tensor:
    """The same numbers with these strides."""
    if strides is None or value.numel() == 0:
        return value
    if len(strides) != value.dim():
        found = f"strides {list(strides)} for a tensor of {value.dim()} dims"
        raise errors.BAD_REPRODUCER.error("strides", found=found)
    laid = torch.empty_strided(value.shape, tuple(strides), dtype=value.dtype)
    return laid.copy_(value)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _safetensors(name: str) -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise errors.MISSING_PACKAGE.error("safetensors", hint="pip install safetensors") from None
    return getattr(safetensors.torch, name)


__all__ = ["HEAD", "Case", "given_options", "versions"]
