"""The demo, with trained weights: eager's greedy tokens, and logits within the numbers rule."""

from __future__ import annotations

import pytest

from examples import demo
from fuseline.cli import main


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--no-torch-compile", "--rounds", "1"]) == 0
    text = capsys.readouterr().out
    assert "all 64 greedy tokens are eager's" in text
    assert "largest error against float64" in text
    for pattern in ("attention", "rope", "merged_linear", "gated_mlp", "add_rms_norm"):
        assert f"\n  {pattern} " in text
    assert "kernel.cpp" in text


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_smollm2_chats_in_bfloat16(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["generate", "smollm2", "--chat", "--prompt", "What is the capital of France?"]
    assert main([*argv, "--dtype", "bfloat16", "--tokens", "24"]) == 0
    assert "Paris" in capsys.readouterr().out
