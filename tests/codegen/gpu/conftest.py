"""What the tests of Triton kernels share."""

from __future__ import annotations

import pytest

from fuseline.runtime.cache import Cache


@pytest.fixture(scope="session")
def binary_cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """One cache of binaries for all tests: many kernels are the same."""
    return Cache(tmp_path_factory.mktemp("binaries"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On a GPU leave out what only compiles: it needs no GPU, and is tested where there is none."""
    if config.getoption("--device") == "cuda":
        compiling = [i for i in items if "binary_cache" in getattr(i, "fixturenames", ())]
        config.hook.pytest_deselected(items=compiling)
        items[:] = [item for item in items if item not in compiling]
