"""What all end-to-end tests need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    """Models of one class do not use up one another's recompilations."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
