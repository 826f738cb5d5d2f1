"""run, explain and generate, on a tiny model and through the whole compiler."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuseline import KernelRecord, Report, Site
from fuseline.cli import compiling, main
from fuseline.cli.output import Output
from fuseline.config import Config
from fuseline.runtime.build import Progress
from tests.cli.helpers import save_directory

Print = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_directory(path)
    return path


def answer(capsys: Print) -> Any:
    return json.loads(capsys.readouterr().out)


def test_generate_gives_eagers_tokens(folder: Path, capsys: Print) -> None:
    argv = ["generate", str(folder), "--prompt", "The sea is", "--tokens", "12", "--json"]
    assert main([*argv, "--eager"]) == 0
    eager = answer(capsys)
    assert main(argv) == 0
    ours = answer(capsys)
    assert ours["tokens"] == eager["tokens"]
    assert ours["text"] == eager["text"]
    assert (ours["prompt_tokens"], len(ours["tokens"])) == (10, 12)
    assert ours["compile_seconds"] > eager["compile_seconds"] == 0
    assert ours["tokens_per_second"] > 0


def test_generate_compiles_for_a_latent_cache(
    folder: Path, capsys: Print, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flag is the option `cache`; a model without latents is compiled as ever."""
    given: list[str] = []
    inner = compiling.compile_program

    def compile_program(model: Any, config: Config, *more: Any) -> Any:
        given.append(config.cache)
        return inner(model, config, *more)

    monkeypatch.setattr(compiling, "compile_program", compile_program)
    argv = ["generate", str(folder), "--prompt", "The sea", "--tokens", "2", "--json"]
    argv += ["--set", "cache=model"]
    assert main(argv) == 0
    plain = answer(capsys)
    assert main([*argv, "--kv-cache", "latent"]) == 0
    assert answer(capsys)["tokens"] == plain["tokens"]
    assert given == ["model", "latent"]
    assert main([*argv, "--kv-cache", "latent", "--eager"]) == 2
    assert "latent with --eager" in capsys.readouterr().err


def test_generate_says_what_was_built_and_what_the_cache_held(
    folder: Path, capsys: Print, tmp_path: Path
) -> None:
    argv = ["generate", str(folder), "--prompt", "The sea is", "--tokens", "2"]
    argv += ["--set", f"cache-dir={tmp_path}", "--json"]
    assert main(argv) == 0
    first = answer(capsys)
    assert main(argv) == 0
    second = answer(capsys)
    assert first["kernels_built"] > first["kernels_found"] == 0
    assert (second["kernels_built"], second["kernels_found"]) == (0, first["kernels_built"])


def test_a_kernel_counts_once_and_as_built_where_one_program_built_it() -> None:
    tally = compiling.Tally()
    tally.add(Progress(1, 1, "gemv", built=False))
    assert str(tally) == "1 kernel from the cache, none built"
    tally.add(Progress(1, 2, "row_norm", built=True))
    tally.add(Progress(2, 2, "row_norm", built=False))
    assert str(tally) == "2 kernels: 1 built, 1 from the cache"
    tally.add(Progress(1, 1, "gemv", built=True))  # pruned meanwhile
    assert str(tally) == "2 kernels built"


def test_generate_streams_text_and_notes_the_rate(folder: Path, capsys: Print) -> None:
    argv = ["generate", str(folder), "--prompt", "The sea is", "--tokens", "7", "--eager"]
    assert main([*argv, "--json"]) == 0
    text = answer(capsys)["text"]
    assert main(argv) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{text}\n"
    assert "7 tokens, prefill" in printed.err
    assert "tokens/s" in printed.err


def test_generate_reads_the_prompt_from_standard_input(
    folder: Path, capsys: Print, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("The sea\n"))
    assert main(["generate", str(folder), "--tokens", "2", "--eager", "--json"]) == 0
    assert answer(capsys)["prompt_tokens"] == 7


def test_generate_uses_the_chat_template(folder: Path, capsys: Print) -> None:
    argv = ["generate", str(folder), "--prompt", "hi", "--tokens", "2", "--eager", "--json"]
    assert main([*argv, "--chat"]) == 0
    assert answer(capsys)["prompt_tokens"] == len("[hi]:")


def test_sampling_is_repeatable(folder: Path, capsys: Print) -> None:
    argv = ["generate", str(folder), "--prompt", "x", "--tokens", "9", "--eager", "--json"]
    found: list[list[int]] = []
    for seed in ("1", "1", "2"):
        assert main([*argv, "--temperature", "1.5", "--top-k", "50", "--seed", seed]) == 0
        found.append(answer(capsys)["tokens"])
    assert found[0] == found[1] != found[2]


def test_an_empty_prompt_is_wrong_usage(folder: Path, capsys: Print) -> None:
    assert main(["generate", str(folder), "--prompt", "", "--eager"]) == 2
    assert "FL0103 wrong argument --prompt" in capsys.readouterr().err


def test_chat_needs_a_template(tmp_path: Path, capsys: Print) -> None:
    save_directory(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    assert main(["generate", str(tmp_path), "--prompt", "hi", "--chat", "--eager"]) == 2
    assert "FL0103 wrong argument --chat" in capsys.readouterr().err


def test_text_needs_a_tokenizer(tmp_path: Path, capsys: Print) -> None:
    save_directory(tmp_path, tokenizer=False)
    assert main(["generate", str(tmp_path), "--prompt", "hi", "--eager"]) == 1
    assert "FL0807" in capsys.readouterr().err


def test_run_compares_numbers_and_times(folder: Path, capsys: Print) -> None:
    argv = ["run", str(folder), "--batch", "2", "--length", "5", "--runs", "2", "--json"]
    assert main(argv) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["same"] is True
    assert 0 < found["compiled_error"] <= found["allowed_error"]
    assert found["compiled_seconds"] > 0
    assert {site["pattern"] for site in found["report"]["sites"]} >= {"attention", "rms_norm"}
    assert printed.err.splitlines()[0] == f"loading {folder} ..."


def test_explain_lists_sites(folder: Path, capsys: Print) -> None:
    assert main(["explain", str(folder), "--json", "--set", "disable=merge-linears"]) == 0
    sites = answer(capsys)["sites"]
    assert [s["where"].split(" ")[0] for s in sites if s["pattern"] == "attention"] == [
        "model.layers.0.self_attn",
        "model.layers.1.self_attn",
    ]
    assert ("merged_linear", "fused") not in {(s["pattern"], s["status"]) for s in sites}
    fused = sum(s["status"] == "fused" for s in sites)
    assert fused == len(sites)
    assert main(["explain", str(folder), "--missed", "--set", "disable=merge-linears"]) == 0
    assert f"none of {fused} sites was missed" in capsys.readouterr().out


MISFIT = """
import torch
from torch import nn

def misfit():
    return nn.Linear(3, 5), torch.ones(2, 4)
"""


def test_explain_says_once_that_a_model_does_not_run(tmp_path: Path) -> None:
    """In a process of its own: pytest takes the place of torch's handlers."""
    (tmp_path / "misfits.py").write_text(MISFIT)
    done = subprocess.run(
        [sys.executable, "-m", "fuseline.cli", "explain", "misfits:misfit"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "FL0809 the model does not run on its inputs misfits:misfit: found Ru" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_torch_logs_of_an_error_is_there_at_the_debug_level(
    caplog: pytest.LogCaptureFixture, capsys: Print
) -> None:
    theirs = logging.getLogger("torch._subclasses.fake_tensor")
    with caplog.at_level(logging.DEBUG, "fuseline"), compiling.step(Output()):
        theirs.error("failed to run %s", "aten.mm")
    assert "compiling ..." in capsys.readouterr().err
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("DEBUG", "torch: failed to run aten.mm")
    ]


class Fake:
    """Stands for a compiled model: the model itself, off by a little, and a report."""

    def __init__(self, program: Any, off: float) -> None:
        self.program = program
        self.off = off

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = self.program(*args, **kwargs)
        out.logits = out.logits + self.off
        return out

    def report(self) -> Report:
        kernel = KernelRecord("row_norm_01", "row_norm", "rms_norm", 2, "norm (m.py:1)")
        return Report(
            (Site("moe", "mlp (m.py:2)", "missed", "no kernel"), Site("rope", "a", "fused")),
            (kernel,),
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    def install(off: float) -> None:
        def compile_program(program: Any, *_: object) -> Fake:
            return Fake(program, off)

        monkeypatch.setattr(compiling, "compile_program", compile_program)

    return install


def test_run_prints_a_verdict(folder: Path, capsys: Print, fake: Callable[[float], None]) -> None:
    fake(0.0)
    assert main(["run", str(folder), "--runs", "1"]) == 0
    text = capsys.readouterr().out
    assert "within the allowed" in text
    assert "times eager's" in text
    assert "missed  moe" in text


def test_run_is_1_where_the_numbers_differ(
    folder: Path, capsys: Print, fake: Callable[[float], None]
) -> None:
    fake(1e-3)
    assert main(["run", str(folder), "--runs", "1"]) == 1
    assert "OUTSIDE the allowed" in capsys.readouterr().out


def test_a_higher_tolerance_allows_more(
    folder: Path, capsys: Print, fake: Callable[[float], None]
) -> None:
    fake(1e-3)
    assert main(["run", str(folder), "--runs", "1", "--set", "tolerance=1e9", "--json"]) == 0
    found = answer(capsys)
    assert found["allowed_error"] > found["compiled_error"] > 10 * found["eager_error"]


def test_explain_shows_everything_or_only_the_misses(
    folder: Path, capsys: Print, fake: Callable[[float], None]
) -> None:
    fake(0.0)
    assert main(["explain", str(folder)]) == 0
    assert "kernels" not in capsys.readouterr().out
    assert main(["explain", str(folder), "--full"]) == 0
    assert "\nkernels\n  native  row_norm_01  x2" in capsys.readouterr().out
    assert main(["explain", str(folder), "--missed", "--json"]) == 0
    assert [site["pattern"] for site in answer(capsys)["sites"]] == ["moe"]
    assert main(["explain", str(folder), "--missed"]) == 0
    shown = capsys.readouterr().out
    assert "  rope  1 fused  0 missed" in shown
    assert "\n  fused " not in shown
