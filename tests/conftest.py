"""What every test gets: quiet threads, a cache of its own, no options from outside, and goldens."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Before torch is imported anywhere: the tests share two cores with their own workers.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

Golden = Callable[[Path, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-goldens",
        action="store_true",
        help="rewrite the files of expected output with what the tests produce now",
    )
    parser.addoption(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help="where the tests of GPU kernels run: in Triton's interpreter, or on the GPU",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Tell the harness of GPU kernels where to run."""
    os.environ["FL_TEST_DEVICE"] = str(config.getoption("--device"))


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """One cache for a whole test run, so that each kernel is built once in it; on a GPU, where
    building takes most of the time, one that is given: workers, and later runs, share it.
    """
    given = os.environ.get("FUSELINE_CACHE_DIR")
    if given and pytestconfig.getoption("--device") == "cuda":
        return Path(given)
    path = tmp_path_factory.mktemp("fuseline-cache")
    path.chmod(0o700)
    return path


@pytest.fixture(autouse=True)
def clean_options(monkeypatch: pytest.MonkeyPatch, session_cache: Path) -> None:
    """No option reaches a test from outside, and no test writes to the user's own cache."""
    for variable in [name for name in os.environ if name.startswith("FUSELINE_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("FUSELINE_CACHE_DIR", str(session_cache))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random inputs are the same in every run, whichever tests ran before."""
    import torch

    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compare a text with a file; with ``--update-goldens``, write the file instead."""
    update = bool(request.config.getoption("--update-goldens"))

    def check(path: Path, text: str) -> None:
        if update:
            path.write_text(text)
        assert path.exists(), f"{path} is missing: run pytest with --update-goldens and review it"
        assert text == path.read_text(), f"{path} differs; --update-goldens rewrites it"

    return check
