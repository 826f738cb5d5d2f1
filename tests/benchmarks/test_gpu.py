"""The benchmarks of GPUs, tried out on the CPU: they run, and what becomes of their results."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import page
from benchmarks.common import Json, read_json, write_json
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import compare, experts, parts
from benchmarks.gpu import page as gpu_page
from benchmarks.gpu.device import Device
from benchmarks.gpu.rows import ROWS

QUICK = Device("cpu", quick=True)


def run(output: Path, *arguments: str) -> int:
    return command.main(["--device", "cpu", "--quick", "--output", str(output), *arguments])


def found_nothing(part: parts.Part, device: Device, options: parts.Options) -> Json:
    """A part that measures nothing."""
    return {"kind": part.kind, "median_s": {"fuseline": 1e-6}, "took_s": 0.0}


def nowhere(results: Json, output: Path) -> None:
    """Nothing is shown of parts that have measured nothing."""


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts.Part, "run", found_nothing)
    monkeypatch.setattr(command, "show", nowhere)


def one_of_each() -> list[str]:
    """The names of quick parts, one of each kind."""
    return [next(group).name for _, group in itertools.groupby(QUICK_PARTS, lambda p: p.kind)]


QUICK_PARTS = parts.parts(quick=True)


def test_one_part_of_each_kind_runs_and_has_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = one_of_each()
    assert run(tmp_path, "--without", "torch.compile", "--only", *names) == 0
    found = read_json(tmp_path / "results.json")
    assert list(found["parts"]) == names
    assert set(found["left out"]) == {part.name for part in QUICK_PARTS} - set(names)
    for part in found["parts"].values():
        assert set(part["median_s"]) == set(part["samples_s"])
        assert all(len(samples) >= 3 for samples in part["samples_s"].values())
    titles = ["Rows", "Experts", "Adapters", "Decode steps", "Prompts", "Launching"]
    assert [table.title for table in gpu_page.tables(found)] == titles
    section = gpu_page.section(found)
    assert section.startswith("## On no GPU\n")
    assert [line[4:] for line in section.splitlines() if line.startswith("### ")] == titles
    assert "Qwen3-8B, 8 layers, batch 2" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_parts_run_beside_torch_compile(tmp_path: Path) -> None:
    assert run(tmp_path, "--modes", "reduce-overhead", "max-autotune") == 0
    found = read_json(tmp_path / "results.json")
    assert found["left out"] == []
    step = found["parts"]["decode/deepseek_v3/2"]["median_s"]
    modes = ["torch.compile reduce-overhead", "torch.compile max-autotune"]
    assert list(step) == ["fuseline", *modes, "eager"]


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main([]) == 2
    assert "sees no GPU" in capsys.readouterr().err


def test_cpu_is_for_trying_out_only(tmp_path: Path) -> None:
    for arguments in (["--output", str(tmp_path)], ["--quick"]):
        with pytest.raises(SystemExit):
            command.main(["--device", "cpu", *arguments])


def test_a_pattern_of_no_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--list", "--only", "rows/*", "nonsense"])
    assert "--only nonsense names no part" in capsys.readouterr().err


def test_failing_part_is_in_the_results_and_the_others_run(
    nothing: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(part: parts.Part, device: Device, options: parts.Options) -> Json:
        if part.kind == "launches":
            raise RuntimeError("no launches\nmore")
        return found_nothing(part, device, options)

    monkeypatch.setattr(parts.Part, "run", fail)
    assert run(tmp_path) == 1
    found = read_json(tmp_path / "results.json")
    assert set(found["parts"]) == {part.name for part in QUICK_PARTS}
    assert found["parts"]["launches"]["error"] == "RuntimeError: no launches"
    assert "launches: failed: RuntimeError: no launches" in capsys.readouterr().err


def test_no_part_is_begun_that_would_not_end_within_the_budget(
    nothing: None, tmp_path: Path
) -> None:
    assert run(tmp_path, "--budget", "10") == 0
    found = read_json(tmp_path / "results.json")
    assert {part["kind"] for part in found["parts"].values()} == {"ceilings", "rows", "adapters"}
    assert "launches" in found["left out"]


def test_all_parts_fit_into_the_budget() -> None:
    everything = parts.parts(quick=False)
    assert len({part.name for part in everything}) == len(everything)
    assert sum(part.seconds(parts.Options()) for part in everything) <= command.BUDGET


def test_some_parts_anew_keep_the_others_of_the_same_gpu(nothing: None, tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", {"machine": {"gpu": "no GPU"}, "parts": {"old": {}}})
    assert run(tmp_path, "--only", "launches") == 0
    assert list(read_json(tmp_path / "results.json")["parts"]) == ["old", "launches"]
    write_json(tmp_path / "results.json", {"machine": {"gpu": "another"}, "parts": {"old": {}}})
    assert run(tmp_path, "--only", "launches") == 2
    assert list(read_json(tmp_path / "results.json")["parts"]) == ["old"]


def test_lost_device_is_left_with_the_process(
    nothing: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An illegal access of one kernel must not take all other parts with it."""
    calls: list[list[str]] = []
    works = [False]

    def replace(path: str, arguments: list[str]) -> None:
        calls.append(arguments)
        raise KeyboardInterrupt

    def answer(device: Device) -> bool:
        return works[0]

    monkeypatch.setattr(Device, "works", answer)
    monkeypatch.setattr(os, "execv", replace)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--budget", "100")
    works[0] = True
    assert command.main(calls[0][3:]) == 0
    found = read_json(tmp_path / "results.json")
    assert next(iter(found["parts"])) == "ceilings"
    assert found["command"].endswith("--budget 100")
    assert "--proceed" not in found["command"]
    assert len(found["parts"]) > 1


def test_failed_contenders_are_named() -> None:
    def raising() -> Tensor:
        raise RuntimeError("no kernel")

    x = torch.linspace(-1, 1, 9)
    runs = {"eager": lambda: x, "same": lambda: x, "wrong": lambda: x + 1, "nan": lambda: x / 0}
    first = compare.first_calls(QUICK, {**runs, "raising": raising}, 0.1)
    assert set(first.seconds) == {"eager", "same", "wrong", "nan"}
    assert first.differences["same"] == 0
    assert set(first.errors) == {"wrong", "nan", "raising"}
    assert first.errors["raising"] == "RuntimeError: no kernel"
    assert first.facts()["errors"] == first.errors


def test_calls_take_turns_with_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[Sequence[Any]] = []

    def capture(device: Device, runs: Sequence[Any], keep: int) -> Any:
        captured.append([run.args[0].item() for run in runs])
        assert keep == 3
        return lambda: None

    monkeypatch.setattr(Device, "captured", capture)

    def sampled(device: Device, runs: Json, calls: int) -> Json:
        assert calls == len(captured[0])
        return {"eager": [1.0]}

    monkeypatch.setattr(Device, "samples", sampled)
    inputs = [(torch.tensor(float(number)),) for number in range(3)]
    without = ("fuseline", "torch.compile")
    found = compare.in_graphs(Device("cpu"), torch.neg, inputs, 0.1, without)
    (order,) = captured
    assert order == [0.0, 1.0, 2.0] * 11
    assert found["input_sets"] == 3


@pytest.mark.parametrize("name", ROWS)
def test_rows_move_what_they_use_and_their_results(name: str) -> None:
    """All rows that are used are results as well, of the same size."""
    row, tokens = ROWS[name], 5
    inputs = row.inputs(QUICK, tokens)
    assert not torch.equal(inputs[0][0], inputs[1][0])
    outputs = sum(y.nbytes for y in row.function(*inputs[0]))
    fixed = sum(x.nbytes for x in inputs[0][len(row.rows) :])
    assert row.nbytes(tokens) == 2 * outputs + fixed


def test_experts_without_tokens_are_not_read() -> None:
    model = experts.block(QUICK)
    run_it = partial(model, QUICK.random(1, 1, 64, seed=1))
    whole = experts.nbytes(model.experts)
    assert experts.used_bytes(model, run_it) == experts.nbytes(model) - whole // 2  # 8 of 16


def test_slug_is_short() -> None:
    assert command.slug("NVIDIA H100 80GB HBM3") == "h100-80gb-hbm3"


def results() -> Json:
    """A run in which one contender, one part and one more were not measured."""
    rows: Json = {
        "median_s": {"fuseline": 1e-5, "torch.compile": 2e-5, "eager": 4e-5},
        "bytes": 20_000_000,
        "stats": {"host steps": 0},
    }
    step: Json = {
        "median_s": {"fuseline": 1e-3, "torch.compile reduce-overhead": 1.5e-3, "eager": 8e-3},
        "weight_bytes": 2_100_000_000,
        "stats": {"host steps": 2},
        "errors": {"torch.compile max-autotune": "RuntimeError: a | b"},
    }
    ceilings = {"copy_bytes_per_s": 2.5e12, "read_bytes_per_s": 3e12, "matmul_flops_per_s": 8e14}
    return {
        "command": "python -m benchmarks.gpu",
        "machine": {"gpu": "A GPU", "multiprocessors": 9, "memory_bytes": 2**36, "driver": "1"},
        "versions": {"torch": "2", "fuseline": "abc"},
        "parts": {
            "ceilings": {"kind": "ceilings", "subject": "", "size": 0, **ceilings},
            "decode/qwen3/8": {
                "kind": "decode",
                "subject": "qwen3",
                "size": 8,
                **step,
                "commit": "later",
            },
            "rows/add_rms_norm/64": {
                "kind": "rows",
                "subject": "add_rms_norm",
                "size": 64,
                **rows,
            },
            "launches": {"kind": "launches", "subject": "", "size": 0, "error": "E: none"},
        },
        "left out": ["decode/qwen3/32"],
    }


def test_tables_have_times_ratios_and_shares() -> None:
    rows, decode, failures = gpu_page.tables(results())
    what = "residual add, RMS norm, 4096, 64 tokens"
    times = ("10.00", "20.00", "40.00", "2.00", "4.00")
    assert rows.rows == ((what, *times, "2000", "80%", "0", "abc"),)
    step = ("1.00", "1.50", "8.00", "1.50", "8.00", "2.10", "0.70", "2", "later")
    assert decode.rows == (("Qwen3-8B, 8 layers, batch 8", *step),)
    assert failures.rows == (
        ("decode/qwen3/8 torch.compile max-autotune", "RuntimeError: a / b"),
        ("launches", "E: none"),
    )


def test_page_has_a_section_for_each_gpu_and_is_the_same_without() -> None:
    cpu: Json = {
        "command": "c",
        "machine": {"cpu": "a", "cores": 2, "memory_bytes": 0, "system": "L", "compiler": "g"},
        "versions": {},
        "complete": True,
        "parts": {},
    }
    plain = page.page(cpu)
    text = page.page(cpu, gpus=[results()])
    assert text.startswith(plain)
    assert text.removeprefix(plain).startswith("\n## On A GPU\n")
    assert "reads 3000 GB/s" in text
    assert "Left out for want of time: decode/qwen3/32." in text
