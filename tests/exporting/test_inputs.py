"""Inputs as the command line describes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fuseline.errors import UsageError
from fuseline.exporting.inputs import Extent, InputSpec, arguments, examples, parse


def test_parse() -> None:
    assert parse("x: float32[B=1..8, 128]") == InputSpec(
        "x", torch.float32, (Extent(1, 8, "B"), Extent(128, 128))
    )
    assert parse("n:int64[]") == InputSpec("n", torch.int64, ())
    assert parse("ids:int64[1..4,2..9]").dims == (Extent(1, 4), Extent(2, 9))


@pytest.mark.parametrize(
    "text", ["x", "x:float31[3]", "x:float32[3", "x:float32[3..1]", "x:float32[a]", "x:int64[-1]"]
)
def test_no_inputs(text: str) -> None:
    with pytest.raises(UsageError, match="FL0103"):
        parse(text)


def test_by_place_or_by_name() -> None:
    given = {"c": 3, "b": 2, "a": 1}

    def places(a: int, /, b: int, *, c: int = 0, **others: int) -> None: ...

    def many(a: int, b: int = 0, *others: int, d: int = 0) -> None: ...

    assert arguments(places, given) == ((1,), {"c": 3, "b": 2})
    assert arguments(places, {"z": 9, **given}) == ((1,), {"z": 9, "c": 3, "b": 2})
    assert arguments(many, {"x": 7, "d": 5, "b": 2, "y": 8, "a": 1}) == ((1, 2, 7, 8), {"d": 5})
    assert arguments(many, {"b": 2, "a": 1}) == ((), {"b": 2, "a": 1})
    wrong: list[tuple[Callable[..., None], dict[str, int]]] = [
        (places, {"b": 2, "c": 3}),
        (many, {"a": 1, "x": 7}),  # x would be b
        (many, {"x": 7}),
    ]
    for forward, names in wrong:
        with pytest.raises(UsageError, match=r"FL0103.*those of forward\(a, "):
            arguments(forward, names)


def test_dims_of_one_name_are_one() -> None:
    specs = [parse("x:float32[B=1..8,S=1..64]"), parse("y:int64[B=1..8,3]"), parse("z:bool[2]")]
    tensors, dynamic = examples(specs, below=50)
    assert tensors["x"].shape[0] == tensors["y"].shape[0]
    assert len({*tensors["x"].shape}) == 2
    assert dynamic["x"][0] is dynamic["y"][0]
    assert dynamic["z"] == {}
    assert int(tensors["y"].max()) < 50
    again, _ = examples(specs, below=50)
    assert torch.equal(again["x"], tensors["x"])
    with pytest.raises(UsageError, match="two ranges of B"):
        examples([parse("x:float32[B=1..8]"), parse("y:float32[B=1..9]")])


def test_examples_lie_in_their_ranges() -> None:
    tensors, _ = examples([parse("x:float32[1..2,100..200,0..1]")])
    assert tensors["x"].shape == (2, 100, 1)
