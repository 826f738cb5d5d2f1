from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fuseline.runtime.resident import forget

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells about pages")

PAGES = 2000


def mapped(path: Path, values: Tensor) -> Tensor:
    """The values as a private map of a file."""
    values.numpy().tofile(path)
    return torch.from_file(str(path), shared=False, size=values.numel(), dtype=values.dtype)


def resident_pages(tensor: Tensor) -> int:
    """How many of the pages that the tensor has to itself are in memory now."""
    first, end = -(-tensor.data_ptr() // 4096), (tensor.data_ptr() + tensor.nbytes) // 4096
    with Path("/proc/self/pagemap").open("rb") as file:
        file.seek(first * 8)
        entries = struct.unpack(f"={end - first}Q", file.read((end - first) * 8))
    return sum(entry >> 63 for entry in entries)


@pytest.fixture
def values() -> Tensor:
    return torch.randn(PAGES * 1024, generator=torch.Generator().manual_seed(0))


def test_pages_of_a_file_are_given_back_and_come_back(tmp_path: Path, values: Tensor) -> None:
    tensor = mapped(tmp_path / "weights", values)
    assert torch.equal(tensor, values)  # which brings them all into memory
    assert resident_pages(tensor) == PAGES
    assert forget(tensor[5:-5])
    assert resident_pages(tensor) <= 2
    assert torch.equal(tensor, values)


def test_no_page_of_a_changed_map_is_given_back(tmp_path: Path, values: Tensor) -> None:
    """The change is in memory alone: the file does not have it."""
    tensor = mapped(tmp_path / "weights", values)
    tensor[PAGES * 512] = 17.0
    assert not forget(tensor)
    assert resident_pages(tensor) > 0
    assert tensor[PAGES * 512] == 17.0


def test_no_ordinary_memory_is_given_back(values: Tensor) -> None:
    copy = values.clone()
    assert not forget(values)
    assert torch.equal(values, copy)


def test_no_page_that_is_only_partly_the_tensors(tmp_path: Path, values: Tensor) -> None:
    tensor = mapped(tmp_path / "weights", values)
    assert torch.equal(tensor, values)
    assert not forget(tensor[1:1000])
    assert not forget(tensor[:0])
