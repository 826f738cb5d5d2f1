from __future__ import annotations

import importlib
import logging
import threading
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from fuseline import _torch
from fuseline.frontend.backend import WITH_GRADIENTS, Backend
from fuseline.report import LEFT, KernelRecord
from tests.frontend.helpers import Recording, one, randn, record, seed


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(1, 2, 5))
        self.eps = 1e-3

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def sums_of_rows(x: Tensor, w: Tensor) -> Tensor:
    def one_row(row: Tensor) -> Tensor:
        return (row * 2 + w).cumsum(0)

    return cast("Tensor", cast("Any", torch.vmap)(one_row)(x))


def plain(report: Any) -> list[str]:
    return [str(v) for k, v in report.stats.items() if k.startswith("plain ATen")]


def test_with_gradients_the_graph_runs_as_it_is_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Norm()
    compiled, recording = record(model)
    with caplog.at_level(logging.WARNING, logger="fuseline"):
        for rows in (3, 4):
            compiled(randn(rows, 5)).sum().backward()
    mine = model.weight.grad
    model.weight.grad = None
    for rows in (3, 4):
        model(randn(rows, 5)).sum().backward()
    assert mine is not None
    assert model.weight.grad is not None
    torch.testing.assert_close(mine, model.weight.grad)
    assert not recording.captured
    assert plain(compiled.report()) == [WITH_GRADIENTS]
    assert caplog.text.count("gradients are on") == 1


@pytest.mark.filterwarnings("ignore")
def test_the_report_says_what_runs_eagerly_past_the_limit_on_recompilations() -> None:
    """Dynamo tells only its log, once; calls that fit earlier code still run it."""
    compiled, recording = record(Norm(), dynamic=False)
    config: Any = importlib.import_module("torch._dynamo.config")
    with torch.no_grad(), config.patch(recompile_limit=2):
        for rows in (3, 4):
            compiled(randn(rows, 5))
        assert not any("refused" in name for name in compiled.report().stats)
        for rows in (5, 6, 3, 4, 5):
            torch.testing.assert_close(compiled(randn(rows, 5)), Norm()(randn(rows, 5)))
    assert len(recording.captured) == 2
    stats = compiled.report().stats
    assert stats["recompilations refused, see torch._dynamo.config.recompile_limit"] == 1
    assert stats["calls run eagerly since then"] == 3
    assert "calls run eagerly since then: 3" in compiled.report().summary()


@pytest.mark.filterwarnings("ignore")
def test_eager_calls_are_counted_in_each_thread() -> None:
    compiled, _ = record(Norm(), dynamic=False)
    config: Any = importlib.import_module("torch._dynamo.config")
    x, other = randn(3, 5), randn(4, 5)

    def call() -> None:
        with torch.no_grad():
            for _ in range(100):
                compiled(x)

    with torch.no_grad(), config.patch(recompile_limit=1):
        compiled(x)
        compiled(other)
        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert compiled.report().stats["calls run eagerly since then"] == 1


@pytest.mark.parametrize("switch", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("outside", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_forward_that_turns_gradients_off_is_compiled(switch: Any, outside: Any) -> None:
    class Decorated(Norm):
        @switch()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    compiled, recording = record(Decorated())
    x = randn(3, 5)
    with outside():
        found = compiled(x.requires_grad_(outside is torch.enable_grad))
        assert not found.requires_grad
        torch.testing.assert_close(found, Norm()(x).detach())
    assert len(recording.captured) == 1
    assert not plain(compiled.report())


def test_gradients_that_are_off_for_a_part_are_not_compiled() -> None:
    def program(x: Tensor, weight: Tensor) -> Any:
        with torch.no_grad():
            scale = x.abs().sum()
        return x * weight * scale

    made, recording = record(program)
    compiled: Any = made
    weight, other = (randn(5).requires_grad_() for _ in range(2))
    compiled(randn(3, 5), weight).sum().backward()
    program(randn(3, 5), other).sum().backward()
    torch.testing.assert_close(weight.grad, other.grad)
    assert not recording.captured


def test_without_gradients_the_same_model_is_compiled() -> None:
    compiled, recording = record(Norm())
    compiled(randn(3, 5))
    with torch.no_grad():
        compiled(randn(3, 5))
    assert len(recording.captured) == 1
    with torch.inference_mode():
        assert not compiled(randn(3, 5)).requires_grad


def test_gradients_on_but_unwanted_is_compiled() -> None:
    compiled, recording = record(Norm().requires_grad_(False))
    compiled(randn(3, 5))
    assert len(recording.captured) == 1


def test_graph_breaks_are_counted_with_their_reason() -> None:
    def program(x: Tensor) -> Tensor:
        y = x.sin()
        if y.sum() > 0:
            return y * 2
        return y.cos()

    compiled, recording = record(program)
    for sign in (1.0, -1.0):
        x = randn(4, 4).abs() * sign
        assert torch.equal(compiled(x), program(x))
    stats = compiled.report().stats
    assert stats["graph breaks"] == 1
    assert [k for k in stats if k.startswith("graph break: ")]
    assert stats["graphs"] == len(recording.captured) == 3
    assert LEFT not in stats


def test_functions_that_torch_leaves_as_they_are_are_counted() -> None:
    """Where a graph would end within a loop; the sum is not compiled either."""

    def inner(x: Tensor) -> Tensor:
        return x * 2

    def program(x: Tensor) -> Tensor:
        for _ in range(3):
            x = inner(x)
            cast("Any", torch)._dynamo.graph_break()
        return x.sum()

    with torch.no_grad():
        compiled, recording = record(program)
        for rows in (3, 3, 5):
            compiled(randn(rows, 4))
    report = compiled.report()
    assert report.stats[LEFT] == 1
    assert recording.captured
    assert "everything runs in eager" in report.summary()  # as no kernels are of this recording
    kernel = KernelRecord("k", "rows", "linear", 1, "")
    said = replace(report, kernels=(kernel,)).summary()
    assert "graph breaks: 1, and what is between graphs and 1 function whole run in eager" in said


def test_graph_breaks_of_another_program_are_not_ours() -> None:
    def breaks(x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x

    compiled, _ = record(one(lambda x: x + 1))
    _torch.optimize(breaks, "eager", dynamic=None)(randn(4, 4))
    compiled(randn(4, 4))
    assert compiled.report().stats["graph breaks"] == 0


def test_floats_stay_constants_under_stock_torch_compile() -> None:
    """There the setting is not ours, and an epsilon arrives as an input."""
    torch.compiler.reset()
    recording = Recording()
    backend = Backend(recording.step, "norm")
    model = Norm()
    compiled = _torch.optimize(model, backend, dynamic=True)
    with torch.no_grad():
        for eps in (1e-3, 0.25, 1e-3):
            model.eps = eps
            assert torch.equal(compiled(randn(3, 5)), model(randn(3, 5)))
    found = {op.attributes["value"] for f in recording.funcs for op in f.ops if op.name == "full"}
    assert {1e-3, 0.25} <= found
    assert not plain(backend.report())


def test_the_dynamo_settings_of_others_are_left_alone() -> None:
    config: Any = vars(torch)["_dynamo"].config
    before = config.specialize_float
    compiled, _ = record(Norm())
    with torch.no_grad():
        compiled(randn(3, 5))
    assert config.specialize_float == before


def test_autocast_inside_the_program_is_left_to_aten() -> None:
    def program(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return x @ x.t()

    compiled, recording = record(program)
    x = randn(4, 4)
    assert torch.equal(compiled(x), program(x))
    assert all(c.road == "aot" for c in recording.captured)


def test_a_negative_integer_is_left_to_aten() -> None:
    def program(x: Tensor, n: int) -> Tensor:
        return x + torch.full((1,), n)

    compiled, _ = record(program)
    for n in (3, 5, -7):
        assert torch.equal(compiled(randn(4, 4), n), program(randn(4, 4), n))


def test_sizes_that_depend_on_data_still_run() -> None:
    def program(x: Tensor) -> Tensor:
        return x[x > 0].sum()

    compiled, _ = record(program)
    assert torch.equal(compiled(randn(4, 4)), program(randn(4, 4)))


def test_random_numbers_follow_the_generator() -> None:
    compiled, _ = record(one(lambda x: x + torch.rand(4)))
    seed(3)
    found = compiled(randn(4, 4))
    seed(3)
    assert torch.equal(found, randn(4, 4) + torch.rand(4))


def test_vmap_is_captured() -> None:
    compiled, recording = record(sums_of_rows, dynamic=True)
    for rows in (3, 4):
        x, w = randn(rows, 5), randn(5)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, w), ((x * 2) + w).cumsum(1))
    assert len(recording.captured) == 1
    assert not plain(compiled.report())


def test_a_graph_that_cannot_be_traced_again_leaves_no_transform_behind() -> None:
    """torch would hold that the frame was compiled inside of the transform, and refuse it."""
    functorch = importlib.import_module("torch._C._functorch")

    def enter(x: Tensor) -> Tensor:
        functorch._vmap_increment_nesting(3, "error")
        raise ValueError("odd")

    module = torch.fx.GraphModule(nn.Module(), torch.fx.Graph())
    graph = module.graph
    graph.output((graph.call_function(enter, (graph.placeholder("x"),)),))
    module.recompile()
    with pytest.raises(ValueError, match="odd"):
        _torch.functional_graph(module, [randn(3)])
    assert functorch.peek_interpreter_stack() is None


def test_a_graph_that_is_given_no_tensor() -> None:
    """Behind a break only the length is left of x."""

    def program(x: Tensor) -> Tensor:
        length = x.shape[0]
        cast("Any", torch)._dynamo.graph_break()
        return torch.where(torch.arange(length) > 2, torch.tensor(0.5), torch.tensor(-3.0))

    compiled, recording = record(program, dynamic=True)
    with torch.no_grad():
        for rows in (5, 7):
            assert torch.equal(compiled(randn(rows, 5)), program(randn(rows, 5)))
    assert recording.captured
