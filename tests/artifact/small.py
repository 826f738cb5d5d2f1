"""A small model that has of everything: sizes that vary, state, a result that torch computes."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuseline.exporting import export


class Small(nn.Module):
    """A gated step with a counter, and the order of what it found."""

    def __init__(self, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) / 4)

        self.count: Tensor
        self.norm, self.up, self.down = weight(width), weight(24, width), weight(width, 24)
        self.register_buffer("count", torch.zeros(4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Give the sum, the counter after it, and the order of each row."""
        self.count.add_(1)
        hidden = F.silu(F.linear(F.rms_norm(x, self.norm.shape, self.norm), self.up))
        y = x + F.linear(hidden, self.down)
        return {"y": y, "count": self.count.clone(), "order": torch.sort(hidden, -1)[1]}


def make(path: Path, *, seed: int = 0, **options: Any) -> Path:
    """Export it to a file, for the CPU unless said otherwise."""
    sizes = {"x": {0: torch.export.Dim("B", max=64)}}
    given: dict[str, Any] = {"cpu_isa": ("baseline",), "licence": "Apache-2.0", **options}
    model = Small(seed=seed).eval()
    export(model, (torch.ones(4, 16),), path=path, dynamic_shapes=sizes, **given)
    return path


@lru_cache
def shared() -> Path:
    """The file that all tests of a process read; nobody writes it."""
    folder = Path(tempfile.mkdtemp(prefix="fuseline-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make(folder / "small.fuse")
