"""Sizes are called in a file what the user has called them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from fuseline.artifact.load import load
from fuseline.artifact.program import ProgramFile
from fuseline.errors import InputError
from fuseline.exporting import export
from fuseline.frontend.size_names import given_names

B, S = Dim("B", min=1, max=8), Dim("S", min=1, max=64)


class Nested(nn.Module):
    """Takes tensors in containers, by place, by keyword, and as many as one likes."""

    def forward(
        self, x: Tensor, pair: tuple[Tensor, list[Tensor]], *more: Tensor, **named: Tensor
    ) -> Tensor:
        total = x.sum((0, 1)) + pair[0].sum(0) + pair[1][0].sum(0)
        for each in (*more, *named.values()):
            total = total + each.sum(0)
        return x * total


ARGS = (
    torch.ones(3, 5, 4),
    (torch.ones(7, 4), [torch.ones(3, 4)]),
    torch.ones(4),
    torch.ones(5, 4),
)
KWARGS = {"last": torch.ones(11, 4)}


@pytest.mark.parametrize("by_name", [True, False], ids=["by name", "by place"])
def test_names_of_nested_arguments(by_name: bool) -> None:
    T, U = Dim("T"), Dim("U")
    by_place: Any = ((B, S, None), ({0: T}, [{0: B}]), (None, [S, Dim.STATIC]), {"last": {0: U}})
    names = inspect.signature(Nested().forward).parameters
    shapes = dict(zip(names, by_place, strict=True)) if by_name else by_place
    assert given_names(Nested(), ARGS, KWARGS, shapes) == [
        *({0: "B", 1: "S"}, {0: "T"}, {0: "B"}),
        *({}, {0: "S"}, {0: "U"}),
    ]


def test_nothing_has_a_name_where_none_is_given() -> None:
    assert given_names(Nested(), ARGS, KWARGS, None) == [{}] * 6
    hints = ({0: Dim.AUTO}, None, ({0: Dim.DYNAMIC},), None)
    assert given_names(Nested(), ARGS, KWARGS, hints) == [{}] * 6


class Model(nn.Module):
    """Sizes in an op that torch runs, in a result, and in one that is computed from both."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int, Tensor]:
        rolled = torch.roll(x, y.shape[0], 1)
        return x * 2, torch.cat((x, x), 1), x.shape[0] * y.shape[0], rolled


def exported(folder: Path, *dims: Any) -> tuple[ProgramFile, Any]:
    """The program with these names of its sizes, and what runs it."""
    one, other, third = dims
    made = export(
        Model(),
        (torch.ones(3, 5), torch.ones(7)),
        path=folder / "model.fuse",
        dynamic_shapes=({0: one, 1: other}, {0: third}),
    )
    return made.programs[0], load(made.path)


def test_a_file_has_the_users_names(tmp_path: Path) -> None:
    file, loaded = exported(tmp_path, B, S, Dim("rows", min=2, max=9))
    assert sorted(file.plan.symbols) == ["B", "S", "rows"]
    assert file.plan.ranges == {"B": (1, 8), "S": (1, 64), "rows": (2, 9)}
    assert file.plan.args[0].shape == ("B", "S")
    assert file.plan.returns[1].shape == ("B", "2*S")
    assert sorted(file.traced) == ["B", "S", "rows"]
    assert not set(file.traced.values()) & set(file.plan.symbols)
    assert file.plan.ops, "no op that torch runs, which is given sizes by name"
    for x, y in ((torch.rand(3, 5), torch.rand(7)), (torch.rand(1, 33), torch.rand(2))):
        for found, want in zip(loaded(x, y), Model()(x, y), strict=True):
            assert torch.equal(torch.as_tensor(found), torch.as_tensor(want))
    with pytest.raises(InputError, match=r"FL0902.*S in 1\.\.64"):
        loaded(torch.rand(3, 65), torch.rand(7))


def test_names_that_mean_something_else_are_not_taken(tmp_path: Path) -> None:
    """The symbols' own are right in any case."""
    names = ("lambda", "num_workers", "Max")
    file, loaded = exported(tmp_path, *(Dim(name, min=2, max=9) for name in names))
    assert len(file.plan.symbols) == 3
    assert not set(names) & set(file.plan.symbols)
    assert file.traced == {}
    x, y = torch.rand(3, 5), torch.rand(7)
    assert torch.equal(loaded(x, y)[1], cast("Tensor", Model()(x, y)[1]))


def test_the_func_and_the_kernels_do_not_depend_on_names(tmp_path: Path) -> None:
    def built(*dims: Any) -> dict[str, str]:
        _, loaded = exported(tmp_path, *dims)
        kept = ("sources/", "binaries/", "programs/main/cpu-native.ir")
        return {n: m.sha256 for n, m in loaded.manifest.members.items() if n.startswith(kept)}

    limits = ((1, 8), (1, 64), (2, 9))
    one = built(*(Dim(n, min=a, max=b) for n, (a, b) in zip("abc", limits, strict=True)))
    assert one == built(*(Dim(n, min=a, max=b) for n, (a, b) in zip("xyz", limits, strict=True)))
