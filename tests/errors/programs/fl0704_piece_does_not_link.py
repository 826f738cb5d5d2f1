"""Two kernels define the same function."""

from pathlib import Path

from fuseline.errors import Diagnostic, FuselineError
from fuseline.runtime.build import KernelSource, build_piece
from fuseline.runtime.cache import Cache
from fuseline.runtime.toolchain import find_toolchain


def program(tmp: Path) -> Diagnostic | None:
    cache = Cache.open(tmp)
    sources = [KernelSource(name, 'extern "C" void f() {}\n') for name in ("add", "mul")]
    try:
        build_piece(cache, find_toolchain(cache), sources)
    except FuselineError as error:
        # The linker's own words are not the same everywhere.
        return Diagnostic(error.diagnostic.code, error.diagnostic.title)
    return None
