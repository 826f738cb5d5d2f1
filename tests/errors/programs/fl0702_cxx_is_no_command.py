"""The variable CXX has an open quote."""

import os
from pathlib import Path

from fuseline.runtime.cache import Cache
from fuseline.runtime.toolchain import find_toolchain


def program(tmp: Path) -> None:
    os.environ["CXX"] = 'g++ "-O2'
    find_toolchain(Cache.open(tmp / "cache"))
