"""Modules named in Config(eager=...) run outside the compiled graphs, and are left as they were."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from fuseline import FuselineError
from fuseline.frontend.outside import Outside
from tests.frontend.helpers import ops, randn, record


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Linear(5, 5)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) + self.mlp(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sigmoid(layer(x))
        return x


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_a_named_module_is_in_no_graph() -> None:
    cast("Any", torch).manual_seed(0)
    net, x = Net(), randn(3, 5)
    compiled, recording = record(net, eager=("layers.1.mlp",))
    assert torch.equal(compiled(x), net(x))
    assert [ops(func).count("linear") for func in recording.funcs].count(1) == 1
    assert len(recording.funcs) > 1


def test_a_pattern_names_several() -> None:
    cast("Any", torch).manual_seed(0)
    net, x = Net(), randn(3, 5)
    compiled, recording = record(net, eager=("layers.*.mlp",))
    assert torch.equal(compiled(x), net(x))
    assert not any("linear" in ops(func) for func in recording.funcs)
    assert any("tanh" in ops(func) for func in recording.funcs)


def test_the_model_is_left_as_it_was() -> None:
    net, x = Net(), randn(3, 5)
    compiled, _ = record(net, eager=("layers.0",))
    compiled(x)
    assert not any("forward" in vars(module) for module in net.modules())
    twin = copy.deepcopy(net).double()
    assert twin(x.double()).dtype == torch.float64


def test_a_forward_that_a_module_had_of_its_own_comes_back() -> None:
    net = Net()

    def own(x: Tensor) -> Tensor:
        return x + 1

    vars(net.layers[0])["forward"] = own
    with Outside(net, ["layers.0"]):
        assert net.layers[0](torch.zeros(2)).tolist() == [1, 1]
        assert vars(net.layers[0])["forward"] is not own
    assert vars(net.layers[0])["forward"] is own


def test_calls_may_overlap() -> None:
    net = Net()
    outside = Outside(net, ["layers.0"])
    with outside:
        thread = threading.Thread(target=lambda: outside.__enter__() or outside.__exit__())
        thread.start()
        thread.join()
        assert "forward" in vars(net.layers[0])
    assert "forward" not in vars(net.layers[0])


@pytest.mark.parametrize(
    ("target", "said"),
    [(Net(), "layers.0.mlp or layers.1.mlp"), (nn.Linear(3, 5), "a module with submodules")],
)
def test_an_unknown_name_is_refused(target: nn.Module, said: str) -> None:
    with pytest.raises(FuselineError, match=f"FL0105 unknown module layers.0.mpl .*{said}"):
        Outside(target, ["layers.0.mpl"])
