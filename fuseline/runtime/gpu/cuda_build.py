"""From CUDA C++ to a cubin, for any NVIDIA target and without a GPU, a driver or a CUDA toolkit.

    entry = build_cuda(cache, source, capability=90)
    binary = Binary.of(entry)               # cubin, PTX, registers, spills, shared memory

NVRTC compiles in this process, and reads no file: the headers are ours, and handed to it. All that
changes the bytes is in the key: source, headers, signature, options, target, NVRTC's version.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fuseline import errors
from fuseline.runtime.cache import Cache, Entry, Json
from fuseline.runtime.gpu.binary import DESCRIBED, EARLY, describe, last_words

NUMERICS = (
    "--fmad=false",  # a product that is rounded is not what an fma adds
    "--ftz=false",  # denormals are numbers
    "--prec-div=true",
    "--prec-sqrt=true",
)
"""Options that change results."""

OPTIONS = ("--std=c++17", *NUMERICS)

HEADERS = ("fuseline_cuda.h", "fuseline_device.h")
"""What kernels may include; they lie beside this module."""


@dataclass(frozen=True)
class CudaSource:
    """One kernel.

    Attributes:
        symbol: the name of the function, and of the kernel in the cubin.
        text: a C++ source that defines it, with ``extern "C"``.
        signature: the type of each argument by name, spelled as for Triton: ``*bf16``, ``i32``, ...
        warps: of a block.
    """

    symbol: str
    text: str
    signature: Mapping[str, str]
    warps: int = 4

    def factors(self, capability: int) -> dict[str, Json]:
        """The key of the binary: all that can change its bytes."""
        return {
            "name": self.symbol,
            "source": _digest(self.text),
            "headers": {name: _digest(text) for name, text in headers().items()},
            "signature": dict(self.signature),
            "warps": self.warps,
            "options": list(OPTIONS),
            "target": f"sm_{capability}",
            "described": DESCRIBED,
            "compiler": identity(),
        }


class CudaError(errors.BuildError):
    """NVRTC refused a kernel, or is not there; keeps what it was given and what it said."""

    def __init__(
        self, diagnostic: errors.Diagnostic, *, source: CudaSource, output: str = ""
    ) -> None:
        super().__init__(diagnostic)
        self.source = source
        self.output = output


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=1)
def headers() -> Mapping[str, str]:
    """The text of each of `HEADERS`."""
    return {name: (Path(__file__).parent / name).read_text() for name in HEADERS}


@lru_cache(maxsize=1)
def _nvrtc() -> tuple[Any, str]:
    """The bindings and the version of the library; without them, None and the reason."""
    if not all(importlib.util.find_spec(name) for name in ("cuda", "cuda.bindings")):
        return None, "no package cuda-bindings"
    bindings: Any = importlib.import_module("cuda.bindings.nvrtc")
    try:
        status, major, minor = bindings.nvrtcVersion()
    except Exception as error:  # of the package that looks for libraries, and differs by version
        return None, (str(error) or type(error).__name__).splitlines()[0]
    return (None, status.name) if status else (bindings, f"{major}.{minor}")


def has_nvrtc() -> bool:
    """Whether NVRTC can be loaded; the first call tries."""
    return _nvrtc()[0] is not None


def identity() -> str:
    """The version of NVRTC; where there is none, why."""
    return f"nvrtc {_nvrtc()[1]}"


def build_cuda(cache: Cache, source: CudaSource, capability: int) -> Entry:
    """The cache entry of a kernel's binary: ``kernel.cubin``, ``kernel.ptx``, ``kernel.json``.

    Raises:
        CudaError: FL0706, if it does not compile; FL0708, without NVRTC.
        CacheError: where nothing can be stored.

    """
    if not has_nvrtc():
        diagnostic = errors.NO_NVRTC.diagnostic(found=_nvrtc()[1])
        raise CudaError(diagnostic, source=source)

    def build(folder: Path) -> None:
        _compile(source, capability, folder)

    return cache.get_or_build("cubin", source.factors(capability), build)


def _compile(source: CudaSource, capability: int, folder: Path) -> None:
    program = _Program(source)
    try:
        status = program.compile([f"--gpu-architecture=sm_{capability}", *OPTIONS])
        if status:
            log = program.answer("ProgramLog").decode(errors="replace").strip("\0\n ")
            first = next((line for line in log.splitlines() if ": error" in line), log)
            diagnostic = errors.KERNEL_REFUSED.diagnostic(
                source.symbol, where=f"sm_{capability}", found=last_words(first) or status.name
            )
            raise CudaError(diagnostic, source=source, output=log)
        (folder / "kernel.cubin").write_bytes(program.answer("CUBIN"))
        (folder / "kernel.ptx").write_bytes(program.answer("PTX").rstrip(b"\0"))
    finally:
        program.destroy()
    parameters = tuple(source.signature.values())
    describe(
        folder,
        symbol=source.symbol,
        parameters=parameters,
        warps=source.warps,
        waits=capability >= EARLY and BEGIN in source.text,
    )


BEGIN = "fl_wait();"
"""What a kernel begins with that waits for the one ahead of it."""


class _Program:
    """One source within NVRTC, whose functions answer with a status first."""

    def __init__(self, source: CudaSource) -> None:
        self._nvrtc = _nvrtc()[0]
        texts = [text.encode() for text in headers().values()]
        names = [name.encode() for name in headers()]
        made = self._nvrtc.nvrtcCreateProgram(
            source.text.encode(), f"{source.symbol}.cu".encode(), len(texts), texts, names
        )
        self._program = self._checked(made)

    def compile(self, options: list[str]) -> Any:
        """Compile; the status, 0 for success."""
        (status,) = self._nvrtc.nvrtcCompileProgram(
            self._program, len(options), [option.encode() for option in options]
        )
        return status

    def answer(self, what: str) -> bytes:
        """The cubin, the PTX or the log."""
        size = self._checked(getattr(self._nvrtc, f"nvrtcGet{what}Size")(self._program))
        room = b" " * size
        self._checked(getattr(self._nvrtc, f"nvrtcGet{what}")(self._program, room))
        return room

    def destroy(self) -> None:
        """Give its memory back."""
        self._nvrtc.nvrtcDestroyProgram(self._program)

    @staticmethod
    def _checked(answer: Any) -> Any:
        status, *values = answer
        assert not status, f"NVRTC answers {status.name} to what it is always asked"
        return values[0] if values else None
