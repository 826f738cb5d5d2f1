"""From Triton source to a cubin, for any NVIDIA target and without a GPU or a driver.

    entry = build_triton(cache, source, capability=90)
    binary = Binary.of(entry)               # cubin, PTX, registers, spills, shared memory

Triton compiles in this process; what it makes goes into our cache, and nowhere else. Everything
that changes the bytes is in the key: source, signature, hints, options, target, and the versions of
Triton and of the assemblers that it carries.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import io
import json
import linecache
import subprocess
import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from fuseline import errors
from fuseline.runtime.cache import Cache, Entry, Json
from fuseline.runtime.gpu.binary import inspect

NUMERICS: dict[str, Any] = {
    "enable_fp_fusion": False,  # a product that is rounded is not what an fma adds
    "enable_reflect_ftz": False,  # denormals are numbers
    "default_dot_input_precision": "ieee",  # float32 products are float32 products
}
"""Options that change results; those that this Triton does not have are left out."""

_SAID = 400
"""Characters of the compiler's words that a message repeats."""

_compiling = threading.Lock()


@dataclass(frozen=True)
class TritonSource:
    """One kernel.

    Attributes:
        symbol: the name of the function, and of the kernel in the cubin.
        text: a Python module that defines it.
        signature: the type of each argument by name: ``*bf16``, ``i32``, ...
        hints: divisors of arguments that are known: bytes of pointers, values of integers.
        warps: of a block.
        stages: of software pipelining.
    """

    symbol: str
    text: str
    signature: Mapping[str, str]
    hints: Mapping[str, int] = field(default_factory=dict[str, int])
    warps: int = 4
    stages: int = 2

    def factors(self, capability: int) -> dict[str, Json]:
        """The key of the binary: all that can change its bytes."""
        return {
            "name": self.symbol,
            "source": hashlib.sha256(self.text.encode()).hexdigest(),
            "signature": dict(self.signature),
            "hints": dict(self.hints),
            "warps": self.warps,
            "stages": self.stages,
            "numerics": dict(_numerics()),
            "target": f"sm_{capability}",
            "compiler": identity(),
        }


class TritonError(errors.BuildError):
    """Triton, or the assembler behind it, refused a kernel."""

    def __init__(self, diagnostic: errors.Diagnostic, *, source: TritonSource, output: str) -> None:
        super().__init__(diagnostic)
        self.source = source
        self.output = output


def has_triton() -> bool:
    """Whether Triton is installed; importing it is left for later."""
    return importlib.util.find_spec("triton") is not None


def _module(name: str) -> Any:
    """A module of Triton, which has no types, and takes a while to import."""
    return importlib.import_module(name)


def _knobs() -> Any:
    return _module("triton.knobs")


@lru_cache(maxsize=1)
def identity() -> str:
    """The versions of Triton and of its assemblers."""
    nvidia = _knobs().nvidia
    found = [(name, getattr(nvidia, name, None)) for name in ("ptxas", "ptxas_blackwell")]
    assemblers = [f"{name} {tool.version}" for name, tool in found if tool is not None]
    return ", ".join([f"triton {_module('triton').__version__}", *assemblers])


@lru_cache(maxsize=1)
def _numerics() -> Mapping[str, Any]:
    known = _module("triton.backends.nvidia.compiler").CUDAOptions
    return {name: value for name, value in NUMERICS.items() if hasattr(known, name)}


def build_triton(cache: Cache, source: TritonSource, capability: int) -> Entry:
    """The cache entry of a kernel's binary: ``kernel.cubin``, ``kernel.ptx``, ``kernel.json``.

    Raises:
        TritonError: FL0706, if it does not compile.
        CacheError: where nothing can be stored.

    """

    def build(folder: Path) -> None:
        with _compiling:  # Triton's settings are the process's
            _compile(source, capability, folder)

    return cache.get_or_build("cubin", source.factors(capability), build)


def _compile(source: TritonSource, capability: int, folder: Path) -> None:
    compiler, backends = _module("triton.compiler"), _module("triton.backends.compiler")
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), _own_cache(folder / "triton"):
            made = compiler.compile(
                compiler.ASTSource(
                    fn=_function(source),
                    signature=dict(source.signature),
                    constexprs={},
                    attrs=_attributes(source),
                ),
                target=backends.GPUTarget("cuda", capability, 32),
                options={
                    "num_warps": source.warps,
                    "num_stages": source.stages,
                    **_numerics(),
                },
            )
    except Exception as error:  # Triton's own classes, MLIR's, the assembler's
        words = _last_words(error)
        unknown = "gpu-name" in words or "not a recognized processor" in words
        diagnostic = errors.KERNEL_REFUSED.diagnostic(
            source.symbol,
            where=f"sm_{capability}",
            found=words,
            hint="this Triton does not know the target: install a newer one" if unknown else None,
        )
        output = said.getvalue() + str(error)
        raise TritonError(diagnostic, source=source, output=output) from error
    _remove(folder / "triton")
    (folder / "kernel.cubin").write_bytes(made.asm["cubin"])
    (folder / "kernel.ptx").write_text(made.asm["ptx"])
    metadata = made.metadata
    found = inspect(folder / "kernel.cubin", _tool("cuobjdump"), _tool("nvdisasm"))
    described = {
        "symbol": source.symbol,
        "parameters": [*source.signature.values(), "*i8", "*i8"],
        "warps": metadata.num_warps,
        "dynamic_shared_memory": metadata.shared,
        "scratch": [metadata.global_scratch_size, getattr(metadata, "profile_scratch_size", 0)],
        "resources": found,
    }
    (folder / "kernel.json").write_text(json.dumps(described, indent=1, sort_keys=True))


def _function(source: TritonSource) -> Any:
    """The kernel as Triton's front end takes it; the text needs no file."""
    file = f"{source.symbol}.py"
    lines = source.text.splitlines(keepends=True)
    linecache.cache[file] = (len(source.text), None, lines, file)
    names: dict[str, Any] = {"__name__": source.symbol, "__file__": file}
    exec(compile(source.text, file, "exec"), names)
    return names[source.symbol]


def _attributes(source: TritonSource) -> dict[tuple[int, ...], list[list[Any]]]:
    places = {name: i for i, name in enumerate(source.signature)}
    return {(places[n],): [["tt.divisibility", by]] for n, by in source.hints.items() if by > 1}


@contextlib.contextmanager
def _own_cache(folder: Path) -> Generator[None]:
    """Have Triton write into ``folder``, and find nothing that was there before."""
    knobs = _knobs()
    with knobs.cache.scope(), knobs.compilation.scope():
        knobs.cache.dir = str(folder)
        knobs.compilation.always_compile = True
        yield


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    if folder.exists():
        folder.rmdir()


def _tool(name: str) -> Callable[..., str]:
    """One of the binary tools that come with Triton, as a function of its arguments."""
    path: str = getattr(_knobs().nvidia, name).path

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [path, *arguments], capture_output=True, text=True, check=True, timeout=120
        )
        return done.stdout

    return run


def _last_words(error: Exception) -> str:
    """The line of a compiler's message that tells most."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "fatal" in line]
    telling = telling or [line for line in lines if "rror" in line]
    return (telling or lines or [type(error).__name__])[-1][:_SAID]
