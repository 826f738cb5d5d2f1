"""What tests of the C++ runner hold results and messages to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fuseline import errors
from tests.artifact.cpp.runner import CppError

SHAPES = ((1, 1), (3, 7), (2, 53))

Case = tuple[Path, nn.Module, torch.dtype]
"""An artifact, the model that it was made of, and the type of its weights."""


def close(got: Tensor, want: Tensor) -> None:
    if want.dtype is torch.bfloat16:  # two or three roundings apart
        torch.testing.assert_close(got, want, rtol=3e-2, atol=3e-2)
    else:
        torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)


def message(call: Callable[[], object]) -> str:
    """What is raised, by Python or C++."""
    with pytest.raises((errors.FuselineError, CppError)) as caught:
        call()
    return str(caught.value)
