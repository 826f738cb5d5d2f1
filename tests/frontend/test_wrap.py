from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from fuseline.frontend.wrap import wrap
from tests.frontend.helpers import Recording, randn, record, seed


class Net(nn.Module):
    """A module with a parameter, a buffer, a float and a method besides ``forward``."""

    def __init__(self, width: int = 5, eps: float = 1e-5) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.register_buffer("scale", torch.full((width,), 2.0))
        self.eps = eps

    def forward(self, x: Tensor, *, twice: bool = False) -> Tensor:
        y = self.linear(x) * self.get_buffer("scale")
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return y + y if twice else y

    def steps(self, x: Tensor, count: int) -> Tensor:
        for _ in range(count):
            x = self(x)
        return x


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def net() -> Net:
    seed(0)
    return Net()


def test_a_compiled_module_gives_the_modules_values(net: Net) -> None:
    compiled, recording = record(net)
    for rows in (3, 4, 7):
        assert torch.equal(compiled(randn(rows, 5)), net(randn(rows, 5)))
    assert torch.equal(compiled(randn(3, 5), twice=True), net(randn(3, 5), twice=True))
    assert len(recording.captured) == 2
    assert compiled.report().stats["graphs"] == 2


def test_a_compiled_module_is_a_second_view_of_the_same_module(net: Net) -> None:
    compiled, _ = record(net)
    assert isinstance(compiled, Net)
    assert type(compiled).__name__ == "Net"
    assert compiled.linear is net.linear
    assert list(compiled.state_dict()) == list(net.state_dict())
    x = randn(3, 5)
    before = compiled(x)
    net.load_state_dict({k: v * 3 for k, v in net.state_dict().items()})
    assert not torch.equal(compiled(x), before)
    assert torch.equal(compiled(x), net(x))


def test_the_original_stays_as_it_was(net: Net) -> None:
    compiled, recording = record(net)
    net(randn(3, 5))
    assert not recording.captured
    assert "report" not in vars(net)
    compiled(randn(3, 5))
    assert len(recording.captured) == 1


def test_methods_of_a_compiled_module_call_it_compiled(net: Net) -> None:
    compiled, recording = record(net)
    assert torch.equal(compiled.steps(randn(3, 5), 4), net.steps(randn(3, 5), 4))
    assert len(recording.captured) == 1


def add_one(module: nn.Module, args: Any, out: Any) -> Any:
    return out + 1


def test_hooks_run(net: Net) -> None:
    compiled, _ = record(net)
    net.register_forward_hook(add_one)
    assert torch.equal(compiled(randn(3, 5)), net(randn(3, 5)))


def test_changed_settings_compile_again(net: Net) -> None:
    compiled, recording = record(net)
    compiled(randn(3, 5))
    net.eps = 0.5
    assert torch.equal(compiled(randn(3, 5)), net(randn(3, 5)))
    assert len(recording.captured) == 2


def test_a_copy_has_weights_and_code_of_its_own(net: Net) -> None:
    compiled, _ = record(net)
    x = randn(3, 5)
    before = compiled(x)
    twin = copy.deepcopy(compiled)
    twin.linear.weight.zero_()
    assert torch.equal(compiled(x), before)
    assert not torch.equal(twin(x), before)
    assert twin.report().stats["graphs"] == 1


def test_a_pickled_module_comes_back_plain(net: Net) -> None:
    compiled, _ = record(net)
    back = pickle.loads(pickle.dumps(compiled))
    assert type(back) is Net
    assert torch.equal(back(randn(3, 5)), net(randn(3, 5)))


def test_a_compiled_module_can_be_saved(net: Net, tmp_path: Path) -> None:
    compiled, _ = record(net)
    torch.save(compiled.state_dict(), tmp_path / "weights.pt")
    compiled.load_state_dict(torch.load(tmp_path / "weights.pt"))


def test_compiling_twice_compiles_once(net: Net) -> None:
    compiled, _ = record(net)
    again = Recording()
    twice = wrap(compiled, lambda: again)
    assert torch.equal(twice(randn(3, 5)), net(randn(3, 5)))
    assert len(again.captured) == 1


def test_models_of_one_class_do_not_use_up_one_anothers_recompilations() -> None:
    torch.compiler.reset()
    for width in range(3, 14):
        recording = Recording(dynamic=False)
        compiled = wrap(Net(width), lambda recording=recording: recording)
        compiled(randn(2, width))
        assert len(recording.captured) == 1, f"model {width} ran without being compiled"


def test_a_decorated_class_compiles_each_instance() -> None:
    torch.compiler.reset()
    made: list[Recording] = []

    def make() -> Recording:
        made.append(Recording())
        return made[-1]

    decorated: Any = wrap(Net, make)
    one: Any = decorated(5)
    other: Any = decorated(7, eps=0.1)
    assert decorated.__name__ == "Net"
    assert one(randn(3, 5)).shape == (3, 5)
    assert one.report().stats["graphs"] == 1
    plain = Net(7, eps=0.1)
    plain.load_state_dict(other.state_dict())
    assert torch.equal(other(randn(3, 7)), plain(randn(3, 7)))
    assert [len(r.captured) for r in made] == [1, 1]
    assert isinstance(one, Net)


def test_a_subclass_of_a_decorated_class_compiles_itself() -> None:
    decorated: Any = wrap(Net, Recording)

    class Doubled(decorated):  # a user's own class
        def forward(self, x: Tensor) -> Any:
            return Net.forward(cast("Any", self), x) * 2

    seed(0)
    doubled = Doubled()
    seed(0)
    assert torch.equal(doubled(randn(3, 5)), Net()(randn(3, 5)) * 2)


def test_a_function_keeps_its_name_and_takes_all_arguments() -> None:
    def scaled(x: Tensor, by: float = 2.0, *more: Tensor, plus: float = 0.0) -> Tensor:
        """Scale."""
        return sum((m * by for m in more), x * by) + plus

    compiled, _ = record(scaled)
    x = randn(3, 5)
    assert compiled.__name__ == "scaled"
    assert compiled.__doc__ == "Scale."
    assert torch.equal(compiled(x), scaled(x))
    assert torch.equal(compiled(x, 3.0, x, x, plus=1.5), scaled(x, 3.0, x, x, plus=1.5))


def test_a_function_in_a_class_is_a_method() -> None:
    torch.compiler.reset()
    recording = Recording()

    class Scaler:
        def __init__(self, by: float) -> None:
            self.by = by

        def apply(self, x: Tensor) -> Tensor:
            return x.softmax(-1) * self.by

        compiled = wrap(apply, lambda: recording)

    scaler = Scaler(3.0)
    assert torch.equal(scaler.compiled(randn(3, 5)), scaler.apply(randn(3, 5)))
    assert Scaler.compiled.report().stats["graphs"] == 1


def test_other_things_cannot_be_compiled() -> None:
    for thing in (3, "model", dict):
        with pytest.raises(TypeError, match="cannot compile"):
            wrap(thing, Recording)


def test_a_returned_view_starts_where_the_input_does() -> None:
    """The next call's input may lie elsewhere in its storage."""

    def rest(x: Tensor) -> tuple[Tensor, Tensor]:
        return x[1:], x.sum()

    compiled = wrap(rest, Recording)
    base = torch.arange(20.0).reshape(10, 2)
    for part in (base[:5], base[5:], base[2:7]):
        tail, _ = compiled(part)
        assert torch.equal(tail, part[1:])
        assert tail.data_ptr() == part[1:].data_ptr()
