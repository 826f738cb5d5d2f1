"""Remarks: what they say of a run, as text and as YAML, and where they go."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fuseline
from fuseline.config import Config
from fuseline.debug import remarks
from fuseline.debug.remarks import Remark, emit, of_kernels, of_run, quoted
from fuseline.errors import UsageError
from fuseline.ir.core import Func, Loc
from fuseline.ir.ops.pointwise import Add
from fuseline.ir.text import parse_func
from fuseline.passes.fuse_add_rms_norm import FuseAddRmsNorm
from fuseline.passes.manager import PassManager
from fuseline.passes.raise_rope import RaiseRope
from fuseline.passes.record import Run
from fuseline.passes.rewrite import NoMatch, Rewrite, failed, nearest
from fuseline.report import Report

TEXT = """func @f(%x: f32[B, 4], %r: f32[B, 4], %s: f32[4], %w: f32[4]) {
  %a = add %x, %r
  %y = rms_norm %a, %w
  %b = add %y, %s
  %z = rms_norm %b, %w
  return %z, %a
}"""


WHEN = ("Before", "After")


class Loader(yaml.SafeLoader):
    """Knows LLVM's tags, as its own tools do."""


def _record(loader: Any, kind: str, node: Any) -> tuple[str, dict[str, Any]]:
    return kind, loader.construct_mapping(node, deep=True)


cast("Any", Loader).add_multi_constructor("!", _record)


def records(text: str) -> list[tuple[str, dict[str, Any]]]:
    return list(cast("Any", yaml).load_all(text, Loader))


def message(record: dict[str, Any]) -> str:
    return "".join(str(text) for arg in record["Args"] for text in arg.values())


def args(record: dict[str, Any], key: str) -> list[str]:
    return [arg[key] for arg in record["Args"] if key in arg]


def run_of(text: str = TEXT, *passes: Any) -> Run:
    func = parse_func(text)
    for number, op in enumerate(func.ops):
        op.loc = Loc(f"layers.{number}", f"net.py:{number + 10}")
    return PassManager(passes or (FuseAddRmsNorm(),), check=True).run(func)


# -- what they say ----------------------------------------------------------------------------


def test_an_applied_rewrite_is_a_passed_remark() -> None:
    passed, _ = of_run(run_of(), "main")
    assert (passed.kind, passed.pass_name, passed.name) == (
        "Passed",
        "fuse-add-rms-norm",
        "add_rms_norm",
    )
    ((kind, record),) = records(passed.to_yaml())
    assert kind == "Passed"
    assert record["DebugLoc"] == {"File": "net.py", "Line": 11, "Column": 0}
    assert record["Function"] == "main"
    assert args(record, "Held") == ["x is the sum of two values of one type"]
    assert args(record, "Module") == ["layers.1"]
    costs = [args(record, f"{what}{when}") for what in ("Bytes", "Flops") for when in WHEN]
    assert costs == [["80*B + 16"], ["64*B + 16"], ["20*B"], ["20*B"]]
    assert str(passed) == f"net.py:11: remark: {message(record)} [--remarks=fuse-add-rms-norm]"


def test_a_missed_site_is_a_missed_remark() -> None:
    _, missed = of_run(run_of(), "main")
    ((kind, record),) = records(missed.to_yaml())
    assert kind == "Missed"
    assert args(record, "Reason") == ["the add joins f32[B, 4] and f32[4], not two of one type"]
    assert args(record, "Held") == ["x is a sum"]
    assert args(record, "Op") == ["rms_norm"]
    assert record["DebugLoc"]["Line"] == 13
    assert str(missed).endswith("[--remarks-missed=fuse-add-rms-norm]")
    assert message(record) == missed.message


def test_code_generation_is_analysed() -> None:
    func = parse_func(TEXT)
    add, norm = func.ops[0], func.ops[1]
    refused, chosen = of_kernels({add: "f64 has none", norm: ""}, {norm: {"no form": "4"}}, "main")
    assert refused.message == "add has no kernel: f64 has none"
    assert (refused.kind, refused.missed) == ("Analysis", True)
    assert chosen.message == "rms_norm: no form: 4"
    assert (chosen.kind, chosen.missed) == ("Analysis", False)
    assert ("NoForm", "4") in chosen.args


def test_what_is_fused_after_all_is_no_miss() -> None:
    """The miss stays on the record, but its op is gone: `explain` does not list it either."""
    run = run_of(TEXT, _FailsAtOnce(), FuseAddRmsNorm())
    assert [m.reason for m in run.missed.values()].count("near") == 2
    found = [(r.kind, r.where and r.where.module, r.pass_name) for r in of_run(run, "main")]
    assert found == [
        ("Passed", "layers.1", "fuse-add-rms-norm"),
        ("Missed", "layers.2", "_-fails-at-once"),
        ("Missed", "layers.3", "fuse-add-rms-norm"),
    ]


def test_a_place_that_is_not_known_has_no_debug_loc() -> None:
    text = Remark("Passed", "cse", "Rewritten", None, "f", (("String", "x"),))
    ((_, record),) = records(text.to_yaml())
    assert "DebugLoc" not in record
    assert str(text).startswith("<unknown>: remark: x")


def test_where_no_place_is_known_the_value_is_named() -> None:
    run = PassManager([FuseAddRmsNorm()], check=True).run(parse_func(TEXT))
    assert [str(r).partition(":")[0] for r in of_run(run, "main")] == ["%a", "%z"]


@given(st.text())
def test_any_text_comes_back_from_yaml(text: str) -> None:
    remark = Remark("Missed", "p", "n", Loc("", "a: b.py:3"), "f", (("Reason", text),))
    ((_, record),) = records(remark.to_yaml())
    assert args(record, "Reason") == [text]
    assert record["DebugLoc"]["File"] == "a: b.py"


def test_what_yaml_does_not_take_is_escaped() -> None:
    assert quoted("a\x7f\u0085\u2028\U0001f600\"'\n") == (
        '"a\\U0000007f\\U00000085\\U00002028\U0001f600\\"\'\\n"'
    )


# -- the nearest miss --------------------------------------------------------------------------


def test_the_attempt_that_got_further_is_kept() -> None:
    one, two = NoMatch("one", held=("a",)), NoMatch("two", held=("a", "b"))
    assert nearest(None, one) is one
    for best in (nearest(one, two), nearest(two, one)):
        assert (best.reason, best.others) == ("two", ("one",))
    assert nearest(one, NoMatch("other", held=("x",))).reason == "one"
    assert nearest(nearest(one, two), NoMatch("three")).others == ("one", "three")


def test_predicates_that_held_are_named() -> None:
    def why(reason: str) -> Any:
        return lambda: reason

    assert failed((), ("a", why("")), ("b", why(""))) is None
    missed = failed(("a",), ("b", why("")), ("c", why("not c")), ("d", why("not d")))
    assert missed == NoMatch("not c", held=("a", "b"))


@dataclass(frozen=True)
class _GetsFar(Rewrite[Add], root=Add, pattern="add_rms_norm"):
    """Misses every add, late."""

    def rewrite(self, op: Add, func: Func) -> NoMatch:
        return NoMatch("far", held=("one", "two"))


@dataclass(frozen=True)
class _FailsAtOnce(Rewrite[Add], root=Add, pattern="add_rms_norm"):
    """Misses every add, early."""

    def rewrite(self, op: Add, func: Func) -> NoMatch:
        return NoMatch("near", held=("one",))


@pytest.mark.parametrize("order", [(_GetsFar, _FailsAtOnce), (_FailsAtOnce, _GetsFar)])
def test_of_several_rewrites_the_one_that_got_furthest_says_why(order: Any) -> None:
    run = run_of(TEXT, *(made() for made in order))
    missed = [m for m in run.missed.values() if m.op is run.func.ops[0]]
    assert [(m.reason, m.others) for m in missed] == [("far", ("near",))]
    (remark, *_) = of_run(run, "main")
    assert ("Other", "near") in remark.args


def test_of_several_ways_to_read_a_rotation_the_nearest_says_why() -> None:
    """Each table is taken for the row as well: those attempts do not even read the same pairs."""
    text = """func @f(%x: f32[B, 8], %c: f32[B, 8], %s: f32[B, 4]) {
      %a = slice %x {axis = 1, stop = 4}
      %b = slice %x {axis = 1, start = 4, stop = 8}
      %ca = slice %c {axis = 1, stop = 4}
      %cb = slice %c {axis = 1, start = 4, stop = 8}
      %p = mul %ca, %a
      %q = mul %cb, %b
      %u = sub %p, %q
      %m = mul %b, %s
      %n = mul %a, %s
      %v = add %m, %n
      %y = concat [%u, %v] {axis = 1}
      return %y
    }"""
    (miss,) = run_of(text, RaiseRope()).missed.values()
    assert "read different tables" in miss.reason
    assert miss.held[0] == "the halves of the result read the same pairs"
    assert any("do not read the same pairs" in other for other in miss.others)


# -- where they go -----------------------------------------------------------------------------


@pytest.fixture
def quiet() -> Iterator[None]:
    """The level that fuseline's logger has where nobody set one."""
    logger = logging.getLogger("fuseline")
    level = logger.level
    logger.setLevel(logging.WARNING)
    yield
    logger.setLevel(level)


@pytest.mark.usefixtures("quiet")
def test_lines_go_to_standard_error_where_nobody_listens(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = of_run(run_of(), "main")
    emit(found, Config(remarks="add-rms"))
    assert capsys.readouterr().err == f"{found[0]}\n"
    emit(found, Config(remarks_missed=".*"))
    assert capsys.readouterr().err == f"{found[1]}\n"
    emit(found, Config(remarks="^add", remarks_missed="qk"))
    assert not capsys.readouterr().err


def test_lines_are_logged_where_somebody_listens(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    found = of_run(run_of(), "main")
    with caplog.at_level(logging.INFO, "fuseline"):
        emit(found, Config(remarks=".*", remarks_missed=".*"))
    assert [r.getMessage() for r in caplog.records] == [str(r) for r in found]
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "kept"),
    [("1", ".*"), ("on", ".*"), (True, ".*"), ("0", None), (False, None), ("fuse", "fuse")],
)
def test_a_truth_value_is_all_or_none(given: Any, kept: str | None) -> None:
    assert Config(remarks=given).remarks == kept


def test_a_file_has_what_one_process_says_and_is_always_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "remarks.yaml"
    file.write_text("of another process")
    config = Config(remarks_output=file)
    found = of_run(run_of(), "main")
    emit(found, config)
    emit(of_run(run_of(), "main_1"), config)
    functions = [record["Function"] for _, record in records(file.read_text())]
    assert functions == ["main", "main", "main_1", "main_1"]

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    before = file.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(UsageError, match="No space left"):
            emit(found, config)
    assert file.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["remarks.yaml"]


def test_a_file_without_remarks_is_there(tmp_path: Path) -> None:
    emit([], Config(remarks_output=tmp_path / "remarks.yaml"))
    assert (tmp_path / "remarks.yaml").read_text() == ""


def report_of(model: nn.Module, x: Tensor, *, cache: Path, **options: Any) -> Report:
    torch.compiler.reset()
    compiled: Any = fuseline.compile(model, cache_dir=cache, **options)
    with torch.no_grad():
        compiled(x)
    return compiled.report()


class Block(nn.Module):
    """Two norms of sums, with a graph break between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.RMSNorm(16), nn.RMSNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x + 1)
        torch._dynamo.graph_break()  # pyright: ignore[reportPrivateUsage]
        return self.last(x + torch.arange(16))


def test_every_graph_of_a_compiled_model_is_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "remarks.yaml"
    report_of(Block(), torch.ones(2, 16), cache=tmp_path / "cache", remarks_output=file)
    found = records(file.read_text())
    assert {record["Function"] for _, record in found} == {"Block", "Block_1"}
    assert {kind for kind, _ in found} >= {"Passed", "Missed"}


def test_a_model_that_the_cache_has_is_compiled_anew(tmp_path: Path) -> None:
    """What is restored has seen no pass."""
    model, x, file = nn.RMSNorm(16), torch.ones(2, 16), tmp_path / "remarks.yaml"
    report_of(model, x, cache=tmp_path / "cache")
    again = report_of(model, x, cache=tmp_path / "cache")
    assert again.stats["programs from the cache"] == 1
    report = report_of(model, x, cache=tmp_path / "cache", remarks_output=file)
    assert "programs from the cache" not in report.stats
    assert file.exists()


def test_options_are_checked_where_a_compiler_is_made(tmp_path: Path) -> None:
    remarks.check(Config(remarks="fuse-.*", remarks_missed="codegen"))
    with pytest.raises(UsageError, match="fits no pass, expected fuse-moe"):
        remarks.check(Config(remarks="fuse-mo$"))
    with pytest.raises(UsageError, match="it is a directory"):
        remarks.check(Config(remarks_output=tmp_path))
    with pytest.raises(UsageError, match="no directory"):
        remarks.check(Config(remarks_output=tmp_path / "a" / "b"))
