"""Packing keeps parameters what they are, costs no memory, and refuses what it cannot know."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fuseline.runtime.packing import is_packed, pack, pinned


class Block(nn.Module):
    """Three products of one input, and one more."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.q = nn.Linear(7, 6, dtype=dtype)
        self.k = nn.Linear(7, 3, dtype=dtype)
        self.v = nn.Linear(7, 5, dtype=dtype)
        self.o = nn.Linear(6, 7, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q(x), self.k(x), self.v(x)

    @property
    def weights(self) -> list[Tensor]:
        return [self.q.weight, self.k.weight, self.v.weight]

    @property
    def biases(self) -> list[Tensor]:
        return [self.q.bias, self.k.bias, self.v.bias]


def block(dtype: torch.dtype = torch.float32) -> Block:
    generator = torch.Generator().manual_seed(0)
    made = Block(dtype)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return made


def step(m: Block) -> None:
    """One step of gradient descent."""
    loss = torch.zeros(())
    for y in m(torch.ones(3, 7)):
        loss = loss + y.square().sum()
    for p, g in zip(m.weights, torch.autograd.grad(loss, m.weights), strict=True):
        p.data.sub_(g, alpha=0.1)


def storage_bytes(module: nn.Module) -> int:
    found = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in module.parameters()
    }
    return sum(found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pack_moves_parameters_side_by_side_and_changes_nothing_else(dtype: torch.dtype) -> None:
    m = block(dtype)
    before = {n: (p, p.detach().clone()) for n, p in m.named_parameters()}
    size = storage_bytes(m)
    assert not is_packed(m.weights)
    assert pack([m.weights, m.biases]) == ["", ""]
    assert is_packed(m.weights)
    assert is_packed(m.biases)
    assert storage_bytes(m) == size
    for name, p in m.named_parameters():
        same, value = before[name]
        assert p is same
        assert p.requires_grad
        assert p.is_leaf
        assert torch.equal(p, value)


def test_one_product_over_the_buffer_gives_all_results() -> None:
    m = block()
    pack([m.weights, m.biases])
    weight = torch.as_strided(m.q.weight, (14, 7), (7, 1))
    bias = torch.as_strided(m.q.bias, (14,), (1,))
    x = torch.randn(2, 7)
    merged = nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(merged, torch.cat(m(x), -1))


def test_pack_again_does_nothing() -> None:
    m = block()
    pack([m.weights])
    places = [p.data_ptr() for p in m.weights]
    assert pack([m.weights]) == [""]
    assert [p.data_ptr() for p in m.weights] == places


def test_part_of_a_packed_group_is_packed_but_no_other_order() -> None:
    m = block()
    pack([m.weights])
    assert is_packed(m.weights[:2])
    assert is_packed(m.weights[1:])
    assert not is_packed([m.k.weight, m.q.weight])
    (reason,) = pack([[m.k.weight, m.q.weight]])
    assert "shares its memory with 1 other tensors" in reason
    assert is_packed(m.weights)


def test_load_state_dict_writes_through() -> None:
    m, other = block(), Block()
    pack([m.weights, m.biases])
    m.load_state_dict(other.state_dict())
    assert is_packed(m.weights)
    flat = torch.as_strided(m.q.weight, (14, 7), (7, 1))
    assert torch.equal(flat, torch.cat([p.detach() for p in other.weights]))


def test_in_place_changes_are_seen_in_the_buffer() -> None:
    m = block()
    pack([m.weights])
    flat = torch.as_strided(m.q.weight.detach(), (14, 7), (7, 1))
    with torch.no_grad():
        m.k.weight.mul_(2).add_(1)
        nn.init.ones_(m.v.weight)
    assert torch.equal(flat[6:9], m.k.weight)
    assert torch.equal(flat[9:], torch.ones(5, 7))


def test_training_steps_write_to_the_buffer() -> None:
    m = block()
    pack([m.weights, m.biases])
    before = m.k.weight.detach().clone()
    step(m)
    assert is_packed(m.weights)
    assert not torch.equal(m.k.weight, before)


def test_state_dict_keeps_names_shapes_and_values(tmp_path: Path) -> None:
    m = block()
    want = copy.deepcopy(m.state_dict())
    pack([m.weights, m.biases])
    torch.save(m.state_dict(), tmp_path / "m.pt")
    got = torch.load(tmp_path / "m.pt", weights_only=True)
    assert list(got) == list(want)
    assert all(torch.equal(got[n], want[n]) for n in want)


def test_safetensors_takes_the_state_dict(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    m = block()
    want = copy.deepcopy(m.state_dict())
    pack([m.weights])
    safetensors.save_file(m.state_dict(), tmp_path / "m.safetensors")
    got = safetensors.load_file(tmp_path / "m.safetensors")
    assert all(torch.equal(got[n], want[n]) for n in want)


def test_deep_copies_have_their_own_memory() -> None:
    m = block()
    pack([m.weights])
    twin = copy.deepcopy(m)
    with torch.no_grad():
        twin.k.weight.zero_()
    assert m.k.weight.abs().sum() > 0


CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "to": lambda m: m.to(torch.bfloat16),
    "double": lambda m: m.double(),
    "to_empty": lambda m: m.to_empty(device="cpu"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_replaces_the_data_is_detected(change: str) -> None:
    m = block()
    pack([m.weights])
    CHANGES[change](m)
    assert not is_packed(m.weights)
    assert pack([m.weights]) == [""]
    assert is_packed(m.weights)


def test_to_the_same_type_keeps_the_packing() -> None:
    m = block()
    pack([m.weights])
    m.to("cpu", torch.float32)
    assert is_packed(m.weights)


def test_parameters_made_in_inference_mode() -> None:
    with torch.inference_mode():
        m = block()
        want = m(torch.ones(2, 7))
        assert pack([m.weights, m.biases]) == ["", ""]
        assert is_packed(m.weights)
        for got, y in zip(m(torch.ones(2, 7)), want, strict=True):
            assert torch.equal(got, y)


def test_packing_in_inference_mode_leaves_trainable_parameters() -> None:
    """A first call under ``inference_mode`` compiles there."""
    m = block()
    with torch.inference_mode():
        assert pack([m.weights, m.biases]) == ["", ""]
    step(m)
    assert is_packed(m.weights)


def test_empty_and_single_groups() -> None:
    m = block()
    assert is_packed([m.q.weight])
    assert pack([[m.q.weight], []]) == ["", "there is nothing to pack"]


# -- refusals -------------------------------------------------------------------------------


def refused(m: Block, reason: str) -> None:
    values = [p.detach().clone() for p in m.weights]
    places = [p.data_ptr() for p in m.weights]
    (found,) = pack([m.weights])
    assert reason in found
    assert [p.data_ptr() for p in m.weights] == places
    assert all(torch.equal(p, v) for p, v in zip(m.weights, values, strict=True))


def test_refuses_a_parameter_that_another_tensor_views() -> None:
    m = block()
    view = m.k.weight.detach()
    refused(m, "shares its memory with 1 other tensors")
    assert view is not None
    del view
    assert pack([m.weights]) == [""]


def test_refuses_while_a_state_dict_is_held() -> None:
    m = block()
    held = m.state_dict()
    refused(m, "a held state_dict")
    assert held


def test_a_view_in_a_dead_cycle_is_no_reader() -> None:
    m = block()
    cycle: list[object] = [m.k.weight.detach()]
    cycle.append(cycle)
    del cycle
    assert pack([m.weights]) == [""]


def test_refuses_two_parameters_of_one_storage() -> None:
    m = block()
    m.v.weight = nn.Parameter(m.q.weight.detach()[:5])
    refused(m, "share their memory")


def test_refuses_one_parameter_twice() -> None:
    m = block()
    (reason,) = pack([[m.q.weight, m.q.weight]])
    assert reason == "two of the parameters share their memory"


def test_refuses_hooks() -> None:
    m = block()
    register: Callable[..., object] = getattr(m.k.weight, "register_hook")  # noqa: B009
    register(torch.neg)
    refused(m, "has hooks")


def test_refuses_what_is_not_contiguous() -> None:
    m = block()
    m.k.weight = nn.Parameter(torch.randn(7, 3).t())
    refused(m, "is not contiguous")


def test_refuses_a_part_of_what_another_holds() -> None:
    m, whole = block(), torch.randn(4, 7)
    m.k.weight = nn.Parameter(whole[:3])
    refused(m, "shares its memory with 1 other tensors")


def test_what_is_left_of_a_pack_is_packed_anew() -> None:
    """One parameter was replaced: the others are parts of a storage that nobody else holds."""
    m = block()
    pack([m.weights])
    for linear in (m.q, m.v):
        linear.weight = nn.Parameter(torch.randn_like(linear.weight))
        held = [w.detach().clone() for w in m.weights]
        assert pack([m.weights]) == [""]
        assert is_packed(m.weights)
        assert all(torch.equal(w, h) for w, h in zip(m.weights, held, strict=True))


def test_refuses_parts_of_one_another() -> None:
    m, whole = block(), torch.randn(9, 7)
    m.q.weight.data, m.k.weight.data = whole[: len(m.q.weight)], whole[: len(m.k.weight)]
    refused(m, "two of the parameters share their memory")


def test_refuses_other_types() -> None:
    m = block()
    m.k.to(torch.bfloat16)
    refused(m, "the parameters differ")


def test_refuses_memory_that_processes_share() -> None:
    m = block()
    m.k.weight.share_memory_()
    refused(m, "processes share")


def test_refuses_tensor_subclasses() -> None:
    class Sharded(nn.Parameter):
        pass

    m = block()
    m.k.weight = Sharded(torch.randn(3, 7))
    refused(m, "is a Sharded, not a plain parameter")


def test_refuses_the_meta_device() -> None:
    with torch.device("meta"):
        m = Block()
    assert "has no memory" in pack([m.weights])[0]


# -- what must stay, for a whole model ------------------------------------------------------


def named(m: nn.Module) -> dict[str, Tensor]:
    return dict(m.named_parameters(remove_duplicate=False))


def test_nothing_is_pinned_in_a_plain_model_or_a_packed_one() -> None:
    m = block()
    assert pinned(named(m)) == {}
    pack([m.weights, m.biases])
    assert pinned(named(m)) == {}


def test_pinned_names_both_of_a_tied_pair() -> None:
    m = block()
    m.o.weight = nn.Parameter(m.q.weight.detach().view(7, 6))
    assert pinned(named(m)) == {
        "q.weight": "is tied to o.weight",
        "o.weight": "is tied to q.weight",
    }


def test_pinned_knows_one_object_under_two_names() -> None:
    m = block()
    m.register_parameter("head", next(m.q.parameters()))
    assert set(pinned(named(m))) == {"head", "q.weight"}


def test_pinned_where_only_some_of_a_storage_are_given() -> None:
    m = block()
    pack([m.weights])
    some = {n: p for n, p in named(m).items() if n != "k.weight"}
    larger = "is a part of a larger storage"
    assert pinned(some) == {"q.weight": larger, "v.weight": larger}
    last = {n: p for n, p in named(m).items() if n != "v.weight"}
    assert pinned(last) == {"q.weight": larger, "k.weight": larger}


def test_pinned_where_a_view_is_held() -> None:
    m = block()
    view = m.k.weight.detach()
    assert "shares its memory" in pinned(named(m))["k.weight"]
    assert view is not None


RESIDENT = """
    import resource
    import torch
    from torch import nn
    from fuseline.runtime.packing import is_packed, pack

    def resident():
        pages = int(open("/proc/self/statm").read().split()[1])
        return pages * resource.getpagesize()

    layers = [nn.Linear(1024, 1536, bias=False) for _ in range(24)]
    group = 3 * 1024 * 1536 * 4
    before, peak = resident(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    groups = [[l.weight for l in layers[i : i + 3]] for i in range(0, 24, 3)]
    assert pack(groups) == [""] * 8
    assert all(is_packed(g) for g in groups)
    grown = resident() - before
    risen = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - max(peak, before)
    print(grown / group, risen / group)
"""


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="resident memory is read in /proc"
)
def test_resident_memory_does_not_grow() -> None:
    """A process with 151 MB of weights: as large afterwards, and one group larger at its peak."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RESIDENT)],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    grown, risen = map(float, done.stdout.split())
    assert grown < 0.2
    assert risen < 1.5
