"""What CXX names runs, and is no C++ compiler."""

import os
from pathlib import Path

from fuseline.runtime.cache import Cache
from fuseline.runtime.toolchain import find_toolchain


def program(tmp: Path) -> None:
    script = tmp / "cxx"
    script.write_text("#!/bin/sh\necho 'licence expired' >&2\nexit 3\n")
    script.chmod(0o755)
    os.environ["CXX"] = str(script)
    find_toolchain(Cache.open(tmp / "cache"))
