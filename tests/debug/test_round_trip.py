"""A dump is a whole input: `opt` on it gives the next dump, byte for byte, for every pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import fuseline
from fuseline.cli import main
from fuseline.cli.opt import optimised
from fuseline.config import Config
from fuseline.debug.dump import Dump
from fuseline.ir.core import Func
from fuseline.ir.text import print_func
from fuseline.passes.manager import PassManager
from fuseline.passes.pipeline import default_pipeline
from fuseline.passes.pipeline_text import format_pipeline, parse_pipeline
from fuseline.passes.record import Run
from fuseline.passes.rewrite import Pass
from fuseline.report import PassRecord
from tests.e2e import test_latent_cache
from tests.e2e.families import FAMILIES, Family, static_cache, tokens
from tests.passes.test_raise_experts_models import DENSE, MODELS
from tests.passes.test_raise_models import imported

# transformers asks its version through a cached function while it is traced.
pytestmark = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")


def built(name: str, dtype: torch.dtype) -> Any:
    """A tiny model; of experts, in the form that traces."""
    dense = {family.model_type: family for family in FAMILIES}
    family = Family(name, MODELS[name]) if name in MODELS else dense[name]
    model = cast("Any", family.build(dtype))
    if name in MODELS and name not in DENSE:
        model.set_experts_implementation("grouped_mm")
    return model


def prefill(name: str, dtype: torch.dtype = torch.float32) -> Func:
    """A call of any batch and length."""
    return imported(built(name, dtype), True, input_ids=tokens(3, 7), use_cache=False)


def step(name: str, dtype: torch.dtype = torch.float32) -> Func:
    """One decode step on a static cache."""
    model = built(name, dtype)
    cache = static_cache(model)
    with torch.no_grad():
        model(input_ids=tokens(2, 5), past_key_values=cache, use_cache=True)
    inputs = {"input_ids": tokens(2, 1), "past_key_values": cache, "use_cache": True}
    return imported(model, False, **inputs)


@dataclass
class Texts:
    """Keeps the text before and after each pass."""

    found: list[tuple[Pass, str, str]] = field(default_factory=list[tuple[Pass, str, str]])
    before: str = ""

    def before_pass(self, func: Func, pass_: Pass) -> None:
        del pass_
        self.before = print_func(func, locations=True)

    def after_pass(self, func: Func, pass_: Pass, record: PassRecord, run: Run) -> None:
        del run
        after = print_func(func, locations=True)
        assert record.changed or after == self.before, pass_.name
        self.found.append((pass_, self.before, after))


def check(func: Func, passes: list[Pass]) -> list[str]:
    """Run each pass from the text that the one before it left; the names of those that did some
    thing.
    """
    texts = Texts()
    PassManager(passes, check=True, observers=[texts]).run(func)
    assert [each for each, _, _ in texts.found] == passes
    for number, (each, before, after) in enumerate(texts.found, 1):
        alone = PassManager(parse_pipeline(str(each)), check=True)
        run = optimised(alone, before, f"{number}-{each.name}", Config())
        assert print_func(run.func, locations=True) == after, f"{number}-{each.name}"
        if number < len(texts.found):
            assert texts.found[number][1] == after
    return [each.name for each, before, after in texts.found if before != after]


def test_every_dump_of_a_model_gives_the_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the files and the command, over the whole pipeline of a tiny DeepSeek-V3."""
    func, passes = step("deepseek_v3"), default_pipeline()
    dump = Dump(tmp_path, "model")
    dump.start(func)
    PassManager(passes, check=True, observers=[dump]).run(func)
    before = tmp_path / "model-00" / "00-imported.fl"
    changed: list[str] = []
    for number, each in enumerate(passes, 1):
        file = tmp_path / "model-00" / f"{number:02d}-{each.name}.fl"
        assert main(["opt", "-p", str(each), str(before), "--verify-each"]) == 0
        printed = capsys.readouterr().out
        assert printed == (file if file.exists() else before).read_text(), each.name
        if file.exists():
            changed.append(each.name)
            before = file
    assert {"restore-mutations", "fuse-moe", "fuse-mla", "fuse-pointwise"} <= set(changed)
    assert main(["opt", str(tmp_path / "model-00" / "00-imported.fl")]) == 0
    assert capsys.readouterr().out == before.read_text()


def test_every_pass_over_a_mixture_of_any_size() -> None:
    changed = check(prefill("deepseek_v3"), default_pipeline())
    assert {"raise-experts", "fuse-moe", "merge-linears", "fuse-mla"} <= set(changed)


def test_every_pass_over_a_step_on_a_static_cache() -> None:
    changed = check(step("qwen3", torch.bfloat16), default_pipeline(on_gpu=True))
    assert {"fuse-qk-norm", "fuse-cache-write", "fuse-norm-linear"} <= set(changed)


def test_every_pass_with_a_cache_of_latents() -> None:
    """State that a pass adds, in the place of keys and values."""
    x, positions = test_latent_cache.calls(torch.bfloat16)[0]
    model = test_latent_cache.build(torch.bfloat16)
    func = imported(model, True, x=x, positions=positions)
    changed = check(func, default_pipeline(on_gpu=True, cache_latents=True))
    assert {"cache-latents", "raise-latent-attention"} <= set(changed)


@pytest.mark.slow
@pytest.mark.parametrize("on_gpu", [False, True], ids=["cpu", "gpu"])
@pytest.mark.parametrize("make", [prefill, step])
@pytest.mark.parametrize("name", [*MODELS, *(f.model_type for f in FAMILIES)])
def test_every_pass_of_every_model(
    name: str, make: Callable[[str, torch.dtype], Func], on_gpu: bool
) -> None:
    if name == "nemotron_h" and make is step:
        pytest.skip("its one layer has no attention, and so no cache")
    check(make(name, torch.bfloat16), default_pipeline(on_gpu=on_gpu))


class Counted(nn.Module):
    """Integers of the call: in a size, in a stride of an argument, and in numbers only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight  # tied: pinned where it is

    def forward(self, x: Tensor, factor: int, rows: int) -> Tensor:
        y = self.first(x) * factor + self.second(x)
        return y[:rows] + torch.arange(8, device=x.device) * factor


def test_what_a_compilation_knows_of_arguments_is_in_the_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pinned weights and integers, sizes with ranges, arguments that a pass adds."""
    torch.compiler.reset()
    compiled = fuseline.compile(Counted(), dynamic=True, dump_dir=tmp_path)
    with torch.no_grad():
        for rows in (5, 7):
            compiled(torch.ones(8, 2 * rows).t()[::2], rows - 2, rows - 1)
    folders = sorted(tmp_path.iterdir())
    assert folders
    for folder in folders:
        first = folder / "00-imported.fl"
        assert " pinned " in first.read_text()
        dumps = sorted(folder.glob("[0-9]*.fl"))
        assert main(["opt", str(first), "-p", format_pipeline(default_pipeline())]) == 0
        assert capsys.readouterr().out == dumps[-1].read_text()
