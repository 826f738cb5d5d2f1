"""One call sets the level of logger and handler; the library itself sets no handler."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from fuseline import Config, FuselineError, logs, set_log_level
from fuseline.logs import apply_config

STATE = logs._STATE  # pyright: ignore[reportPrivateUsage]
LOGGER = logging.getLogger("fuseline.passes.example")


@pytest.fixture(autouse=True)
def restore_logger() -> Iterator[None]:
    root = logging.getLogger("fuseline")
    handlers, level, explicit = root.handlers[:], root.level, STATE.explicit
    STATE.explicit = False
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    STATE.explicit = explicit


def test_library_code_sets_no_handler() -> None:
    code = "import logging, fuseline.logs; print(logging.getLogger('fuseline').handlers)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[<NullHandler (NOTSET)>]"


def test_level_reaches_logger_and_handler(capsys: pytest.CaptureFixture[str]) -> None:
    set_log_level("DEBUG")
    LOGGER.debug("seen %d", 1)
    set_log_level("warning")
    LOGGER.info("not seen")
    LOGGER.warning("seen %d", 2)
    set_log_level(logging.INFO)
    LOGGER.info("seen %d", 3)
    assert capsys.readouterr().err.splitlines() == [
        "D fuseline.passes.example: seen 1",
        "W fuseline.passes.example: seen 2",
        "I fuseline.passes.example: seen 3",
    ]


def test_the_variable_sets_the_level(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FUSELINE_LOG", "info")
    apply_config(Config())
    LOGGER.info("seen")
    assert "seen" in capsys.readouterr().err


def test_what_the_program_sets_wins_over_the_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FUSELINE_LOG", "debug")
    set_log_level("error")
    apply_config(Config())
    LOGGER.warning("not seen")
    assert capsys.readouterr().err == ""


def test_compiling_applies_the_level(capsys: pytest.CaptureFixture[str]) -> None:
    import fuseline

    fuseline.compile(torch.nn.Linear(3, 5), log="info")
    LOGGER.info("seen")
    assert "seen" in capsys.readouterr().err


def test_no_level_changes_nothing() -> None:
    before = logging.getLogger("fuseline").handlers[:]
    apply_config(Config())
    assert logging.getLogger("fuseline").handlers == before


def test_unknown_level_is_a_diagnostic() -> None:
    with pytest.raises(FuselineError, match="FL0101 .*set_log_level"):
        set_log_level("loud")
