"""CXX names a compiler that is not installed."""

import os
from pathlib import Path

from fuseline.runtime.cache import Cache
from fuseline.runtime.toolchain import find_toolchain


def program(tmp: Path) -> None:
    os.environ["CXX"] = "g++-99"
    find_toolchain(Cache.open(tmp / "cache"))
