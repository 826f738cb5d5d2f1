from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fuseline.frontend.captured import Argument, Captured, InputKind
from fuseline.frontend.execute import finish, interpret
from fuseline.frontend.export import Exported, capture_export
from fuseline.frontend.importer import import_captured
from fuseline.ir.evaluate import evaluate
from fuseline.ir.types import BufferType
from tests.frontend.helpers import calls, randn, seed


class Counter(nn.Module):
    """A linear layer that counts its calls, and adds a row to a cache that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.signs = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])

    def forward(self, x: Tensor, cache: Tensor, *, scale: Tensor | None = None) -> dict[str, Any]:
        self.get_buffer("count").add_(1)
        y = self.linear(x) * self.signs
        cache.index_copy_(0, self.get_buffer("count").reshape(1), y[:1])
        return {"y": y if scale is None else y * scale, "rows": x.shape[0], "sum": cache.sum(0)}


def model() -> Counter:
    seed(0)
    return Counter().eval()


def exported(**options: Any) -> Exported:
    batch = torch.export.Dim("batch")
    shapes = {"x": {0: batch}, "cache": None, "scale": None}
    args, kwargs = (randn(3, 5), randn(4, 5)), {"scale": randn(5)}
    return capture_export(model(), args, kwargs, dynamic_shapes=shapes, **options)


def call(captured: Captured, step: Any, *user: Tensor) -> tuple[Any, ...]:
    """Run a captured program on user inputs, with its own parameters and buffers."""
    given = iter(user)
    flat: list[Argument] = []
    for item in captured.inputs:
        if item.kind is InputKind.CONSTANT:
            continue
        flat.append(next(given) if item.actual is None else item.actual)
    return finish(captured.owed, step)(*flat)


def test_inputs_have_their_module_paths_and_values() -> None:
    captured = exported().captured
    kinds = {i.name: i.kind for i in captured.inputs}
    assert kinds["linear.weight"] is InputKind.PARAMETER
    assert kinds["count"] is InputKind.BUFFER
    assert [i.kind for i in captured.inputs].count(InputKind.CONSTANT) == 1
    assert [i.name for i in captured.inputs if i.kind is InputKind.USER] == ["x", "cache", "scale"]
    assert all(i.actual is not None for i in captured.inputs if i.kind is not InputKind.USER)


def test_writes_to_buffers_and_inputs_are_explicit() -> None:
    captured = exported().captured
    assert {captured.inputs[i].name for i in captured.writes} == {"count", "cache"}
    func = import_captured(captured)
    written = {a.origin.name for a in func.args if isinstance(a.type, BufferType) and a.origin}
    assert written == {"count", "cache"}
    assert not calls(func)


@pytest.mark.parametrize("imported", [False, True], ids=["aten", "ir"])
def test_values_and_side_effects_are_those_of_eager(imported: bool) -> None:
    captured = exported().captured
    func = import_captured(captured)
    step: Any = functools.partial(evaluate, func) if imported else interpret(captured)
    eager = model()
    mine, theirs = randn(4, 5), randn(4, 5)
    for rows in (3, 7, 1):
        x, scale = randn(rows, 5), randn(5)
        found = call(captured, step, x, mine, scale)
        with torch.no_grad():
            expected = eager(x, theirs, scale=scale)
        assert torch.equal(found[0], expected["y"])
        assert found[1] == rows
        assert torch.equal(found[2], expected["sum"])
        assert torch.equal(mine, theirs)


def test_the_trees_of_arguments_and_results_are_kept() -> None:
    found = exported()
    assert found.in_spec.num_leaves == 3
    assert found.out_spec.num_leaves == len(found.captured.returns) == 3


def test_ranges_are_those_that_the_export_states() -> None:
    (symbol,) = exported().captured.symbols
    assert (symbol.low, symbol.high) == (0, None)
    bounded = torch.export.Dim("rows", min=2, max=9)
    captured = capture_export(
        nn.Linear(5, 5), (randn(3, 5),), dynamic_shapes=({0: bounded},), name="bounded"
    ).captured
    assert [(s.low, s.high) for s in captured.symbols] == [(2, 9)]
    assert captured.name == "bounded"


def test_without_dynamic_shapes_nothing_is_symbolic() -> None:
    captured = capture_export(nn.Linear(5, 5), (randn(3, 5),)).captured
    assert captured.symbols == ()
    assert captured.road == "export"
