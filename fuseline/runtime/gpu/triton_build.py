"""From Triton source to a cubin, for any NVIDIA target and without a GPU or a driver.

    entry = build_triton(cache, source, capability=90)
    binary = Binary.of(entry)               # cubin, PTX, registers, spills, shared memory

Triton compiles in this process, in as many threads as come; what it makes goes into our cache, and
nowhere else. Everything that changes the bytes is in the key: source, signature, hints, options,
target, what is set for Triton in this process, and the versions of it and of its assemblers.
"""

from __future__ import annotations

import hashlib
import linecache
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from textwrap import indent
from typing import Any

from fuseline import errors
from fuseline.runtime.cache import Cache, Entry, Json
from fuseline.runtime.gpu.binary import AGAIN, DESCRIBED, EARLY, describe, last_words
from fuseline.runtime.gpu.triton_process import compiling, has_triton, module, problem, settings
from fuseline.syntax import again

NUMERICS: dict[str, Any] = {
    "enable_fp_fusion": False,  # a product that is rounded is not what an fma adds
    "enable_reflect_ftz": False,  # denormals are numbers
    "default_dot_input_precision": "ieee",  # float32 products are float32 products
}
"""Options that change results; those that this Triton does not have are left out."""

WAIT = "tl.extra.cuda.gdc_wait()\n"
"""What kernels do first that are launched early: wait for the one that is ahead of them."""

START_NEXT = "tl.extra.cuda.gdc_launch_dependents()\n"
"""What they do next: have the one behind them launched, as soon as there is room for it."""

MARK = re.compile(
    r"^( *)# The kernel (ahead may run until|behind may start from) here\.\n", re.MULTILINE
)
"""Lines of a kernel, in each of its branches or in none. At the first kind it waits, not before:
what stands ahead of it touches nothing that is written while programs run. At both kinds it has the
kernel behind launched; no read is moved across that, so what stands ahead is asked for first."""

_SIGNAL = re.compile(r"failed with error code -(\d+)")


@dataclass(frozen=True)
class TritonSource:
    """One kernel.

    Attributes:
        symbol: the name of the function, and of the kernel in the cubin.
        text: a Python module that defines it, and has `triton.language` as ``tl``.
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

    def text_for(self, capability: int) -> str:
        """The module for a target: from `EARLY` on with `WAIT` and `START_NEXT`, as the first lines
        of the kernel or where it has a `MARK`.
        """
        if capability < EARLY:
            return self.text
        first = MARK.search(self.text)
        if first and "ahead" in first[2]:
            return MARK.sub(lambda at: at[0] + indent(WAIT + START_NEXT, at[1]), self.text)
        text = MARK.sub(lambda at: at[0] + indent(START_NEXT, at[1]), self.text)
        head = re.search(rf"^def {self.symbol}\(.*\):\n", text, re.MULTILINE)
        assert head, f"no kernel {self.symbol}"
        begin = WAIT if first else WAIT + START_NEXT
        return text[: head.end()] + indent(begin, " " * 4) + text[head.end() :]

    def factors(self, capability: int) -> dict[str, Json]:
        """The key of the binary: all that can change its bytes."""
        return {
            "name": self.symbol,
            "source": hashlib.sha256(self.text_for(capability).encode()).hexdigest(),
            "signature": dict(self.signature),
            "hints": dict(self.hints),
            "warps": self.warps,
            "stages": self.stages,
            "numerics": dict(_numerics()),
            "target": f"sm_{capability}",
            "described": DESCRIBED,
            "settings": dict(settings()),
            "compiler": identity(),
        }


class TritonError(errors.BuildError):
    """Triton, or the assembler behind it, refused a kernel."""

    def __init__(self, diagnostic: errors.Diagnostic, *, source: TritonSource, output: str) -> None:
        super().__init__(diagnostic)
        self.source = source
        self.output = output


@lru_cache(maxsize=1)
def identity() -> str:
    """The versions of Triton and of its assemblers."""
    nvidia = module("triton.knobs").nvidia
    found = [(name, getattr(nvidia, name, None)) for name in ("ptxas", "ptxas_blackwell")]
    assemblers = [f"{name} {tool.version}" for name, tool in found if tool is not None]
    return ", ".join([f"triton {module('triton').__version__}", *assemblers])


@lru_cache(maxsize=1)
def _numerics() -> Mapping[str, Any]:
    known = module("triton.backends.nvidia.compiler").CUDAOptions
    return {name: value for name, value in NUMERICS.items() if hasattr(known, name)}


def build_triton(cache: Cache, source: TritonSource, capability: int) -> Entry:
    """The cache entry of a kernel's binary: ``kernel.cubin``, ``kernel.ptx``, ``kernel.json``.

    Raises:
        TritonError: FL0706, if it does not compile.
        CacheError: where nothing can be stored.

    """

    def build(folder: Path) -> None:
        _compile(source, capability, folder)

    return cache.get_or_build("cubin", source.factors(capability), build)


def _compile(source: TritonSource, capability: int, folder: Path) -> None:
    with compiling() as said:
        try:
            made = again(lambda: _made(source, capability))
        except Exception as error:  # Triton's own classes, MLIR's, the assembler's
            if found := _SIGNAL.search(str(error)):  # by the keyboard, say: that tells nothing
                words = f"it was ended by signal {found.group(1)}"
                raise errors.COMPILER_UNUSABLE.error("ptxas", found=words) from error
            if _is_of_the_machine(error):
                found = f"{type(error).__name__}: {error}"
                raise errors.COMPILER_UNUSABLE.error("ptxas", found=found, hint=AGAIN) from error
            words = last_words(str(error)) or type(error).__name__
            unknown = "gpu-name" in words or "not a recognized processor" in words
            diagnostic = errors.KERNEL_REFUSED.diagnostic(
                source.symbol,
                where=f"sm_{capability}",
                found=words,
                hint="this Triton does not know the target: install a newer one"
                if unknown
                else None,
            )
            output = said.getvalue() + str(error)
            raise TritonError(diagnostic, source=source, output=output) from error
    (folder / "kernel.cubin").write_bytes(made.asm["cubin"])
    (folder / "kernel.ptx").write_text(made.asm["ptx"])
    metadata = made.metadata
    describe(
        folder,
        symbol=source.symbol,
        parameters=[*source.signature.values(), "*i8", "*i8"],
        warps=metadata.num_warps,
        shared_memory=metadata.shared,
        scratch=[metadata.global_scratch_size, getattr(metadata, "profile_scratch_size", 0)],
        waits=capability >= EARLY,
    )


def _is_of_the_machine(error: Exception) -> bool:
    """Whether a compilation ended for want of memory, room or the like, which another time is
    there: were the kernel taken for refused, another one would silently stand in for it.
    """
    lacking = isinstance(error, OSError | MemoryError)
    return lacking and not isinstance(error, FileNotFoundError | PermissionError)


def _made(source: TritonSource, capability: int) -> Any:
    """What Triton makes of a source."""
    compiler = module("triton.compiler")
    signature, attributes = dict(source.signature), _attributes(source)
    return compiler.compile(
        compiler.ASTSource(
            fn=_function(source, capability), signature=signature, constexprs={}, attrs=attributes
        ),
        target=module("triton.backends.compiler").GPUTarget("cuda", capability, 32),
        options={"num_warps": source.warps, "num_stages": source.stages, **_numerics()},
    )


def _function(source: TritonSource, capability: int) -> Any:
    """The kernel as Triton's front end takes it; the text needs no file."""
    file, text = f"{source.symbol}.py", source.text_for(capability)
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    names: dict[str, Any] = {"__name__": source.symbol, "__file__": file}
    exec(compile(text, file, "exec"), names)
    return names[source.symbol]


def _attributes(source: TritonSource) -> dict[tuple[int, ...], list[list[Any]]]:
    places = {name: i for i, name in enumerate(source.signature)}
    return {(places[n],): [["tt.divisibility", by]] for n, by in source.hints.items() if by > 1}


__all__ = [
    "NUMERICS",
    "TritonError",
    "TritonSource",
    "build_triton",
    "has_triton",
    "identity",
    "problem",
]
