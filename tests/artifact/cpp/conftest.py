"""What the tests of the C++ runner share: it is built once, and each model is exported once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.artifact.cpp import models, runner
from tests.artifact.cpp.compare import Case
from tests.artifact.cpp.runner import Built


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return runner.build(tmp_path_factory.mktemp("cpp") / "build")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="session")
def options(session_cache: Path) -> dict[str, Any]:
    return {"cache_dir": session_cache}


@pytest.fixture(scope="session", params=["block", "experts", "bfloat16"])
def case(request: pytest.FixtureRequest, folder: Path, options: dict[str, Any]) -> Case:
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    mlp = models.Experts() if request.param == "experts" else models.Mlp()
    dtype = torch.bfloat16 if request.param == "bfloat16" else torch.float32
    path = folder / f"{request.param}.fuse"
    return path, models.exported_block(path, models.Block(mlp), dtype, **options), dtype


@pytest.fixture(scope="session")
def block(folder: Path, options: dict[str, Any]) -> Path:
    """An artifact whose weights lie beside it."""
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    path = folder / "beside.fuse"
    model = models.Block(models.Mlp())
    models.exported_block(path, model, torch.float32, embed_weights=False, **options)
    return path


@pytest.fixture(scope="session")
def store(folder: Path, options: dict[str, Any]) -> Path:
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    path = folder / "store.fuse"
    models.exported_store(path, **options)
    return path


@pytest.fixture(scope="session")
def rows(folder: Path, options: dict[str, Any]) -> tuple[Path, nn.Module]:
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    path = folder / "rows.fuse"
    return path, models.exported_rows(path, 64, **options)
