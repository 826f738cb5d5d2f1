"""Forms saved by one program and used by another, as a second process would."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuseline._torch import precompile
from fuseline._torch.identities import CannotSaveError, identity_of
from fuseline.frontend.captured import (
    FromGraph,
    FromInput,
    FromNothing,
    FromSymbols,
    Owed,
    Symbol,
)
from fuseline.frontend.warm import ATTEMPTS, factors_of, owed_from, owed_to
from fuseline.frontend.wrap import wrap
from fuseline.ir.types import symbol
from tests.frontend.helpers import Recording, one, randn, seed

pytestmark = pytest.mark.skipif(
    not precompile.available(), reason="this torch cannot serialise guards"
)


class Memory:
    """Keeps forms in a list."""

    def __init__(self) -> None:
        self.forms: list[tuple[str, bytes, str]] = []
        self.names: list[str] = []

    def load(self, factors: Mapping[str, Any]) -> Iterable[tuple[bytes, str]]:
        return [(t, g) for key, t, g in self.forms if key == repr(dict(factors))]

    def save(self, factors: Mapping[str, Any], form: str, trace: bytes, graphs: str) -> None:
        self.names.append(form)
        self.forms.append((repr(dict(factors)), trace, graphs))


def helper(x: Tensor) -> Tensor:
    """Inlined by the model: another process may have another one."""
    return x * 2


def other_helper(x: Tensor) -> Tensor:
    return x * 3


class Net(nn.Module):
    activation = staticmethod(helper)

    def __init__(self, width: int = 5, eps: float = 1e-5) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.eps = eps
        self.limits = {"low": -1.0}

    def forward(self, x: Tensor, cache: Tensor | None = None) -> Any:
        y = F.silu(self.linear(x)).clamp(min=self.limits["low"])
        y = self.activation(y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps))
        if cache is None:
            return y
        cache.add_(y)
        return y, cache[1:], x.shape[0] + 1


class Calls(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", torch.ops.aten.relu(x - 1))


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    torch.compiler.reset()
    with torch.no_grad():
        yield


def net(**options: Any) -> Net:
    seed(0)
    return Net(**options)


def start(target: Any, store: Memory, **options: Any) -> tuple[Any, Recording]:
    """A program as a new process would make it."""
    recording = Recording(forms=store, **options)
    return wrap(target, lambda: recording), recording


def test_a_second_start_traces_nothing_and_gives_the_same() -> None:
    store = Memory()
    first, cold = start(net(), store)
    expected = [first(randn(rows, 5)) for rows in (3, 4)]
    second, warm = start(net(), store)
    assert all(
        torch.equal(second(randn(rows, 5)), e) for rows, e in zip((3, 4), expected, strict=True)
    )
    assert len(cold.captured) == 1
    assert (len(warm.captured), warm.restored) == (0, 1)
    stats = second.report().stats
    assert (stats["graphs"], stats["graphs from the cache"]) == (0, 1)


def test_written_inputs_views_and_integers_come_back() -> None:
    store = Memory()
    start(net(), store)[0](randn(4, 5), randn(4, 5, seed=1))
    compiled, warm = start(net(), store)
    mine, theirs = randn(6, 5, seed=2), randn(6, 5, seed=2)
    y, tail, number = compiled(randn(6, 5), mine)
    expected = net()(randn(6, 5), theirs)
    assert not warm.captured
    assert torch.equal(y, expected[0])
    assert torch.equal(mine, theirs)
    assert tail.data_ptr() == mine[1:].data_ptr()
    assert number == 7


def test_operators_are_known_by_name_and_schema() -> None:
    """As transformers calls its grouped product; Dynamo guards on the operator's identity."""
    store = Memory()
    start(Calls(), store)[0](randn(3, 5))
    compiled, warm = start(Calls(), store)
    assert torch.equal(compiled(randn(3, 5)), torch.relu(randn(3, 5) - 1))
    assert not warm.captured
    relu, silu = (identity_of(getattr(torch.ops.aten, n)) for n in ("relu", "silu"))
    assert relu[:2] == ("operator", "aten.relu")
    assert relu != silu


def test_other_weights_are_used() -> None:
    store = Memory()
    start(net(), store)[0](randn(3, 5))
    model = net()
    model.linear.weight.mul_(3)
    compiled, warm = start(model, store)
    assert torch.equal(compiled(randn(3, 5)), model(randn(3, 5)))
    assert not warm.captured


def test_every_form_comes_back_and_new_ones_are_added() -> None:
    store = Memory()
    first, _ = start(net(), store)
    first(randn(3, 5))
    first(randn(3, 5), randn(3, 5))
    second, warm = start(net(), store)
    second(randn(3, 5))
    second(randn(3, 5), randn(3, 5))
    assert (len(warm.captured), warm.restored) == (0, 2)
    second(randn(1, 5))  # one row is compiled for itself
    assert (len(warm.captured), len(store.forms)) == (1, 3)
    third, again = start(net(), store)
    for rows in (1, 3):
        assert torch.equal(third(randn(rows, 5)), net()(randn(rows, 5)))
    assert not again.captured


def add_one(module: nn.Module, args: Any, out: Any) -> Any:
    return out + 1


CHANGES: dict[str, Callable[[Any], Any]] = {
    "float": lambda m: setattr(m, "eps", 0.5),
    "dict": lambda m: m.limits.update(low=-0.1),
    "dtype": lambda m: m.double(),
    "function": lambda m: setattr(m, "activation", other_helper),
    "hook": lambda m: m.register_forward_hook(add_one),
    "inner hook": lambda m: m.linear.register_forward_hook(add_one),
    "structure": lambda m: setattr(m, "linear", nn.Sequential(nn.Linear(5, 5), nn.Tanh())),
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_form_is_used_for_a_model_that_differs(change: str) -> None:
    store = Memory()
    start(net(), store)[0](randn(3, 5))
    model = net()
    CHANGES[change](model)
    x = randn(3, 5, dtype=next(model.parameters()).dtype)
    compiled, warm = start(model, store)
    assert torch.equal(compiled(x), model(x))
    assert len(warm.captured) == 1


def test_no_form_is_used_after_a_function_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Memory()
    start(net(), store)[0](randn(3, 5))
    monkeypatch.setattr(Net, "activation", staticmethod(other_helper))
    compiled, warm = start(net(), store)
    assert torch.equal(compiled(randn(3, 5)), net()(randn(3, 5)))
    assert len(warm.captured) == 1


def test_no_form_is_used_under_another_default_type() -> None:
    def program(x: Tensor) -> Tensor:
        return x + torch.ones(5)

    store = Memory()
    start(program, store)[0](randn(3, 5))
    torch.set_default_dtype(torch.float64)
    try:
        compiled, warm = start(program, store)
        assert compiled(randn(3, 5)).dtype == torch.float64
        assert len(warm.captured) == 1
    finally:
        torch.set_default_dtype(torch.float32)


def test_no_form_without_gradients_is_used_with_them() -> None:
    store = Memory()
    start(net(), store)[0](randn(3, 5))
    compiled, _ = start(net(), store)
    with torch.enable_grad():
        assert compiled(randn(3, 5)).requires_grad


def test_functions_come_back_too() -> None:
    store = Memory()
    assert torch.equal(start(helper, store)[0](randn(3, 5)), helper(randn(3, 5)))
    compiled, warm = start(helper, store)
    assert torch.equal(compiled(randn(4, 5)), helper(randn(4, 5)))
    assert not warm.captured


def breaks(x: Tensor) -> Tensor:
    y = x.sin()
    return y * 2 if y.sum() > 0 else y.cos()


def literal(x: Tensor) -> Tensor:
    return x * torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])


def test_no_form_is_kept_of_a_program_with_graph_breaks() -> None:
    store = Memory()
    compiled, _ = start(breaks, store)
    for sign in (1, -1):
        x = randn(3, 5).abs() * sign
        assert torch.equal(compiled(x), breaks(x))
    assert not store.forms


def test_a_program_with_gradients_keeps_no_form() -> None:
    store = Memory()
    compiled, _ = start(net(), store)
    with torch.enable_grad():
        compiled(randn(3, 5)).sum().backward()
    assert not store.forms


def test_a_literal_is_the_same_after_a_second_start() -> None:
    store = Memory()
    for _ in range(2):
        compiled, _ = start(literal, store)
        assert torch.equal(compiled(randn(3, 5)), literal(randn(3, 5)))


def test_a_damaged_form_is_passed_over() -> None:
    store = Memory()
    start(net(), store)[0](randn(3, 5))
    key, trace, graphs = store.forms[0]
    for bad in ((key, trace[:-9], graphs), (key, b"", graphs), (key, trace, graphs[:-3])):
        store.forms[:] = [bad]
        compiled, warm = start(net(), store)
        assert torch.equal(compiled(randn(3, 5)), net()(randn(3, 5)))
        assert len(warm.captured) == 1


def test_forms_that_never_fit_are_forgotten() -> None:
    store = Memory()
    start(net(), store)[0](randn(3, 5))
    model = net()
    CHANGES["function"](model)
    compiled, _ = start(model, store)
    for _ in range(ATTEMPTS + 1):
        compiled(randn(3, 5))
    assert torch.equal(compiled(randn(3, 5)), model(randn(3, 5)))


def test_a_saved_form_names_no_path() -> None:
    store = Memory()
    start(net(), store)[0](randn(3, 5))
    _, trace, graphs = store.forms[0]
    for text in (b"/site-packages/", b"/tests/frontend", b"/fuseline/"):
        assert text not in trace
        assert text.decode() not in graphs


def test_programs_are_told_apart_before_they_are_traced() -> None:
    assert factors_of(net()) == factors_of(net())
    assert factors_of(net()) != factors_of(net(width=6))
    assert factors_of(helper) != factors_of(other_helper)
    assert factors_of(3) is None


def test_programs_have_the_name_of_their_class_or_function() -> None:
    """The cache lists them by it, and compares those that share it."""
    of_module, of_function = factors_of(Net()), factors_of(helper)
    assert of_module is not None
    assert of_function is not None
    assert (of_module["name"], of_function["name"]) == (f"{Net.__module__}.Net", "helper")


def test_identities_are_names_and_digests() -> None:
    assert identity_of(torch) == ("module", "torch")
    assert identity_of(Net) == ("class", Net.__module__, "Net")
    assert identity_of(helper) != identity_of(other_helper)
    assert identity_of(None) == ("constant", "None")
    first, second = one(lambda x: x + 1), one(lambda x: x + 2)
    assert identity_of(first) != identity_of(second)
    with pytest.raises(CannotSaveError, match="dict"):
        identity_of({})


def test_no_identity_of_an_operator_that_is_traced_into() -> None:
    """Its code is in the trace, and another process may register other code under the name."""
    library = cast("Any", torch.library).Library("fuseline_tests", "FRAGMENT")
    library.define("inside(Tensor x) -> Tensor")
    library.impl("inside", helper, "CompositeImplicitAutograd")
    library.define("whole(Tensor x) -> Tensor")
    library.impl("whole", helper, "CPU")
    operators = torch.ops.fuseline_tests
    with pytest.raises(precompile.CannotSaveError, match="fuseline_tests.inside"):
        identity_of(operators.inside)
    assert identity_of(operators.whole)[:2] == ("operator", "fuseline_tests.whole")


def test_what_is_owed_is_plain_data() -> None:
    size = symbol("s0")
    returns = (
        FromGraph(1),
        FromInput(2, (size, 4), (4, 1), size * 4),
        FromSymbols(size + 1),
        FromNothing(None),
        FromNothing(2.5),
    )
    owed = Owed(returns, (Symbol("s0", 2, None, (0, 1)), Symbol("s1", 0, 9, (3, None))))
    assert owed_from(owed_to(owed)) == owed


def test_a_form_that_cannot_be_restored_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not be in force before it can run."""
    store = Memory()
    start(net(), store)[0](randn(3, 5))

    def fails(self: Recording, saved: str) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(Recording, "restore", fails)
    compiled, warm = start(net(), store)
    assert torch.equal(compiled(randn(3, 5)), net()(randn(3, 5)))
    assert len(warm.captured) == 1


def test_the_same_form_has_the_same_name_in_every_process() -> None:
    names: list[str] = []
    for change in ("", "", "float"):
        torch.compiler.reset()
        store, model = Memory(), net()
        if change:
            CHANGES[change](model)
        start(model, store)[0](randn(3, 5))
        names += store.names
    assert names[0] == names[1] != names[2]


def test_constants_are_kept_with_what_is_owed() -> None:
    """Of any type, strides and number of elements, none included."""
    constants = (
        torch.tensor([]),
        torch.tensor(True),
        torch.arange(6, dtype=torch.int64).reshape(2, 3).t(),
        torch.randn(3, 4).bfloat16()[1:, 1],
    )
    owed = Owed((), (), constants)
    again = owed_from(json.loads(json.dumps(owed_to(owed)))).constants
    assert len(again) == len(constants)
    for found, constant in zip(again, constants, strict=True):
        assert (found.dtype, found.stride()) == (constant.dtype, constant.stride())
        assert torch.equal(found, constant)
