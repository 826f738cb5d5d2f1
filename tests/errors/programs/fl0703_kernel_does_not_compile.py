"""A kernel is not C++."""

from pathlib import Path

from fuseline.errors import Diagnostic
from fuseline.runtime.build import CompileError, KernelSource, compile_kernels
from fuseline.runtime.cache import Cache
from fuseline.runtime.toolchain import find_toolchain


def program(tmp: Path) -> Diagnostic | None:
    cache = Cache.open(tmp)
    source = KernelSource("rms_norm_0123", "#error no such dtype\n")
    (result,) = compile_kernels(cache, find_toolchain(cache), [source])
    if not isinstance(result, CompileError) or "no such dtype" not in result.output:
        return None
    # The compiler's own words are not the same everywhere.
    return Diagnostic(result.diagnostic.code, result.diagnostic.title, found="kernel.cpp:1 ...")
