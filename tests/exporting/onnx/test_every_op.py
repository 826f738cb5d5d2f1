"""Every op that has a form in ONNX: random cases, by runtimes of ONNX and read back in."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from torch import Tensor

import fuseline.exporting.onnx.model  # fills the registry
from fuseline.exporting.onnx.registry import EMITTERS
from fuseline.frontend.onnx import import_onnx
from fuseline.ir.core import OPS, Func
from fuseline.ir.evaluate import evaluate
from fuseline.ir.ops.reduce import TopK
from fuseline.ir.text import print_func
from tests.exporting.onnx.running import by_onnxruntime, by_reference, onnx_of
from tests.ir.op_cases import Case, op_cases

assert fuseline.exporting.onnx.model


def cases(count: int) -> settings:
    """So many random cases, the same in every run."""
    return settings(
        max_examples=count, derandomize=True, deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )  # fmt: skip


MADE_BEHIND = {
    "gated_linear", "index_write", "linear_add", "merged_linear", "merged_rows",
    "mla_projection_write", "norm_linear", "pointwise", "pointwise_write", "qk_norm_rope_write",
    "shift_write", "slice_write", "wide_linear",
}  # fmt: skip
"""Ops that only passes make which a program does not go through on its way to ONNX."""

NOT_READ = ("grouped_matmul",)
"""Ops whose slices end where data say, which the importer does not read."""

NAMES = sorted(op.name for op in EMITTERS if op.name not in ("aten.call", "read", "write"))
ERROR = {
    torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2,
}  # fmt: skip


def test_every_op_has_a_form_or_is_made_behind() -> None:
    assert set(OPS) - {op.name for op in EMITTERS} == MADE_BEHIND


@pytest.mark.parametrize("name", NAMES)
def test_as_its_reference(name: str) -> None:
    check(name, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_as_its_reference_in_many_cases(name: str) -> None:
    check(name, 40)


def check(name: str, count: int) -> None:
    """What a runtime, and the importer, make of random cases of an op."""

    @cases(count)
    @given(op_cases(name))
    def run(case: Case) -> None:
        _in_order(case.func)
        assume(not (name == "route" and _any_will_do(case.func.ops[0])))
        tensors = [a for a in case.arguments if isinstance(a, Tensor)]
        kinds = [t.dtype for t in tensors]
        if name == "route":  # whose scores are of another type
            kinds.append(cast("Any", case.func.ops[0]).dtype.torch)
        wanted = evaluate(case.func, [t.clone() for t in tensors])
        for dense in (False, True) if name in ("experts", "moe") else (False,):
            model = onnx_of(case.func, dense=dense)
            names = [arg.hint for arg in case.func.args]
            if name not in NOT_READ:
                back = import_onnx(model).run(dict(zip(names, tensors, strict=True)))
                close(list(back.values()), _told_apart(case, list(back.values()), wanted), kinds)
            if "bf16" not in print_func(case.func):  # of which these runtimes know nothing
                found = by_onnxruntime(model, tensors)
                found = by_reference(model, tensors) if found is None else found
                close(found, _told_apart(case, found, wanted), kinds)

    run()


def _in_order(func: Func) -> None:
    """Have the largest come first: otherwise their order is anybody's."""
    (op,) = func.ops
    if "ordered" in op.attributes:
        again = op.clone({}, ordered=True)
        func.rebuild([again], again.results)


def _any_will_do(op: Any) -> bool:
    """Whether a router chooses among experts of the groups that it left out, all alike."""
    if op.groups == 1:
        return False
    few = op.k > op.top_groups * op.logits.shape[-1] // op.groups
    return few or (op.group_fill > float("-inf") and (op.score == "none" or op.correction))


def _told_apart(case: Case, found: list[Tensor], wanted: list[Tensor]) -> list[Tensor]:
    """What is wanted of a top-k: of equal elements those that were chosen."""
    (op,) = case.func.ops
    if not isinstance(op, TopK):
        return wanted
    x = cast("Tensor", case.arguments[0])
    assert torch.equal(x.gather(op.axis, found[1]), wanted[0])
    return [wanted[0], found[1]]


def close(found: list[Tensor], wanted: list[Tensor], kinds: list[torch.dtype]) -> None:
    """As close as the narrowest type in sight: runtimes leave out roundings between two casts."""
    narrowest = max(ERROR.get(kind, 0.0) for kind in (*kinds, *(t.dtype for t in wanted)))
    for got, want in zip(found, wanted, strict=True):
        assert got.dtype is want.dtype
        tolerance = narrowest if want.dtype.is_floating_point else 0.0
        finite = want[want.isfinite()].double().abs()
        size = float(finite.max()) if finite.numel() else 0.0
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance * size, equal_nan=True)
