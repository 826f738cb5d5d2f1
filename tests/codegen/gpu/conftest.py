"""What the tests of Triton kernels share."""

from __future__ import annotations

import pytest

from fuseline.runtime.cache import Cache


@pytest.fixture(scope="session")
def binary_cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """One cache of binaries for all tests: many kernels are the same."""
    return Cache(tmp_path_factory.mktemp("binaries"))
