"""What becomes of results: samples by turns, files, tables, the page and its plot."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import __main__ as command
from benchmarks import page, parts, plot
from benchmarks.common import Json, by_turns, machine, medians, read_json, rounded, write_json
from benchmarks.gpu import page as gpu
from benchmarks.tables import Table, tables


def results() -> Json:
    """A run of one part of each kind, with numbers that are told apart."""
    samples = {"fuseline": [0.010, 0.011], "eager": [0.03, 0.04], "torch.compile": [0.02, 0.02]}
    decode = {
        "median_s": {"fuseline": 0.0105, "eager": 0.035, "torch.compile": 0.02, "read": 0.01},
        "speedup": {"eager": 3.333, "torch.compile": 1.905},
        "weight_bytes": 200_000_000,
        "samples_s": samples,
    }
    compiled = {
        "fuseline": {
            "cold": {"seconds": 4.0, "stages_s": {"trace": 3.0, "build": 1.0}},
            "warm": {"seconds": 1.0, "stages_s": {"trace": 0.75, "restore": 0.25}},
        },
        "torch.compile": {"cold": {"seconds": 40.0}, "warm": {"seconds": 5.0}},
    }
    memory = {name: {"weights": 2e6, "peak": 9e6, "running_peak": 8e6} for name in parts.CONTENDERS}
    qk_norm = {
        "median_s": {
            "fuseline kernel": 1e-7,
            "torch.compile kernel": 2e-7,
            "fuseline inner": 1e-6,
            "torch.compile inner": 7e-6,
            "fuseline outer": 5e-5,
            "torch.compile outer": 6e-5,
            "eager": 2e-4,
        },
        "speedup": {"kernel": 2.0, "inner": 7.0, "outer": 1.2, "eager": 4.0},
    }
    mla = {
        "median_s": {"fuseline": 1e-3, "torch.compile": 5e-3, "eager": 6e-3},
        "speedup": {"torch.compile": 5.0, "eager": 6.0},
    }
    adapters = {
        "median_s": {"fuseline": 1e-4, "torch.compile": 5e-4, "eager": 6e-4, "linear": 5e-5},
        "speedup": {"torch.compile": 5.0, "eager": 6.0},
    }
    facts = {"model": "smollm2", "dtype": "bfloat16", "threads": 2}
    kinds: dict[str, Json] = {
        "speed": {"cases": {"decode-1": decode}},
        "compile": compiled,
        "memory": memory,
        "qk_norm": {"tokens": {"8": qk_norm}},
        "mla": {"batches": {"8": mla}},
        "adapters": {"active": {"4": adapters}},
    }
    return {
        "command": "python -m benchmarks",
        "machine": {
            "cpu": "a CPU",
            "cores": 2,
            "memory_bytes": 2**34,
            "system": "L",
            "compiler": "g",
        },
        "versions": {"torch": "2.13", "fuseline": "0123456789ab"},
        "complete": True,
        "parts": {kind: {"kind": kind, **facts, **rest} for kind, rest in kinds.items()},
    }


def table(title: str) -> Table:
    return next(t for t in tables(results()) if t.title == title)


def test_contenders_are_called_by_turns_and_every_call_is_kept() -> None:
    calls: list[str] = []
    samples = by_turns(
        {name: lambda name=name: calls.append(name) for name in "ab"},
        seconds=0,
        least=3,
        calls=2,
        before=lambda name: calls.append(name.upper()),
    )
    untimed, rounds = calls[:4], calls[4:]
    assert untimed == ["A", "a", "B", "b"]
    assert rounds == [*"AaAaBbBb", *"BbBbAaAa", *"AaAaBbBb"]
    assert {name: len(values) for name, values in samples.items()} == {"a": 6, "b": 6}


def test_untimed_calls_come_first_in_every_turn() -> None:
    calls: list[str] = []
    samples = by_turns(
        {name: lambda name=name: calls.append(name) for name in "ab"},
        seconds=0,
        least=1,
        untimed=2,
        before=lambda name: calls.append(name.upper()),
    )
    assert calls == [*"AaAaAaBbBbBb"] * 2
    assert {name: len(values) for name, values in samples.items()} == {"a": 1, "b": 1}


def test_medians_leave_out_who_has_no_samples() -> None:
    assert medians({"a": [3.0, 1.0, 2.0], "b": []}) == {"a": 2.0}


def test_file_holds_what_was_written_with_lists_of_numbers_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    write_json(path, {"a": [0.1234567891, 2e-9], "b": {"c": ["x", "y"]}})
    assert read_json(path) == {"a": [0.123457, 2e-9], "b": {"c": ["x", "y"]}}
    assert '"a": [ 0.123457, 2e-09 ]' in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_numbers_keep_six_digits_and_other_values_stay() -> None:
    assert rounded({"a": (1 / 3, 7, True, None, "x")}) == {"a": [0.333333, 7, True, None, "x"]}


def test_speed_table_has_times_and_ratios() -> None:
    (row,) = table("Decode and prefill").rows
    assert row[1:] == ("2", "10.50", "20.00", "35.00", "1.91", "3.33", "0123456789ab")


def test_bandwidth_is_that_of_the_weights_and_a_share_of_plain_reading() -> None:
    (row,) = table("Weights streamed").rows
    assert row[2:5] == ("200 MB", "20.0", "19.0 (95%)")


def test_compile_table_has_both_states_and_stages_stand_under_their_names() -> None:
    (row,) = table("Compilation").rows
    assert row[1:-1] == ("4.0", "40.0", "10%", "1.0", "5.0", "20%")
    stages = table("Where compilation goes")
    assert stages.header[1:] == ("trace", "build", "restore", "commit")
    assert [row[1:-1] for row in stages.rows] == [("3.00", "1.00", ""), ("0.75", "", "0.25")]


def test_latent_attention_table_has_a_row_for_each_batch() -> None:
    (row,) = table("Latent attention").rows
    assert row[:-1] == ("bf16, batch 8", "2", "1.00", "5.00", "6.00", "5.00", "6.00")


def test_a_row_names_the_commit_that_its_part_was_measured_at() -> None:
    """Parts of a run that went on where another had stopped have versions of their own."""
    found = results()
    part = next(p for p in found["parts"].values() if p["kind"] == "mla")
    part["versions"] = {"fuseline": "later"}
    rows = [row[-1] for t in tables(found) if t.title == "Latent attention" for row in t.rows]
    assert rows == ["later"]


def test_part_without_results_has_no_table() -> None:
    empty: Json = results() | {"parts": {}}
    assert tables(empty) == []
    assert "##" not in page.page(empty)


def test_page_has_every_table_and_tells_an_incomplete_run() -> None:
    text = page.page(results())
    assert text.count("\n## ") == len(tables(results())) == 8
    assert "not complete" not in text
    assert "not complete" in page.page(results() | {"complete": False})


def test_page_has_other_machines_behind_the_rest() -> None:
    other = results()
    other["machine"] |= {"cpu": "another", "instructions": ["avx512f"]}
    text = page.page(results(), [other])
    assert text.startswith(page.page(results()))
    rest = text.removeprefix(page.page(results()))
    assert rest.startswith("\n## On another with avx512f, 2 cores\n")
    assert rest.count("\n### ") == len(tables(other)) == 8


@pytest.mark.parametrize("differs", [{"cpu": "a CPU"}, {"instructions": ["mmx"]}, {"cores": 99}])
def test_figures_of_two_machines_are_not_kept_in_one_file(
    differs: Json,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "run", found_nothing)
    output = tmp_path / "results.json"
    other = machine() | differs
    write_json(output, results() | {"machine": other})
    before = output.read_bytes()
    with pytest.raises(SystemExit):
        command.main(["--quick", "--only", "memory/*", "--output", str(output)])
    said = " ".join(capsys.readouterr().err.split())
    assert f"has figures of another machine ({page.machine(other)}; this is " in said
    assert "--output" in said
    assert output.read_bytes() == before


def test_terminal_gets_the_same_rows() -> None:
    text = io.StringIO()
    page.show(results(), Console(file=text, width=200))
    shown = text.getvalue()
    assert "19.0 (95%)" in shown
    assert "SmolLM2-135M, bf16, decode, batch 1" in shown


def test_plot_is_the_same_bytes_for_the_same_results(tmp_path: Path) -> None:
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    plot.draw(results(), first)
    plot.draw(results(), second)
    assert first.read_bytes() == second.read_bytes()
    assert b"<svg" in first.read_bytes()


def test_parts_have_names_of_their_own() -> None:
    for quick in (True, False):
        names = [part.name for part in parts.parts(quick=quick)]
        assert len(set(names)) == len(names)


def found_nothing(part: parts.Part, caches: Path, on_line: parts.OnLine) -> Json:
    """A part that says what it is about, and has no figures."""
    return part.facts() | {"kind": "other"}


def test_failing_part_is_named_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(part: parts.Part, caches: Path, on_line: parts.OnLine) -> Json:
        if part.kind == "memory":
            raise RuntimeError("exit code 9")
        return found_nothing(part, caches, on_line)

    monkeypatch.setattr(command, "run", run)
    output = tmp_path / "results.json"
    assert (
        command.main(["--quick", "--only", "memory/*", "qk_norm/*", "--output", str(output)]) == 1
    )
    found = read_json(output)
    assert list(found["parts"]) == ["qk_norm/qwen3/float32/1"]
    assert found["complete"] is False


def test_only_some_parts_anew_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "run", found_nothing)
    output = tmp_path / "results.json"
    write_json(output, {"parts": {"old": {"kind": "other", "model": "tiny"}}})
    assert command.main(["--quick", "--only", "memory/*", "--output", str(output)]) == 0
    assert list(read_json(output)["parts"]) == ["old", "memory/tiny/float32/1"]
    assert read_json(output)["complete"] is False
    assert command.main(["--quick", "--output", str(output)]) == 0
    assert "old" not in read_json(output)["parts"]
    assert read_json(output)["complete"] is True


@pytest.mark.skipif(not command.DEFAULT.exists(), reason="no results are in the tree")
def test_page_in_the_tree_is_that_of_the_results_in_the_tree() -> None:
    assert page.PAGE.read_text() == page.page(
        read_json(command.DEFAULT), page.elsewhere(), gpu.found()
    )
