"""Models in training mode: refused where that shows, and taken where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuseline.artifact.load import load
from fuseline.errors import ArtifactError
from fuseline.exporting import export
from tests.codegen import oracle


class Dropping(nn.Module):
    """Dropout of a module, of a function, and of attention."""

    def __init__(self, how: str, chance: float = 0.5) -> None:
        super().__init__()
        self.how, self.chance = how, chance
        self.drop = nn.Dropout(chance)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case "module":
                return self.drop(x)
            case "function":
                return F.dropout(x, self.chance, self.training)
            case "attention":
                chance = self.chance if self.training else 0.0
                return F.scaled_dot_product_attention(x, x, x, dropout_p=chance)
            case "statistics":
                return self.norm(x)
            case _:
                return x + torch.rand_like(x) if self.training else x + 1


EACH = pytest.mark.parametrize(
    ("how", "named"),
    [
        ("module", "dropout"),
        ("function", "dropout"),
        ("attention", "dropout"),
        ("statistics", "statistics"),
        ("noise", "rand_like"),
    ],
)


@EACH
def test_training_that_shows_is_refused(tmp_path: Path, how: str, named: str) -> None:
    x = oracle.seeded(5, 8, dtype=torch.float32)
    with pytest.raises(ArtifactError, match=rf"FL1107.*{named}.*test_modes.py.*eval\(\)"):
        export(Dropping(how).train(), (x,), path=tmp_path / "model.fuse")


@EACH
def test_evaluation_is_taken(tmp_path: Path, how: str, named: str) -> None:
    model, x = Dropping(how).eval(), oracle.seeded(5, 8, dtype=torch.float32)
    loaded = load(export(model, (x,), path=tmp_path / f"{named}.fuse").path)
    assert torch.allclose(loaded(x), model(x), atol=1e-5)


@pytest.mark.parametrize("how", ["module", "function", "attention"])
def test_training_that_does_not_show_is_taken(tmp_path: Path, how: str) -> None:
    model, x = Dropping(how, 0.0).train(), oracle.seeded(5, 8, dtype=torch.float32)
    loaded = load(export(model, (x,), path=tmp_path / "model.fuse").path)
    assert torch.allclose(loaded(x), model(x), atol=1e-5)
    assert model.training
