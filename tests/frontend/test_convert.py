"""Programs with views and writes: the captured graph has eager's values and side effects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fuseline.frontend.captured import Captured, FromGraph, FromInput, FromSymbols, InputKind
from fuseline.frontend.convert import Source, convert
from fuseline.frontend.record import NotSimple
from tests.frontend.helpers import capture, one, randn, record

Program = Callable[..., Any]


def write_whole(x: Tensor, y: Tensor) -> Tensor:
    x.mul_(2).add_(y)
    return x + 1


def write_slice(x: Tensor, y: Tensor) -> Tensor:
    x[:, 1:3] = y[:, 1:3] * 3
    return x.sum(-1)


def write_column(x: Tensor, y: Tensor) -> Tensor:
    x[..., 0] = 7.0
    x[1] += y[0]
    return x @ y.t()


def write_through_reshape(x: Tensor, y: Tensor) -> Tensor:
    x.view(2, 2, -1)[0].copy_(y.view(2, 2, -1)[1])
    return x * y


def write_through_transpose(x: Tensor, y: Tensor) -> Tensor:
    x.t()[1:].mul_(y.t()[1:])
    return x - y


def write_through_permute(x: Any, y: Tensor) -> Tensor:
    x.unflatten(0, (2, 2)).permute(2, 0, 1)[0].fill_(2.5)
    return x + y


def write_part_of_split(x: Any, y: Tensor) -> Tensor:
    first, second = x.split([2, 3], dim=1)
    second.add_(1)
    first.copy_(second[:, :2])
    return x * y


def write_part_of_unbind(x: Tensor, y: Tensor) -> Tensor:
    x.unbind(0)[2].neg_()
    return x + y


def write_diagonal(x: Tensor, y: Tensor) -> Tensor:
    x.diagonal().zero_()
    return x + y


def old_view_sees_the_write(x: Tensor, y: Tensor) -> Tensor:
    row = x[1]
    x.add_(10)
    return row + y[0]


def write_of_a_temporary(x: Tensor, y: Tensor) -> Tensor:
    z = torch.zeros_like(x)
    z[:, :2] = x[:, :2]
    z.masked_fill_(y > 0, -1.0)
    return z


def write_narrower_type(x: Tensor, y: Tensor) -> Tensor:
    z = x.bfloat16()
    z.add_(y)
    return z.float()


def write_with_broadcast(x: Tensor, y: Tensor) -> Tensor:
    x.copy_(y[:, :1])
    return x * 2


def index_writes(x: Tensor, y: Tensor) -> Tensor:
    rows = torch.tensor([2, 0])
    x.index_copy_(0, rows, y[:2])
    x.index_put_((rows,), y[2:], accumulate=True)
    x.scatter_(1, torch.tensor([[0], [1], [2], [3]]), 9.0)
    return x


def chained_views(x: Tensor, y: Tensor) -> Tensor:
    part = x[1:][:, 2:]
    part.unsqueeze(0).squeeze(0).mul_(y[1:, 2:])
    return x.flatten()


PROGRAMS = [
    write_whole,
    write_slice,
    write_column,
    write_through_reshape,
    write_through_transpose,
    write_through_permute,
    write_part_of_split,
    write_part_of_unbind,
    write_diagonal,
    old_view_sees_the_write,
    write_of_a_temporary,
    write_narrower_type,
    write_with_broadcast,
    index_writes,
    chained_views,
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
@pytest.mark.parametrize("imported", [False, True], ids=["aten", "ir"])
def test_values_and_side_effects_are_those_of_eager(program: Program, imported: bool) -> None:
    compiled, recording = record(program, imported=imported)
    for shift in range(2):
        x, y = randn(4, 5, seed=shift), randn(4, 5, seed=9 + shift)
        mine, theirs = x.clone(), x.clone()
        with torch.no_grad():
            expected, found = program(theirs, y), compiled(mine, y)
        assert torch.equal(found, expected)
        assert torch.equal(mine, theirs)
    (captured,) = recording.captured
    assert captured.road == "dynamo"


def test_the_graph_is_functional() -> None:
    captured = capture(write_slice, randn(4, 5), randn(4, 5))
    assert [captured.inputs[i].name for i in captured.writes] == ["x"]
    for node in captured.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        assert schema is None or not schema.is_mutable, node


def test_a_write_to_overlapping_elements_goes_through_aot() -> None:
    def program(x: Tensor) -> Tensor:
        y = x.clone()
        y.as_strided((2, 3), (3, 1)).mul_(2)
        return y

    captured = capture(program, randn(4, 5))
    assert captured.road == "aot"
    compiled, _ = record(program)
    with torch.no_grad():
        assert torch.equal(compiled(randn(4, 5)), program(randn(4, 5)))


def test_returned_inputs_and_views_of_them_stay_what_they_are() -> None:
    def program(x: Tensor, n: int) -> tuple[Any, ...]:
        x.add_(1)
        return x[1:], x.t(), x * 2, None, n + 1

    compiled, recording = record(program)
    x = randn(4, 5)
    with torch.no_grad():
        tail, turned, double, nothing, number = compiled(x, 3)
    assert tail.data_ptr() == x[1:].data_ptr()
    assert turned.data_ptr() == x.data_ptr()
    assert turned.stride() == (1, 5)
    assert torch.equal(double, x * 2)
    assert (nothing, number) == (None, 4)
    kinds = {type(r) for r in recording.captured[0].returns}
    assert kinds == {FromGraph, FromInput, FromSymbols}


def test_inputs_are_named_and_told_apart() -> None:
    class Inner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(5))
            self.register_buffer("scale", torch.full((5,), 2.0))

    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            return x * self.inner.weight + self.inner.get_buffer("scale")

    model = Outer()
    captured = capture(model, randn(4, 5))
    kinds = {i.name: i.kind for i in captured.inputs}
    assert kinds["inner.weight"] is InputKind.PARAMETER
    assert kinds["inner.scale"] is InputKind.BUFFER
    assert kinds["x"] is InputKind.USER
    weight = next(i for i in captured.inputs if i.name == "inner.weight")
    assert weight.actual is model.inner.weight


def test_symbols_have_ranges_and_sources() -> None:
    captured = capture(one(lambda x: x.sum(-1)), randn(4, 5))
    assert [(s.low, s.high) for s in captured.symbols] == [(2, None), (2, None)]
    sizes = iter((6, 7))
    x = randn(6, 7)
    given = [next(sizes) if i.kind is InputKind.SYMBOL else x for i in captured.inputs]
    assert sorted(captured.owed.bind(given).values()) == [6, 7]


def test_places_name_the_module_and_the_line() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = torch.nn.SiLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x) + 1

    captured = capture(Model(), randn(4, 5))
    places = {str(n.target): n.meta["loc"] for n in captured.graph.nodes if "loc" in n.meta}
    assert places["aten.silu.default"].module == "act"
    assert places["aten.add.Tensor"].source.startswith("test_convert.py:")


def test_literal_tensors_become_constants() -> None:
    def program(x: Tensor) -> Tensor:
        return x * torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])

    captured = capture(program, randn(4, 5))
    compiled, _ = record(program)
    with torch.no_grad():
        assert torch.equal(compiled(randn(4, 5)), program(randn(4, 5)))
    assert all(i.kind is not InputKind.CONSTANT or i.actual is not None for i in captured.inputs)


def test_inputs_that_share_written_memory_are_refused_by_the_light_road() -> None:
    """The two are one tensor to eager; as two values of a functional graph they would part."""
    base = randn(8)

    def program(x: Tensor, y: Tensor) -> Tensor:
        x.add_(1)
        return y * 2

    compiled, recording = record(program, dynamic=False)
    with torch.no_grad():
        found = compiled(base[:5], base[3:])
    expected = randn(8)
    expected[:5] += 1
    assert torch.equal(found, expected[3:] * 2)
    assert all(c.road != "dynamo" for c in recording.captured)


def test_a_module_call_is_refused() -> None:
    class Leaf(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_module("leaf", (x,)),))
    module = torch.fx.GraphModule({"leaf": Leaf()}, graph)
    with pytest.raises(NotSimple, match="leaf"):
        convert(module, [Source("x", InputKind.USER, randn(2))])


def test_the_plain_graph_runs_as_a_module() -> None:
    captured: Captured = capture(one(lambda x: x.relu() + 1), randn(4, 5))
    arguments = [randn(4, 5) if i.kind is InputKind.USER else 4 for i in captured.inputs]
    (out,) = captured.module(*arguments)
    assert torch.equal(out, randn(4, 5).relu() + 1)
