"""Operators that take memory as it lies get their operands as the program has laid them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import fuseline
from fuseline.frontend.export import capture_export
from fuseline.frontend.importer import import_captured
from fuseline.ir.ops.call import AtenCall


@torch.library.custom_op("fuseline_tests::row_sums", mutates_args=())
def row_sums(x: Tensor) -> Tensor:
    """Sums of the rows of ``x`` ``[N, K]``, read as a kernel does that knows no strides."""
    return x.as_strided(x.shape, (x.shape[1], 1)).sum(1)


@cast("Any", row_sums).register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0])


class Turned(nn.Module):
    """The operator behind a transpose, brought into order for it."""

    def forward(self, x: Tensor) -> Tensor:
        return row_sums(x.t().contiguous())


class Plain(nn.Module):
    """A public operator of ATen behind one: it takes any strides."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.kthvalue(x.t().contiguous(), 2, dim=1).values


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rows", [1, 5, 7])
def test_compiled(rows: int) -> None:
    x = seeded(11, rows)
    with torch.no_grad():
        found = fuseline.compile(Turned())(x)
    torch.testing.assert_close(found, x.sum(0))


class OfMemory(nn.Module):
    """Views that are about memory, of what was brought into order."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.t().contiguous()
        return torch.as_strided(y, (3, 4), (8, 1)) + 1, y.view(torch.int16) + 1


def test_views_of_memory() -> None:
    x = seeded(8, 5)
    with torch.no_grad():
        for found, want in zip(fuseline.compile(OfMemory())(x), OfMemory()(x), strict=True):
            assert torch.equal(found, want)


def test_exported_for_any_number_of_rows(tmp_path: Path) -> None:
    path, sizes = tmp_path / "m.fuse", ({1: torch.export.Dim("N", max=64)},)
    fuseline.export(Turned(), (seeded(11, 5),), path=path, dynamic_shapes=sizes)
    loaded = fuseline.load(path)
    for rows in (1, 7, 64):
        x = seeded(11, rows)
        torch.testing.assert_close(loaded(x), x.sum(0))


@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")
def test_a_recurrent_layer_of_cpus(tmp_path: Path) -> None:
    """Batch first: the layer turns what it is given, and reads that by its address."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(8, 8, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0]

    model, x = Recurrent().eval(), seeded(2, 3, 8)
    fuseline.export(model, (x,), path=tmp_path / "m.fuse")
    with torch.no_grad():
        torch.testing.assert_close(fuseline.load(tmp_path / "m.fuse")(x), model(x))


def test_no_copy_for_an_operator_that_takes_any_strides() -> None:
    def calls(model: nn.Module) -> list[tuple[int, ...]]:
        func = import_captured(capture_export(model, (seeded(11, 5),)).captured)
        return [op.contiguous for op in func.ops if isinstance(op, AtenCall)]

    assert calls(Turned()) == [(0,)]
    assert calls(Plain()) == [()]
