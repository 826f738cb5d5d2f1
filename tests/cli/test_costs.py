"""`explain --cost`: the account of each layer, the floor, and what calls took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fuseline.cli import main
from fuseline.cli.costs import Layer, layers, text, time_text
from fuseline.debug.machine import Machine, machine_of
from fuseline.report import CostRecord, layer_of
from fuseline.report_tables import digits, large
from tests.cli.helpers import module_of_user, save_directory

Print = pytest.CaptureFixture[str]
HERE = Machine(1e9, 1e12, 4e12, "a machine of this test")


def record(form: Any, module: str, moved: int, flops: int, dtype: str = "f32") -> CostRecord:
    return CostRecord(form, module, "m.py:1", "op", dtype, moved, flops)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_directory(path)
    return path


def test_a_layer_ends_at_its_number() -> None:
    assert layer_of("model.layers.3.mlp.experts.7") == "model.layers.3"
    assert layer_of("model.norm") == "model.norm"
    assert layer_of("") == ""


def test_the_least_time_is_that_of_bytes_or_of_operations() -> None:
    assert HERE.seconds(record("eager", "", 10**6, 10)) == 1e-3
    assert HERE.seconds(record("eager", "", 10, 10**9)) == 1e-3
    assert HERE.seconds(record("eager", "", 10, 4 * 10**9, "bf16")) == 1e-3


def test_ops_of_a_layer_are_added_and_like_layers_share_a_row() -> None:
    records = [
        *(record("eager", f"layers.{n}.{m}", 2 * 10**6, 5) for n in range(3) for m in "ab"),
        *(record("compiled", f"layers.{n}.a", 10**6, 5) for n in range(3)),
        record("compiled", "head", 10**6, 0),
    ]
    found = layers(records, HERE)
    assert found["layers.1"]["eager"] == Layer(2, 4 * 10**6, 10, 4e-3)
    assert found["head"]["eager"] == Layer(0, 0, 0, 0)
    rows = text(found, HERE, {"eager": 0.024}).splitlines()
    first = [row.split()[:2] for row in rows[1:4]]
    assert first == [["layers.0..2", "x3"], ["head", "0"], ["all", "6"]]
    assert rows[-1] == "eager: 24 ms measured, 2 times that"


def test_what_is_not_in_the_account_is_told_and_nothing_is_compared() -> None:
    found = layers([record(form, "a", 10**6, 5) for form in ("eager", "compiled")], HERE)
    outside = ["graph breaks: 1, and what is between graphs runs in eager (item)"]
    assert text(found, HERE, {"eager": 0.024}, outside).splitlines()[-3:] == [
        f"not in the account: {outside[0]}",
        "each graph counts once, however often it runs in a call",
        "eager: 24 ms measured, of the whole model",
    ]
    nothing = text({}, HERE, {"eager": 0.024})
    assert nothing.splitlines()[-1] == "eager: 24 ms measured"


def test_figures_are_plain_digits() -> None:
    assert [digits(n) for n in (573.2, 0.00001234, 184e4, 24.0)] == [
        "573",
        "0.0000123",
        "1840000",
        "24",
    ]
    assert [large(n) for n in (0, 768, 999.7, 1_836_512, 5e18)] == [
        "0",
        "768",
        "1 k",
        "1.84 M",
        "5000 P",
    ]
    times = [time_text(t) for t in (1e-9, 24.9e-6, 999.9e-6, 0.9999, 1234.5)]
    assert times == ["0.001 us", "24.9 us", "1 ms", "1 s", "1230 s"]
    found = layers([record("eager", "a", 10**6, 1_836_512)], HERE)
    shown = text(found, HERE, {"eager": 0.573}).splitlines()
    assert "1.84 M" in shown[1]
    assert shown[-1] == "eager: 573 ms measured, 573 times that"


BROKEN = """
import torch
from torch import nn

class Broken(nn.Module):
    def forward(self, x):
        x = torch.sin(x * 2)
        torch._dynamo.graph_break()
        return torch.cos(x) + 1

def broken():
    return Broken(), (torch.ones(5),)
"""


def test_the_account_of_a_model_with_graph_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Print
) -> None:
    module = module_of_user(BROKEN, tmp_path, monkeypatch)
    argv = ["explain", f"{module}:broken", "--cost", "--bandwidth", "20", "--rate", "0.1"]
    assert main([*argv, "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)["not_counted"]
    assert "and what is between graphs runs in eager (Call to `torch._dynamo" in line


def test_figures_that_are_given_stand_in_for_those_known() -> None:
    known = machine_of("sm_90")
    assert (known.bandwidth, known.half) == (3.35e12, 989e12)
    assert "H100 SXM, by its data sheet" in str(known)
    given = machine_of("sm_90", 4e12, None)
    assert (given.bandwidth, given.single) == (4e12, known.single)
    assert machine_of("sm_90", 4e12, 1e15).name == "as given"


def test_this_machine_is_measured() -> None:
    here = machine_of("cpu")
    assert 1e8 < here.bandwidth < 1e13
    assert 1e7 < here.single < 1e15


def test_the_account_of_a_model(folder: Path, capsys: Print) -> None:
    argv = ["explain", str(folder), "--cost", "--bandwidth", "20", "--rate", "0.1"]
    assert main([*argv, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {"model.layers.0", "model.layers.1", "lm_head"} <= set(data["layers"])
    total, measured = data["total"], data["measured_s"]
    assert 0 < total["compiled"]["ops"] < total["eager"]["ops"]
    assert 0 < total["compiled"]["bytes"] < total["eager"]["bytes"]
    assert data["not_counted"] == []
    assert measured["eager"] > 0 < measured["compiled"]
    assert sum(o["bytes"] for o in data["ops"] if o["form"] == "eager") == total["eager"]["bytes"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "at least: by as given: 20 GB/s" in shown
    assert "compiled: " in shown.splitlines()[-1]


def test_figures_without_an_account_are_refused(folder: Path, capsys: Print) -> None:
    assert main(["explain", str(folder), "--rate", "3"]) == 2
    assert "FL0103 wrong argument --rate" in capsys.readouterr().err
    for wrong in ("-1", "0", "inf", "fast"):
        with pytest.raises(SystemExit, match="2"):
            main(["explain", str(folder), "--cost", "--rate", wrong])


def test_a_figure_that_is_no_number_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["explain", "nowhere", "--cost", "--bandwidth", "abc"])
    assert "argument --bandwidth: 'abc' is not a number above 0" in capsys.readouterr().err
