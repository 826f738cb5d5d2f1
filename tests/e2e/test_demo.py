"""The demo, with trained weights: eager's greedy tokens, and logits within the numbers rule."""

from __future__ import annotations

import pytest

from examples import demo
from fuseline import Report
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
    assert "sites of 2 programs (the prefill and the decode step) together" in text


@pytest.mark.parametrize(("programs", "said"), [(2, "2 programs (the pre"), (3, "3 programs tog")])
def test_the_demo_says_that_sites_are_those_of_several_programs(programs: int, said: str) -> None:
    assert demo.what_counts(Report(stats={"programs": programs})).startswith(f"sites of {said}")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_smollm2_chats_in_bfloat16(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["generate", "smollm2", "--chat", "--prompt", "What is the capital of France?"]
    assert main([*argv, "--dtype", "bfloat16", "--tokens", "24"]) == 0
    assert "Paris" in capsys.readouterr().out
