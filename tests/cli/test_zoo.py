"""The census: shrinking configurations, workers that end in every way, the file and the table."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING

from fuseline.cli import main
from fuseline.cli.zoo import table, trial
from fuseline.cli.zoo.census import Plan, census, chosen, resumed
from fuseline.cli.zoo.models import NotConfigured, build, names
from fuseline.cli.zoo.results import Miss, Mode, Result, Results
from fuseline.cli.zoo.shrink import per_layer, shrink
from fuseline.cli.zoo.sizes import Sizes, size
from fuseline.cli.zoo.trial import examine
from fuseline.cli.zoo.worker import Limits, one_line
from fuseline.config import Config
from fuseline.report import Report
from tests.cli import zoo_fakes

Print = pytest.CaptureFixture[str]


def shrunk(name: str) -> Any:
    return shrink(CONFIG_MAPPING[name], Sizes())


def run_fakes(*fakes: str, seconds: float = 60.0, folder: Path | None = None) -> list[Result]:
    config = Config(cache_dir=folder)
    plan = Plan(fakes, "float32", config, limits=Limits(seconds, 4 * 2**30))
    return list(census(plan, zoo_fakes.examine))


# -- shrinking ------------------------------------------------------------------------------------


def test_sizes_are_known_by_the_names_of_fields() -> None:
    assert size("hidden_size", Sizes()) == size("n_embd", Sizes(hidden=88)) == 88
    assert size("moe_intermediate_size", Sizes()) == 40
    assert size("shared_expert_intermediate_size", Sizes()) == 56
    assert size("image_token_id", Sizes()) == 2
    assert size("rope_theta", Sizes()) is None


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe", "deepseek_v3", "mamba2"])
def test_a_model_is_tiny_and_runs(name: str) -> None:
    model = build(name).model
    assert sum(p.numel() for p in model.parameters()) < 1_000_000


def test_each_kind_of_layer_is_there_once() -> None:
    assert shrunk("gemma3_text").layer_types == ["sliding_attention", "full_attention"]
    kimi = shrunk("kimi_linear")
    kinds = list(zip(kimi.layer_types, kimi.mlp_layer_types, strict=True))
    assert len(set(kinds)) == len(kinds) == kimi.num_hidden_layers == 3


def test_lists_of_sizes_are_left_to_the_class() -> None:
    class Plain:
        layer_types: list[str]

    plain = Plain()
    plain.layer_types = ["a", "b", "a", "b"]
    vars(plain)["heads_per_layer"] = [8, 16, 8, 16]
    assert per_layer(plain, 4) == {"layer_types": ["a", "b"]}
    assert per_layer(plain, 3) == {}


def test_a_mixture_has_several_experts_and_latent_attention_a_key_per_head() -> None:
    assert shrunk("qwen3_moe").num_experts == 6
    config = shrunk("deepseek_v3")
    assert (config.n_routed_experts, config.kv_lora_rank, config.q_lora_rank) == (6, 24, 28)
    assert config.num_key_value_heads == config.num_attention_heads


def test_what_is_off_by_default_stays_off_but_for_shared_experts() -> None:
    assert shrunk("gemma4_text").num_kv_shared_layers == 0
    assert shrunk("granitemoeshared").shared_intermediate_size == 56


def test_other_sizes_are_tried_where_the_first_do_not_fit() -> None:
    with pytest.raises(Exception, match="num_heads"):
        shrunk("mamba2")
    config: Any = build("mamba2").model.config
    assert config.hidden_size * config.expand == config.num_heads * config.head_dim


def test_parts_of_a_configuration_are_shrunk_too() -> None:
    config = shrunk("gemma3")
    assert config.text_config.hidden_size == config.vision_config.hidden_size == 88


def test_layers_that_are_given_as_a_list_are_as_many_as_the_model_has() -> None:
    config = shrunk("zamba")
    assert config.num_hidden_layers == len(config.layers_block_type) == 4
    assert set(config.layers_block_type) == {"linear_attention", "hybrid"}


def test_a_part_is_as_the_whole_wants_it() -> None:
    """What stands between gemma4_assistant and a model is in its class, not in its settings."""
    config = shrunk("gemma4_assistant")
    assert config.text_config.hidden_size_per_layer_input == 0
    assert config.text_config.hidden_size == config.backbone_hidden_size == 88


def test_no_model_where_an_optional_package_is_missing() -> None:
    if importlib.util.find_spec("timm"):
        pytest.skip("timm is installed")
    with pytest.raises(NotConfigured, match="timm"):
        build("gemma3n")


def test_structures_are_seen_in_the_model() -> None:
    assert build("qwen3_moe").structures == ("moe",)
    assert build("deepseek_v2").structures == ("moe", "mla")
    assert build("minicpm3").structures == ("mla",)
    assert build("llama").structures == ()


# -- workers --------------------------------------------------------------------------------------


def test_a_census_goes_on_after_whatever_ends_one() -> None:
    found = run_fakes("fine", "crash", "leave", "raise", "unknown", "wrong", "broken")
    assert [(r.name, r.status) for r in found] == [
        ("fine", "correct"),
        ("crash", "stopped"),
        ("leave", "stopped"),
        ("raise", "stopped"),
        ("unknown", "no model"),
        ("wrong", "wrong"),
        ("broken", "correct in parts"),
    ]
    causes = {r.name: r.cause for r in found}
    assert causes["crash"] == "ended by SIGABRT"
    assert causes["leave"] == "ended with exit code 3"
    assert causes["raise"] == "RuntimeError: what was the matter"
    assert causes["unknown"] == "ValueError: no sizes fit"
    assert found[1].stage == "prefill"  # what it was at
    assert found[1].structures == ("moe",)


def test_a_worker_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    (result,) = run_fakes("hang", seconds=5, folder=tmp_path)
    assert (result.status, result.cause) == ("stopped", "not done after 5 s")
    child = int((tmp_path / "child").read_text())
    for _ in range(50):
        if _gone(child):
            return
        time.sleep(0.1)
    pytest.fail("its child is still there")


def _gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet has."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()


def test_a_worker_that_wants_too_much_memory_is_ended() -> None:
    (result,) = run_fakes("eat")
    assert result.cause == "out of memory: 4 GiB is the limit"


def test_several_workers_at_a_time_give_every_result() -> None:
    plan = Plan(("fine", "wrong", "crash", "missed"), "float32", Config(), jobs=3)
    assert {r.name for r in census(plan, zoo_fakes.examine)} == set(plan.names)


def test_an_error_in_one_line() -> None:
    inner = RuntimeError("the matter")
    outer = ValueError("validation failed")
    outer.__cause__ = inner
    assert one_line(outer) == "RuntimeError: the matter"
    said = "a fake call\n  Explanation: no such thing\n  got ValueError('odd')"
    assert one_line(RuntimeError(said)) == "RuntimeError: a fake call: got ValueError('odd')"
    assert one_line(KeyError()) == "KeyError"


# -- results --------------------------------------------------------------------------------------


def result(name: str, **changes: Any) -> Result:
    settings: dict[str, Any] = {"prefill": zoo_fakes.right(), "stage": "done", **changes}
    return Result(name, "float32", **settings)


def empty(*architectures: str) -> Results:
    return Results(
        {"python": "3", "torch": "2", "transformers": "5", "fuseline": "0"}, architectures
    )


def test_a_structure_of_which_no_site_speaks_is_unexplained() -> None:
    assert result("a", structures=("moe",)).unexplained == ()
    assert result("a", structures=("moe", "mla")).unexplained == ("mla",)
    silent = Mode(graphs=1, missed=(Miss("route", "", 1),), error=0.0, allowed=1e-7)
    assert result("a", structures=("moe",), prefill=silent).unexplained == ("route",)


def test_results_are_kept_and_taken_up_again(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "zoo.json"
    kept = empty("a", "b") + result("b", structures=("moe",), decode=zoo_fakes.right())
    kept += result("a", prefill=None, cause="no such thing", stage="configuring")
    kept.save(path)
    assert [p.name for p in path.parent.iterdir()] == ["zoo.json"]
    assert resumed(path, lambda: empty("a", "b")) == kept
    assert [r.name for r in kept.results] == ["a", "b"]


def test_results_of_other_versions_are_made_again(tmp_path: Path) -> None:
    path = tmp_path / "zoo.json"
    (empty("a") + result("a")).save(path)
    assert resumed(path, lambda: Results({"torch": "3"}, ("a",))).results == ()
    path.write_text("{")
    assert resumed(path, lambda: empty("a")) == empty("a")


def test_a_later_result_takes_the_place_of_an_earlier_one() -> None:
    both = empty("a") + result("a", seconds=1.0) + result("a", seconds=2.0)
    assert [r.seconds for r in both.results] == [2.0]


# -- the table ------------------------------------------------------------------------------------


def test_the_table_says_what_became_of_each() -> None:
    wrong = Mode(graphs=1, error=5e-7, eager_error=2e-7, allowed=4e-7, host={"topk": 3})
    failed = Mode(failure="RuntimeError: odd", breaks={})
    rows = [
        result("fine", cache="static", decode=zoo_fakes.right(), structures=("moe",), seconds=3.0),
        result("off", prefill=wrong, cache="none", why_not_static="it takes no cache"),
        result("gone", prefill=failed),
        result("none", prefill=None, stage="configuring", cause="needs timm"),
        result("miss", prefill=Mode(graphs=1, missed=(Miss("rope", "odd width", 2),))),
    ]
    text = table.text(rows)
    row = next(line for line in text.splitlines() if line.startswith("fine"))
    errors = "2.0e-07 / 2.0e-07"
    assert row.split() == f"fine moe correct 12 of 12 {errors} static {errors} 0 3".split()
    assert "5.0e-07 / 2.0e-07" in text
    for line in (
        "off: no static cache: it takes no cache",
        "gone: prefill: RuntimeError: odd",
        "none: configuring: needs timm",
        "rope: odd width (miss x2)",
        "5 architectures, 4 configured, 3 captured whole, 1 correct, 1 (20%) both",
        "with moe: 1 architectures, 1 configured, 1 captured whole, 1 correct, 1 (100%) both, 0",
    ):
        assert line in text


SEVERAL = {"seeds": 10, "outputs": 30}


@pytest.mark.parametrize(
    ("outside", "eager", "right"),
    [(0, 0, True), (6, 5, True), (6, 0, True), (7, 0, False), (10, 1, False), (5, 9, True)],
)
def test_close_choices_fall_either_way(outside: int, eager: int, right: bool) -> None:
    """As many outputs outside the rule as eager has by the same measure are no error; more are."""
    mode = replace(zoo_fakes.right(), **SEVERAL, outside=outside, eager_outside=eager)
    row = result("several", prefill=mode)
    assert (mode.right, row.correct) == (right, right)
    text = table.text([row])
    assert f"2.0e-07 / 2.0e-07, {outside} / {eager} of 30 outside" in text
    said = f"several: prefill: {outside} of 30 outputs outside the rule, {eager} of eager's"
    assert (said in text) != right
    assert Result.of_dict(asdict(row)) == row


@pytest.mark.parametrize(
    ("ours", "seeds", "outside"), [([0.5], 1, 0), ([2.0] * 10, 10, 10), ([2.0, *[0.5] * 9], 10, 1)]
)
def test_more_seeds_are_tried_where_the_first_is_outside(
    monkeypatch: pytest.MonkeyPatch, ours: list[float], seeds: int, outside: int
) -> None:
    left = iter(ours)

    def nothing(program: Any, seed: int) -> list[Any]:
        raise AssertionError(f"{program} {seed}")

    def errors(*_: Any) -> list[trial.Errors]:
        one = next(left)
        fine = trial.Errors(ours=0.1, eager=0.1, allowed=0.2, eager_allowed=0.2)
        return [trial.Errors(one, eager=0.7, allowed=1.0, eager_allowed=1.5 * one), fine]

    monkeypatch.setattr(trial, "measured", errors)
    found = trial.measure(nn.Identity(), None, nothing, 1.5)
    mode = trial.noted(Report(), found)
    assert (mode.seeds, mode.outputs, mode.outside) == (seeds, 2 * seeds, outside)
    assert mode.eager_outside == 0
    assert mode.right == (outside < 7)
    assert next(left, None) is None


def test_the_page_is_the_same_however_long_it_took() -> None:
    slow, fast = (empty("a_b") + result("a_b", seconds=s) for s in (1.0, 2.0))
    assert table.page(slow) == table.page(fast)
    assert "| a\\_b |  | correct | 6 of 6 |" in table.page(slow)
    assert "transformers 5, torch 2, Python 3." in table.page(slow)


def test_names_that_a_pattern_matches_as_a_whole() -> None:
    assert chosen(("llama", "llama4", "xllama"), "llama.?") == ("llama", "llama4")
    assert "llama" in chosen(names(), None)


# -- the command ----------------------------------------------------------------------------------


def run_command(monkeypatch: pytest.MonkeyPatch, *argv: str, every: tuple[str, ...]) -> int:
    monkeypatch.setattr("fuseline.cli.zoo.models.names", lambda: every)
    monkeypatch.setattr("fuseline.cli.zoo.trial.examine", zoo_fakes.examine)
    return main(["explain", "--zoo", *argv])


def test_the_command_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Print
) -> None:
    path, page = tmp_path / "zoo.json", tmp_path / "zoo.md"
    every = ("fine", "missed", "crash")
    argv = ["--results", str(path), "--page", str(page), "--json"]
    assert run_command(monkeypatch, *argv, "--only", "fine", every=every) == 0
    assert "1 of 1: fine correct" in capsys.readouterr().err
    assert run_command(monkeypatch, *argv, every=every) == 0
    printed = capsys.readouterr()
    assert "fine correct" not in printed.err
    answer = json.loads(printed.out)
    assert [r["name"] for r in answer["results"]] == list(every)
    assert answer["summary"]["architectures"] == 3
    assert Results.load(path).names == every
    assert "rope: odd width (missed x2)" in page.read_text()


def test_wrong_numbers_are_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: Print) -> None:
    assert run_command(monkeypatch, every=("wrong", "fine")) == 1
    assert "wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv", [[], ["--zoo", "smollm2"], ["--zoo", "--only", "no such"], ["--zoo", "--only", "("]]
)
def test_wrong_usage(argv: list[str], capsys: Print) -> None:
    assert main(["explain", *argv]) == 2
    assert "FL0103" in capsys.readouterr().err


# -- through the compiler -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_architectures_end_to_end(tmp_path: Path, capsys: Print) -> None:
    path = tmp_path / "zoo.json"
    argv = ["explain", "--zoo", "--only", "llama|qwen3_moe", "--results", str(path)]
    assert main(argv) == 0
    found = {r.name: r for r in Results.load(path).results}
    assert set(found) == {"llama", "qwen3_moe"}
    for r in found.values():
        assert (r.status, r.cache) == ("correct", "static"), asdict(r)
        assert r.fused["attention"] == 8  # two layers, in four programs
    assert "2 architectures, 2 configured, 2 captured whole" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_wrong_numbers_of_a_compiled_model_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    import fuseline

    right = fuseline.compile

    def off(model: Any, **options: Any) -> Any:
        compiled = right(model, **options)

        class Off:
            report = staticmethod(compiled.report)

            def __call__(self, **inputs: Any) -> Any:
                out = compiled(**inputs)
                out.logits = out.logits * (1 + 1e-5)
                return out

        return Off()

    monkeypatch.setattr("fuseline.cli.zoo.trial.fuseline.compile", off)
    threads = torch.get_num_threads()
    found = examine("gpt2", "float32", Config(), lambda _: None)
    torch.set_num_threads(threads)
    assert found.status == "wrong"
