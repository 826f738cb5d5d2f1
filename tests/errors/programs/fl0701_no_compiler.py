"""There is no C++ compiler on this machine."""

import os
from pathlib import Path

from fuseline.runtime.cache import Cache
from fuseline.runtime.toolchain import find_toolchain


def program(tmp: Path) -> None:
    os.environ["PATH"] = str(tmp)
    os.environ.pop("CXX", None)
    find_toolchain(Cache.open(tmp / "cache"))
