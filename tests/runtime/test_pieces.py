"""Native steps run in one call where they follow one another; Config(graphs="none") parts them."""

from __future__ import annotations

from typing import Any, Literal, cast

import pytest
import torch
from torch import nn

import fuseline
from fuseline.runtime.native import Runner


@pytest.mark.parametrize(("graphs", "pieces"), [("auto", 1), ("none", 3)])
def test_graphs_decides_how_many_calls_there_are(
    graphs: Literal["auto", "none"], pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    make_piece = Runner.piece

    def count(self: Runner, launches: Any, **more: Any) -> Any:
        made.append(len(launches))
        return make_piece(self, launches, **more)

    monkeypatch.setattr(Runner, "piece", count)
    cast("Any", torch).manual_seed(1)
    torch.compiler.reset()
    model = nn.Sequential(nn.RMSNorm(33), nn.Linear(33, 21), nn.RMSNorm(21)).eval()
    compiled = fuseline.compile(model, graphs=graphs)
    x = torch.randn(5, 33)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    assert len(made) == pieces
    assert sum(made) == 3
