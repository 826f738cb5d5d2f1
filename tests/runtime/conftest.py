"""One cache and one toolchain for the tests of native code."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuseline.errors import BuildError
from fuseline.runtime.cache import Cache
from fuseline.runtime.native import Runner
from fuseline.runtime.toolchain import Toolchain, find_toolchain


@pytest.fixture(scope="session")
def built(session_cache: Path) -> Cache:
    """The cache of the test session."""
    return Cache.open(session_cache)


@pytest.fixture(scope="session")
def toolchain(built: Cache) -> Toolchain:
    """The compiler of this machine; without one, tests of native code are skipped."""
    try:
        return find_toolchain(built)
    except BuildError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def extension(built: Cache, toolchain: Toolchain) -> Runner:
    """The runner, entered through the extension module."""
    runner = Runner.open(built, toolchain)
    if runner.binding != "extension":
        pytest.skip("no Python.h here")
    return runner
