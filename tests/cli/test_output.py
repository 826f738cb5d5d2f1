"""What commands print while they work."""

from __future__ import annotations

import pytest

from fuseline.cli import output
from fuseline.cli.output import Output


def test_long_work_off_a_terminal_gives_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter((100.0, 101.0, 100.0 + output.SILENCE, 102.0 + output.SILENCE))
    monkeypatch.setattr(output.time, "monotonic", lambda: next(now))
    with Output().step("compiling") as show:
        for kernel in ("first", "second", "third"):
            show(kernel)
    assert capsys.readouterr().err.splitlines() == ["compiling ...", "compiling: second"]
