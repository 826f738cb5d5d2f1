"""Every rewrite is held to the numbers rule: what breaks it is named, and nothing is silent."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import fuseline
from fuseline.cli.program import main
from fuseline.debug.numerics import Numerics
from fuseline.debug.seeded import model_arguments
from fuseline.errors import PassError
from fuseline.ir.core import Func, Loc, Op, Value
from fuseline.ir.evaluate import Argument
from fuseline.ir.ops.buffer import IndexWrite, Read, SliceWrite
from fuseline.ir.ops.create import Full
from fuseline.ir.ops.pointwise import Add, Cast, Exp, Mul, Neg, Sub
from fuseline.ir.ops.view import Concat, Permute, Slice
from fuseline.ir.text import parse_func
from fuseline.ir.types import DType
from fuseline.passes.apply import Change
from fuseline.passes.manager import PassManager, RewriteObserver
from fuseline.passes.pipeline import default_pipeline
from fuseline.passes.rewrite import FuncPass, Pass, Replace, Rewrite
from fuseline.report import NumericsRecord, Report
from tests.cli.helpers import save_directory
from tests.e2e.families import Family, static_cache, tokens
from tests.e2e.harness import QUIET
from tests.e2e.test_latent_cache import build, calls
from tests.e2e.test_mla import EXPERTS, LATENT
from tests.passes.test_raise_models import imported

pytestmark = QUIET


def checked(
    text: str, passes: Sequence[Pass], given: Sequence[Argument | None] = ()
) -> list[NumericsRecord]:
    func = parse_func(text)
    for number, op in enumerate(func.ops):
        op.loc = Loc(f"layers.{number}", "model.py:7")
    numerics = Numerics(func, model_arguments(func, given))
    PassManager(passes, check=True, observers=[numerics]).run(func)
    return numerics.records


def always(passes: Sequence[Pass]) -> Callable[..., Sequence[Pass]]:
    """A pipeline that no option changes."""

    def pipeline(**options: object) -> Sequence[Pass]:
        del options
        return passes

    return pipeline


def broken(text: str, passes: Sequence[Pass], given: Sequence[Argument | None] = ()) -> PassError:
    with pytest.raises(PassError) as caught:
        checked(text, passes, given)
    assert caught.value.diagnostic.code == "FL0410"
    return caught.value


# -- rewrites, right and wrong ---------------------------------------------------------------


@dataclass(frozen=True)
class Doubled(Rewrite[Add], root=Add):
    """``x + x`` is ``x * 2``, bit for bit."""

    def rewrite(self, op: Add, func: Func) -> dict[Value, Value] | None:
        if op.lhs is not op.rhs:
            return None
        return {op.y: Mul(op.lhs, Full(value=2.0, dtype=op.y.dtype).y).y}


@dataclass(frozen=True)
class Narrowed(Rewrite[Exp], root=Exp):
    """Computes in bfloat16 what the model computes in float32."""

    def rewrite(self, op: Exp, func: Func) -> dict[Value, Value] | None:
        if op.x.dtype is not DType.F32:
            return None
        return {op.y: Cast(Exp(Cast(op.x, dtype=DType.BF16).y).y, dtype=DType.F32).y}


def nudged(value: Value) -> Value:
    """A value one unit in the last place larger, for values from 1 to 1.5."""
    return Mul(value, Full(value=1 + 2.0**-23, dtype=value.dtype).y).y


@dataclass(frozen=True)
class NudgedSum(Rewrite[Add], root=Add):
    """Off by less than a unit in the last place."""

    def rewrite(self, op: Add, func: Func) -> dict[Value, Value]:
        return {op.y: nudged(Sub(op.lhs, Neg(op.rhs).y).y)}


@dataclass(frozen=True)
class NudgedAgain(Rewrite[Mul], root=Mul):
    """Off by less than a unit from what `NudgedSum` has made."""

    def rewrite(self, op: Mul, func: Func) -> dict[Value, Value] | None:
        return {op.y: nudged(Mul(op.lhs, op.rhs).y)} if isinstance(op.lhs.owner, Sub) else None


@dataclass(frozen=True)
class Together(Rewrite[Neg], root=Neg):
    """Puts two values into one that only rewrites know."""

    def rewrite(self, op: Neg, func: Func) -> Replace | None:
        others = [o for o in func.users(op.x) if isinstance(o, Exp)]
        if not others or any(isinstance(u, Concat) for u in func.users(op.y)):
            return None
        both = Concat((Neg(op.x).y, Exp(op.x).y), axis=0)
        half, whole = op.y.shape[0], both.y.shape[0]
        first = Slice(both.y, axis=0, start=0, stop=half)
        second = Slice(both.y, axis=0, start=half, stop=whole)
        return Replace({op.y: first.y, others[0].y: second.y})


@dataclass(frozen=True)
class ScaledTogether(Rewrite[Concat], root=Concat):
    """Changes such a value; only what is made of it tells."""

    factor: float = 0.5

    def rewrite(self, op: Concat, func: Func) -> dict[Value, Value] | None:
        if any(isinstance(u, Mul) for u in func.users(op.y)):
            return None
        factor = Full(value=self.factor, dtype=op.y.dtype).y
        return {op.y: Mul(Concat(op.xs, axis=op.axis).y, factor).y}


TWICE = """func @f(%x: f32[5]) {
  %y = add %x, %x
  return %y
}"""
PAIR = """func @f(%x: f32[3, 4]) {
  %n = neg %x
  %e = exp %x
  return %n, %e
}"""


def test_right_rewrite_is_recorded_with_its_site() -> None:
    (record,) = checked(TWICE, [Doubled()])
    assert (record.number, record.rewrite) == (1, "doubled")
    assert (record.where, record.values, record.same) == ("layers.0 (model.py:7)", 1, True)
    assert record.value == "%y f32[5]"
    assert not record.unchecked


def test_wrong_rewrite_names_itself() -> None:
    error = broken("func @f(%x: f32[64]) {\n  %y = exp %x\n  return %y\n}", [Narrowed()])
    text = str(error)
    assert "rewrite #1 narrowed in layers.0 (model.py:7)" in text
    assert "%y f32[64]" in text
    assert "eager 0." in text
    assert 'disable=["narrowed"]' in text


def test_wrong_rewrite_of_a_narrow_model_passes_where_eager_rounds_alike() -> None:
    """Eager's own error is what counts: in a bfloat16 model the same op is as good as eager's."""
    text = "func @f(%x: bf16[64]) {\n  %w = cast %x {dtype = f32}\n  %y = exp %w\n  return %y\n}"
    assert "narrowed" in str(broken(text, [Narrowed()]))  # in float32 inside, all the same
    narrow = "func @f(%x: bf16[64]) {\n  %y = exp %x\n  return %y\n}"
    assert checked(narrow, [Narrowed()]) == []


def test_errors_do_not_add_up_unnoticed() -> None:
    """Each nudge is below a unit; the second one is compared with eager, not with the first."""
    x = torch.rand(400, generator=torch.Generator().manual_seed(0)) / 4 + 0.5
    text = "func @f(%x: f32[400]) {\n  %y = add %x, %x\n  return %y\n}"
    (record,) = checked(text, [NudgedSum()], [x])
    assert 0.5 < record.ulp < 1
    assert record.eager_ulp == 0
    assert record.ratio is None
    error = broken(text, [NudgedSum(), NudgedAgain()], [x])
    assert "rewrite #2 nudged-again" in str(error)


def test_values_that_only_rewrites_know_are_followed_to_what_eager_knows() -> None:
    first, second = checked(PAIR, [Together(), ScaledTogether(factor=1.0)])
    assert (first.values, first.same) == (2, True)
    assert (second.rewrite, second.values, second.same) == ("scaled-together", 1, True)
    error = broken(PAIR, [Together(), ScaledTogether()])
    assert "rewrite #2 scaled-together" in str(error)
    assert "f32[3, 4]" in str(error)  # a half, which is eager's, and not the whole


# -- moves, masks, decisions -----------------------------------------------------------------


@dataclass(frozen=True)
class Unturned(Rewrite[Permute], root=Permute):
    """Takes a permutation for another one of the same shape."""

    def rewrite(self, op: Permute, func: Func) -> dict[Value, Value] | None:
        return None if op.dims == (0, 1) else {op.y: Permute(op.x, dims=(0, 1)).y}


def test_copies_and_permutations_are_exact() -> None:
    """A matrix that is symmetric but for a last bit: within a unit, and wrong."""
    x = torch.ones(3, 3)
    x[0, 1] = 1 + 2.0**-23
    text = "func @f(%x: f32[3, 3]) {\n  %y = permute %x {dims = (1, 0)}\n  return %y\n}"
    assert "eager's bits" in str(broken(text, [Unturned()], [x]))


@dataclass(frozen=True)
class Hidden(Rewrite[Mul], root=Mul):
    """Wrong only where a mask's large numbers would hide it."""

    def rewrite(self, op: Mul, func: Func) -> dict[Value, Value] | None:
        if not isinstance(op.lhs.owner, Neg):
            return None
        return {op.y: Mul(Exp(op.lhs.owner.x).y, op.rhs).y}


@pytest.mark.parametrize("low", [float("-inf"), torch.finfo(torch.float32).min])
def test_masks_hide_nothing(low: float) -> None:
    text = """func @f(%x: f32[4], %m: f32[4]) {
      %n = neg %x
      %y = mul %n, %m
      return %y
    }"""
    ones = torch.ones(4)
    given = [torch.tensor([0.5, 0.25, 0.125, 0.0625]), torch.tensor([1.0, 1.0, 1.0, low])]
    broken(text, [Hidden()], given)
    assert checked(text, [], [ones, ones]) == []


def test_decisions_follow_eager() -> None:
    """The first two are equal in bfloat16, and are not in float64: eager's indices hold."""
    x = torch.tensor([1.0, 1.0, 0.5], dtype=torch.bfloat16)
    y = torch.tensor([0.0, 1e-4, 0.0], dtype=torch.bfloat16)
    text = """func @f(%x: bf16[3], %y: bf16[3]) {
      %s = add %x, %y
      %v, %i = topk %s {k = 1, axis = 0}
      %e = exp %v
      return %e, %i
    }"""
    func = parse_func(text)
    numerics = Numerics(func, [x, y])
    assert numerics.records == []
    numerics.end()
    eager = torch.topk(x + y, 1).indices
    record = numerics.kernels([torch.exp((x + y)[eager]), eager], [x, y])
    assert (record.values, record.same) == (2, True)


# -- buffers ---------------------------------------------------------------------------------

CACHE = """func @f(%k: buffer<f32[5, 3]>, %x: f32[2, 3], %at: i64[2]) {
  %old = read %k
  index_write %k, %at, %x {axis = 0}
  %new = read %k
  %a = exp %old
  %b = exp %new
  return %a, %b
}"""


@dataclass(frozen=True)
class Misplaced(Rewrite[IndexWrite], root=IndexWrite):
    """Writes to the first rows, wherever the index says."""

    def rewrite(self, op: IndexWrite, func: Func) -> Replace:
        write = SliceWrite(op.buffer, op.src, axis=0, start=0, stop=op.src.shape[0])
        return Replace(ops=[write], erase=[op])


@dataclass(frozen=True)
class ReadLate(FuncPass):
    """Moves every read behind the writes."""

    def run(self, func: Func) -> None:
        late = [op for op in func.ops if isinstance(op, Exp)]
        reads = [op for op in func.ops if isinstance(op, Read)]
        rest: list[Op] = [op for op in func.ops if op not in reads and op not in late]
        func.reorder([*rest, *reads, *late])


def test_what_is_left_in_a_buffer_is_compared() -> None:
    given = [None, None, torch.tensor([3, 1])]
    error = broken(CACHE, [Misplaced()], given)
    assert "rewrite #1 misplaced" in str(error)
    broken(CACHE, [ReadLate()], given)


def test_the_pipeline_keeps_a_cache() -> None:
    """The functional form that tracing gives becomes a write in place."""
    text = """func @f(%k: buffer<f32[5, 3]>, %x: f32[2, 3], %at: i64[2]) {
      %old = read %k
      %new = index_copy %old, %at, %x {axis = 0}
      %y = exp %new
      write %k, %new
      return %y
    }"""
    records = checked(text, default_pipeline(), [None, None, torch.tensor([3, 1])])
    assert "restore-mutations" in {r.rewrite for r in records}
    assert all(r.same and not r.unchecked for r in records)


# -- what cannot be compared -----------------------------------------------------------------


def test_random_numbers_are_not_compared_and_that_is_said() -> None:
    text = """func @f(%x: f32[6]) {
      %r = aten.call [%x] {target = "aten.rand_like.default", args = ($0,), types = (f32[6],)}
      %y = add %r, %r
      return %y
    }"""
    cast("Any", torch).manual_seed(3)
    state = torch.get_rng_state()
    first, second = checked(text, [Doubled()])
    assert first.unchecked == ("%r: it draws random numbers",)
    assert (second.rewrite, second.values, second.same) == ("doubled", 1, True)
    assert torch.equal(state, torch.get_rng_state())


def test_arguments_that_do_not_fit_are_told_of() -> None:
    func = parse_func(TWICE)
    numerics = Numerics(func, [torch.ones(4)])
    PassManager([Doubled()], observers=[numerics]).run(func)
    (record,) = numerics.records
    assert (record.rewrite, record.values) == ("import", 0)
    assert "extent 5 is 4" in record.unchecked[0]


def test_kernels_draw_other_random_numbers() -> None:
    def program(x: Tensor) -> tuple[Tensor, Tensor]:
        return nn.functional.dropout(torch.exp(x), 0.5, True) + 1, x * 2

    compiled = fuseline.compile(program, check_numerics=True)
    with torch.no_grad():
        compiled(torch.rand(40))
    kernels = cast("Any", compiled).report().numerics[-1]
    assert (kernels.rewrite, kernels.values, kernels.same) == ("kernels", 1, True)
    (reason,) = kernels.unchecked
    assert "it depends on random numbers" in reason


# -- inputs ----------------------------------------------------------------------------------


def test_seeded_inputs_are_in_range_and_not_zero() -> None:
    func = parse_func("""func @f(%ids: i64[B, S], %w: f32[7, 64] = param "emb") {
      %e = embedding %w, %ids
      return %e
    }""")
    ids, weight = cast("list[Tensor]", model_arguments(func))
    assert ids.shape == (3, 5)
    assert 0 <= int(ids.min()) <= int(ids.max()) < 7
    assert bool(weight.ne(0).all())
    assert 0.5 < float(weight.square().sum(1).sqrt().mean()) < 2


# -- the hook --------------------------------------------------------------------------------


def test_an_observer_of_rewrites_sees_before_and_after() -> None:
    seen: list[str] = []

    class Watch(RewriteObserver):
        def before_rewrite(self, func: Func, rewrite: Rewrite[Any], root: Op) -> None:
            seen.append(f"before {rewrite.name} at {root.name}, {len(func)} op")

        def after_rewrite(self, func: Func, rewrite: Rewrite[Any], change: Change) -> None:
            (old,) = change.values
            removed = [op.name for op in change.removed]
            seen.append(f"after #{change.applied.number}: %{old.hint}, {removed}, {len(func)} ops")

    func = parse_func(TWICE)
    PassManager([Doubled()], observers=[Watch()]).run(func)
    assert seen == ["before doubled at add, 1 op", "after #1: %y, ['add'], 2 ops"]


# -- whole models ----------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.embed = nn.RMSNorm(16), nn.Embedding(11, 16)
        self.q, self.k = nn.Linear(16, 16), nn.Linear(16, 8)
        self.down = nn.Linear(8, 16)
        self.cache: Tensor
        self.register_buffer("cache", torch.zeros(9, 8))

    def forward(self, ids: Tensor, at: Tensor) -> Tensor:
        x = self.norm(self.embed(ids))
        self.cache.index_copy_(0, at, self.k(x))
        gate = torch.softmax(self.q(x)[:, :8] @ self.cache.T, -1) @ self.cache
        return x + self.down(nn.functional.silu(gate))


def block(dtype: torch.dtype) -> Block:
    cast("Any", torch).manual_seed(0)
    return Block().to(dtype).eval()


def inputs() -> tuple[Tensor, Tensor]:
    return torch.tensor([3, 1, 10]), torch.tensor([4, 0, 7])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_a_program_is_checked_at_its_first_call(dtype: torch.dtype) -> None:
    model, twin = block(dtype), block(dtype)
    compiled = fuseline.compile(model, check_numerics=True)
    with torch.no_grad():
        found, eager = compiled(*inputs()), twin(*inputs())
        compiled(*inputs())
    torch.testing.assert_close(found, eager, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(model.cache, twin.cache, atol=2e-2, rtol=2e-2)
    report = cast("Any", compiled).report()
    kernels = [r for r in report.numerics if r.rewrite == "kernels"]
    assert [(r.values, r.share <= 1) for r in kernels] == [(2, True)]  # the result, and the cache
    rewrites = [r for r in report.numerics if r.number]
    assert [r.number for r in rewrites] == list(range(1, int(report.stats["rewrites"]) + 1))
    assert all(r.values and r.share <= 1 for r in rewrites)
    assert json.loads(report.to_json())["numerics"][-1]["rewrite"] == "kernels"
    assert "merge-linears" in str(report)


def test_a_broken_pass_ends_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = [*default_pipeline(), Narrowed()]
    monkeypatch.setattr("fuseline.compiler.default_pipeline", always(passes))
    compiled = fuseline.compile(torch.exp, check_numerics=True)
    x = torch.linspace(0.1, 1, 50)
    with torch.no_grad(), pytest.raises(PassError, match="FL0410"):
        compiled(x)
    off = fuseline.compile(torch.exp, check_numerics=True, disable=["narrowed"])
    with torch.no_grad():
        torch.testing.assert_close(off(x), torch.exp(x))


def test_kernels_that_differ_are_told_of() -> None:
    func = parse_func(TWICE)
    x = torch.linspace(1, 2, 5)
    numerics = Numerics(func, [x])
    PassManager([Doubled()], observers=[numerics]).run(func)
    numerics.end()
    record = numerics.kernels([2.5 * x], [x])
    assert record.share > 1
    assert Report(numerics=(record,)).numbers_differ
    assert not Report(numerics=(replace(record, share=0.5),)).numbers_differ


def mixture() -> Any:
    sizes = LATENT | EXPERTS | {"num_hidden_layers": 2}
    model = cast("Any", Family("deepseek_v3", sizes).build(torch.float32))
    model.set_experts_implementation("batched_mm")
    return model


def test_a_mixture_is_checked_on_seeded_weights() -> None:
    func = imported(mixture(), True, input_ids=tokens(3, 7), use_cache=False)
    numerics = Numerics(func, model_arguments(func))
    PassManager(default_pipeline(on_gpu=True), observers=[numerics]).run(func)
    records = numerics.records
    assert {"fuse-moe", "fuse-mla", "raise-attention"} <= {r.rewrite for r in records}
    assert all(r.values and r.share <= 1 and not r.unchecked for r in records)


@pytest.mark.slow
def test_a_decoding_mixture_is_checked() -> None:
    """Routers, grouped products, static caches and latents, from torch to kernels."""
    model = mixture()
    compiled = fuseline.compile(model, check_numerics=True)
    cache = static_cache(model)
    with torch.no_grad():
        compiled(tokens(2, 7), past_key_values=cache, use_cache=True)
        compiled(tokens(2, 1), past_key_values=cache, use_cache=True)
    records = compiled.report().numerics
    kinds = {r.rewrite for r in records}
    assert {"fuse-moe", "fuse-mla", "restore-mutations", "kernels"} <= kinds
    assert all(r.values and r.share <= 1 for r in records)


def test_a_latent_cache_is_checked_but_for_what_earlier_calls_left() -> None:
    compiled = fuseline.compile(build(torch.float32), cache="latent", check_numerics=True)
    with torch.no_grad():
        for call in calls(torch.float32)[:2]:
            compiled(*call)
    records = cast("Any", compiled).report().numerics
    latent = [r for r in records if r.rewrite == "cache-latents"]
    assert latent
    assert all(r.values and r.share <= 1 for r in latent)
    kernels = [r for r in records if r.rewrite == "kernels"]
    assert all("earlier calls" in why for r in kernels for why in r.unchecked)


def test_export_checks_on_seeded_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    passes = [*default_pipeline(), Narrowed()]
    monkeypatch.setattr("fuseline.compiler.default_pipeline", always(passes))
    (tmp_path / "exported_exponent.py").write_text(EXPONENT)
    cast("Any", monkeypatch).syspath_prepend(tmp_path)
    words = ["export", "exported_exponent:make", "-o", str(tmp_path / "model.fuse")]
    assert main([*words, "--check-numerics"]) == 1
    assert re.search(r"FL0410 numbers break at rewrite #\d+ narrowed", capsys.readouterr().err)
    assert main([*words, "--check-numerics", "--format", "onnx"]) == 2
    assert main(words) == 0
    assert "numbers" not in capsys.readouterr().out
    monkeypatch.setattr("fuseline.compiler.default_pipeline", always(default_pipeline()))
    targets = ["--cpu-isa", "baseline", "--cpu-isa", "native"]
    assert main([*words, "--check-numerics", *targets]) == 0
    found = re.findall(
        r"numbers +main for (\S+): (\d+) rewrites and passes checked, .* (\S+) of what",
        capsys.readouterr().out,
    )
    assert [target for target, _, _ in found] == ["cpu:baseline", "cpu:native"]
    assert found[0][1] == found[1][1] != "0"
    assert all(float(share) <= 1 for _, _, share in found)


EXPONENT = """\
import torch


class Exponent(torch.nn.Module):
    def forward(self, x):
        return torch.exp(x), x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def make():
    return Exponent(), (torch.rand(50),)
"""


def test_off_it_is_not_even_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"fuseline.debug.{name}" for name in ("numerics", "living", "first_call")]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    compiled = fuseline.compile(torch.exp, reuse=False)
    with torch.no_grad():
        compiled(torch.rand(5))
    assert sys.modules.keys().isdisjoint(names)


# -- commands --------------------------------------------------------------------------------


def test_explain_and_run_print_the_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_directory(tmp_path)
    assert main(["explain", str(tmp_path), "--length", "5", "--check-numerics"]) == 0
    text = capsys.readouterr().out
    assert "numbers, in units in the last place against float64" in text
    assert "kernels" in text
    argv = ["run", str(tmp_path), "--length", "5", "--runs", "1", "--check-numerics", "--json"]
    assert main(argv) == 0
    records = json.loads(capsys.readouterr().out)["report"]["numerics"]
    assert records[-1]["rewrite"] == "kernels"
    assert {r["number"] for r in records} >= {0, 1}


def test_a_file_has_no_passes_to_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = fuseline.export(nn.Linear(3, 5), (torch.ones(2, 3),), path=tmp_path / "model.fuse")
    assert main(["run", str(made.path), "--check-numerics"]) == 2
    assert "--check-numerics" in capsys.readouterr().err
