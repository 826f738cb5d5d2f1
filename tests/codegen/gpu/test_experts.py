"""Routed experts in Triton against the op's reference, at odd sizes and in every form."""

from __future__ import annotations

import importlib
import itertools
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from fuseline.codegen.gpu import lower_experts
from fuseline.codegen.gpu.experts import ExpertsProductKernel
from fuseline.codegen.gpu.experts_choice import MOST_ALIKE, Range, choose_ranges, choose_shared
from fuseline.codegen.gpu.lower_experts import MOST_ASIDE
from fuseline.codegen.lower import Launch, Lowered, NeedDense, Refusal, Scratch, lower
from fuseline.ir.evaluate import evaluate
from fuseline.ir.layout import Layout, LayoutMap
from fuseline.ir.types import DType, substitute, symbol
from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu.binary import Binary
from tests.codegen.gpu.harness import binaries_of, configured, interpreted
from tests.codegen.mixture_cases import (
    FORMS,
    TRANSPOSED,
    Mixture,
    clamped_swiglu,
    fields_of,
)

DTYPES = ["f32", "bf16", pytest.param("f16", marks=pytest.mark.slow)]
MOST_SLOW = pytest.mark.parametrize(
    "dtype", ["f32", *(pytest.param(d, marks=pytest.mark.slow) for d in ("bf16", "f16"))]
)
TOLERANCES = {"f32": (1e-5, 1.3e-6), "bf16": (1e-3, 1.6e-2), "f16": (1e-3, 1e-3)}
GUARD = 64


def lowered(mixture: Mixture, tokens: int) -> Lowered:
    """What the lowering makes of it."""
    _, layouts, op = mixture.op(tokens)
    return lower(op, layouts, "cuda")


Order = Callable[[list[Launch]], list[Launch]]


def run(
    mixture: Mixture, tokens: int, arguments: list[Tensor], order: Order | None = None
) -> Tensor:
    """What the interpreted launches give, one after the other or in another order."""
    func, layouts, op = mixture.op(tokens)
    launches = lower(op, layouts, "cuda")
    assert isinstance(launches, list), launches
    launches = launches if order is None else order(launches)
    y = torch.full((tokens, mixture.out), float("nan"), dtype=op.dtype.torch)
    memory = dict(zip(func.args, mixture.packed(op, func, arguments), strict=True)) | {op.y: y}
    scratches = [b for x in launches for b in x.buffers if isinstance(b, Scratch)]
    assert len(set(scratches)) == 1
    size = substitute(scratches[0].nbytes, {})
    scratch = torch.full((size + GUARD,), 0xFF, dtype=torch.uint8)
    for launch in map(configured, launches):
        buffers = [
            scratch if isinstance(b, Scratch) else memory[b]
            for b in launch.buffers
            if b is not None
        ]
        dims = [substitute(d, {}) for d in launch.dims]
        interpreted(launch, buffers, dims, [substitute(d, {}) for d in launch.grid])
        assert (scratch[-GUARD:] == 0xFF).all(), "wrote past the end of scratch"
    return y


def check(mixture: Mixture, tokens: int, *, seed: int = 0) -> Tensor:
    """The launches give what the op means; the result."""
    func, _, _ = mixture.op(tokens)
    arguments = mixture.arguments(func, tokens, seed=seed)
    return check_on(mixture, tokens, arguments)


def check_on(mixture: Mixture, tokens: int, arguments: list[Tensor]) -> Tensor:
    """The same for given arguments."""
    func, _, _ = mixture.op(tokens)
    (want,) = evaluate(func, [a.clone() for a in arguments])
    y = run(mixture, tokens, arguments)
    absolute, relative = TOLERANCES[mixture.result or mixture.dtype]
    torch.testing.assert_close(y.double(), want.double(), atol=absolute * 4, rtol=relative * 4)
    return y


@contextmanager
def ranges(*chosen: Range) -> Generator[None]:
    """Within it every number of tokens is multiplied so."""

    def choose(**_: object) -> list[Range]:
        return list(chosen)

    with mock.patch.object(lower_experts, "choose_ranges", choose):
        yield


ALIKE, SORTED = Range(0, None, "alike", 16), Range(0, None, "sorted", 16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_tokens(dtype: str) -> None:
    mixture = Mixture(dtype=dtype, route=dtype, experts=3, top=2)
    for tokens in (0, 1, 2, 3, 8, 15, 150):  # 150: sorted, and a rest
        check(mixture, tokens)


def check_finds(mixture: Mixture) -> None:
    """One token, and a few in both ways in which they can find their experts."""
    check(mixture, 1)
    for chosen in (ALIKE, SORTED):
        with ranges(chosen):
            check(mixture, 4)


@MOST_SLOW
@pytest.mark.parametrize("form", FORMS)
def test_every_form(form: dict[str, Any], dtype: str) -> None:
    check_finds(Mixture(**fields_of(form, dtype)))


@MOST_SLOW
@pytest.mark.parametrize("form", TRANSPOSED)
def test_matrices_that_lie_the_other_way(form: dict[str, Any], dtype: str) -> None:
    check_finds(Mixture(**fields_of(form, dtype, transposed=True)))


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_blocks(dtype: str, block: int) -> None:
    """Some experts with more pairs than a block holds, some with none."""
    mixture = Mixture(**fields_of({"experts": 4, "top": 2, "hidden": 72, "shared": 24}, dtype))
    func, _, _ = mixture.op(150)
    arguments = mixture.arguments(func, 150)
    arguments[1][arguments[1] == 2] = 1
    with ranges(Range(0, None, "sorted", block)):
        check_on(mixture, 150, arguments)


@pytest.mark.parametrize("chosen", [ALIKE, SORTED])
def test_all_tokens_go_to_one_expert_and_none_to_the_others(chosen: Range) -> None:
    mixture = Mixture(experts=20, top=1, hidden=64, out=32)
    func, _, _ = mixture.op(40)
    arguments = mixture.arguments(func, 40)
    arguments[1].fill_(19)
    with ranges(chosen):
        check_on(mixture, 40, arguments)


@pytest.mark.parametrize("chosen", [ALIKE, SORTED])
def test_an_expert_may_come_twice_for_a_token(chosen: Range) -> None:
    for combine in ("slots", "experts", "in_turn"):
        mixture = Mixture(top=3, combine=combine)
        func, _, _ = mixture.op(5)
        arguments = mixture.arguments(func, 5)
        arguments[1][:, 2] = arguments[1][:, 0]
        with ranges(chosen):
            check_on(mixture, 5, arguments)


@pytest.mark.parametrize("tokens", [1, 5])
def test_indices_outside_add_nothing(tokens: int) -> None:
    for combine in ("slots", "experts"):
        mixture = Mixture(top=3, combine=combine)
        func, _, _ = mixture.op(tokens)
        arguments = mixture.arguments(func, tokens)
        arguments[1][0] = torch.tensor([-1, 5, (1 << 32) + 1])
        for chosen in (ALIKE, SORTED):
            with ranges(chosen):
                check_on(mixture, tokens, arguments)
        check_on(mixture, tokens, arguments)


def test_a_token_does_not_depend_on_the_others() -> None:
    mixture = Mixture(dtype="bf16", hidden=64, shared=32)
    func, _, _ = mixture.op(7)
    arguments = mixture.arguments(func, 7)
    whole = run(mixture, 7, arguments)
    arguments[0][3] = float("nan")
    others = [t for t in range(7) if t != 3]
    spoilt = run(mixture, 7, arguments)
    assert spoilt[3].isnan().all()
    assert torch.equal(spoilt[others], whole[others])


@pytest.mark.parametrize(("experts", "top"), [(128, 8), (256, 8), (32, 4), (8, 2), (1, 1), (4, 4)])
def test_ranges_cover_all_numbers_of_tokens(experts: int, top: int) -> None:
    for found in (choose_ranges(experts=experts, top=top), choose_shared()):
        assert found[0].first == 0
        assert found[-1].last is None
        for before, after in itertools.pairwise(found):
            assert before.last is not None
            assert after.first == before.last + 1
    (only,) = choose_ranges(experts=experts, top=top, least=1, most=1)
    assert only == Range(1, 1, "one", 1)
    assert all(
        r.last * top <= MOST_ALIKE
        for r in choose_ranges(experts=experts, top=top)
        if r.find == "alike" and r.last is not None
    )


def test_symbolic_tokens_choose_when_they_are_known() -> None:
    func, _, op = Mixture(shared=8).op(4)
    tokens = symbol("T")
    for value, shape in (
        (op.x, (tokens, 40)),
        (op.indices, (tokens, 2)),
        (op.weights, (tokens, 2)),
    ):
        value.type = value.tensor.with_shape(shape)
    op.y.type = op.infer()
    launches = lower(op, LayoutMap(func), "cuda")
    assert isinstance(launches, list)
    words = [x.form.words for x in launches if x.form and x.form.part.startswith("experts")]
    assert words[0] == "one pair to a block"
    assert launches[-1].when == (tokens, 65, None)
    firsts = [x.when[1:] for x in launches if x.form and "' down" in x.form.part and x.when]
    assert firsts[0] == (0, 1)
    assert {type(x) for x in launches} == {Launch}


def test_a_shared_branch_like_an_expert_has_no_launches_of_its_own() -> None:
    for shared, count in ((24, 3), (17, 5)):
        launches = lowered(Mixture(shared=shared), 4)
        assert isinstance(launches, list)
        assert len(launches) == count


def test_few_tokens_go_through_a_shared_branch_at_the_same_time() -> None:
    for tokens, lanes in (
        (4, ["aside"] * 2 + ["beside"] * 2 + ["main"]),
        (MOST_ASIDE, ["aside"] * 2 + ["beside"] * 3 + ["main"]),
        (MOST_ASIDE + 1, ["main"] * 6),
    ):
        launches = lowered(Mixture(shared=17), tokens)
        assert isinstance(launches, list)
        assert [x.lane for x in launches] == lanes
        assert all(other.lane == x.lane for x in launches for other in x.others)


@pytest.mark.parametrize("find", [ALIKE, SORTED], ids=["alike", "sorted"])
def test_a_branch_aside_may_run_before_or_after_or_in_between(find: Range) -> None:
    """What it reads and writes in scratch is its own, so streams need not wait for one another."""

    def parts(launches: list[Launch]) -> tuple[list[Launch], list[Launch], list[Launch]]:
        aside, beside, main = (
            [x for x in launches if x.lane == lane] for lane in ("aside", "beside", "main")
        )
        return aside, beside, main

    def after(launches: list[Launch]) -> list[Launch]:
        aside, beside, main = parts(launches)
        return [*beside, *aside, *main]

    def between(launches: list[Launch]) -> list[Launch]:
        aside, beside, main = parts(launches)
        pairs = itertools.zip_longest(beside, aside)
        return [*(x for pair in pairs for x in pair if x is not None), *main]

    mixture, tokens = Mixture(shared=17, shared_gate="f32"), 5
    func, _, _ = mixture.op(tokens)
    arguments = mixture.arguments(func, tokens)
    with ranges(find):
        want = run(mixture, tokens, arguments)
        for order in (after, between):
            assert torch.equal(run(mixture, tokens, arguments, order), want)


def test_operands_that_are_not_rows_are_copied() -> None:
    func, _, op = Mixture().op(4)
    columns = Layout(0, (1, 4))
    layouts = LayoutMap(func, {op.x: columns, op.indices: columns})
    assert lower(op, layouts, "cuda") == NeedDense((op.indices, op.x))


def test_no_kernel_of_forms_that_it_does_not_have() -> None:
    outcome = lowered(Mixture(form="apart", interleaved=True), 3)
    assert isinstance(outcome, Refusal)
    assert "gate and up apart, yet interleaved" in outcome.reason


def test_no_kernel_of_unequal_types() -> None:
    func, _, op = Mixture().op(3)
    op.up[0].type = op.up[0].tensor.with_dtype(DType.BF16)
    outcome = lower(op, LayoutMap(func), "cuda")
    assert isinstance(outcome, Refusal)
    assert "with weight bf16" in outcome.reason


def test_no_kernel_of_matrices_that_lie_anyhow() -> None:
    func, _, op = Mixture().op(3)
    every_second = Layout(0, (2 * 48 * 40, 80, 2))
    outcome = lower(op, LayoutMap(func, {op.up[0]: every_second}), "cuda")
    assert isinstance(outcome, Refusal)
    assert "does not lie row by row" in outcome.reason


RELEASED: dict[str, dict[str, Any]] = {
    "qwen3-moe": {"experts": 128, "top": 8, "hidden": 2048, "inner": 768, "out": 2048},
    "deepseek-v3": {
        "experts": 256,
        "top": 8,
        "hidden": 7168,
        "inner": 2048,
        "out": 7168,
        "shared": 2048,
    },
    "gpt-oss": {
        "experts": 32,
        "top": 4,
        "hidden": 2880,
        "inner": 2880,
        "out": 2880,
        "bias": True,
        "interleaved": True,
        "transposed": True,
        "body": clamped_swiglu,
    },
}


def launches_of(name: str, tokens: int, dtype: str = "bf16") -> list[Launch]:
    mixture = Mixture(dtype=dtype, route=dtype, gap=0, **RELEASED[name])
    found = lowered(mixture, tokens)
    assert isinstance(found, list)
    return found


def copies(binary: Binary, folder: Path) -> Counter[str]:
    """The widths of a binary's loads: those into registers, and those into shared memory."""
    knobs: Any = importlib.import_module("triton.knobs")
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(binary.cubin)
    tool = [knobs.nvidia.nvdisasm.path, "-c", str(cubin)]
    code = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"\b(LDG|LDGSTS)\.(\S*)", code)
    return Counter(f"{name} {128 if '128' in rest.split('.') else 64}" for name, rest in found)


SIZES = [("qwen3-moe", 8)]
SLOW_SIZES = [(n, t) for n in RELEASED for t in (1, 8, 300, 1400, 8192) if (n, t) not in SIZES]


@pytest.mark.parametrize(
    ("name", "tokens"),
    [*SIZES, *(pytest.param(*s, marks=pytest.mark.slow) for s in SLOW_SIZES)],
)
def test_binaries_of_released_sizes_read_16_bytes_at_once(
    name: str, tokens: int, binary_cache: Cache, tmp_path: Path
) -> None:
    """No spills, on any target; one row streams its matrices, more go through shared memory."""
    for target, made in binaries_of(launches_of(name, tokens), binary_cache):
        kernel = made.launch.kernel
        if isinstance(kernel, ExpertsProductKernel):
            found = copies(made.binary, tmp_path)
            wide = "LDG 128" if kernel.single else "LDGSTS 128"
            assert found[wide] >= 1 + kernel.both, target.name
            assert not found["LDGSTS 64"], target.name


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 8, 300, 1400, 8192])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_binaries_of_other_types(dtype: str, tokens: int, binary_cache: Cache) -> None:
    assert binaries_of(launches_of("qwen3-moe", tokens, dtype), binary_cache)
