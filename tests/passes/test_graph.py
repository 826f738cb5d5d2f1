"""Repeated layers: found from structure and order alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fuseline.ir.core import Func
from fuseline.ir.text import parse_func
from fuseline.passes.graph import Group, repeated_layers
from tests.effort import lines_run

NAMES = ["rms_norm", "linear", "reshape", "attention", "reshape", "add", "linear", "silu", "add"]


def _layer(i: int, *, eps: float = 1e-6, window: str = "none", again: str = "%r") -> str:
    """A small decoder layer, number i; its weights are arguments of the func."""
    return f"""
      %n{i} = rms_norm %x{i}, %w{i} {{eps = {eps}}}
      %q{i} = linear %n{i}, %a{i}
      %h{i} = reshape %q{i} {{shape = (1, 2, S, 4)}}
      %o{i} = attention %h{i}, %h{i}, %h{i} {{scale = 0.5, causal = true, window = {window}}}
      %f{i} = reshape %o{i} {{shape = (1, S, 8)}}
      %r{i} = add %x{i}, %f{i}
      %u{i} = linear %r{i}, %b{i}
      %t{i} = silu %u{i}
      %x{i + 1} = add {again}{i}, %t{i}"""


def _func(layers: Sequence[str]) -> Func:
    weights = [
        f'%w{i}: f32[8] = param "w{i}", %a{i}: f32[8, 8] = param "a{i}", '
        f'%b{i}: f32[8, 8] = param "b{i}"'
        for i in range(len(layers))
    ]
    return parse_func(f"""func @f(%in: f32[1, S, 8], %p: f32[8, 8], {", ".join(weights)}) {{
      %x0 = linear %in, %p
      {"".join(layers)}
      %y = linear %x{len(layers)}, %p
      return %y
    }}""")


def _groups(layers: Sequence[str]) -> tuple[Group, ...]:
    return repeated_layers(_func(layers))


def _names(group: Group) -> list[str]:
    """The ops of the group's regions, from the norm on: where a region begins is free."""
    names = [op.name for op in group.regions[0].ops]
    first = names.index("rms_norm")
    return names[first:] + names[:first]


def test_layers_are_one_group() -> None:
    (group,) = _groups([_layer(i) for i in range(5)])
    assert len(group) == 5
    assert _names(group) == NAMES
    assert all(len(r.outputs) == 1 for r in group.regions)


def test_corresponding_inputs_are_the_layers_own_weights() -> None:
    (group,) = _groups([_layer(i) for i in range(4)])
    for i, region in enumerate(group.regions):
        assert [v.hint for v in region.inputs] == [f"x{i}", f"w{i}", f"a{i}", f"b{i}"]
        assert [v.hint for v in region.outputs] == [f"x{i + 1}"]


def test_regions_do_not_overlap() -> None:
    groups = _groups([_layer(i) for i in range(6)])
    ops = [op for group in groups for region in group.regions for op in region.ops]
    assert len(ops) == len(set(ops))


def test_an_attribute_tells_layers_apart() -> None:
    """The first layer has another epsilon, and is none of the others."""
    layers = [_layer(0, eps=1e-5), *(_layer(i) for i in range(1, 5))]
    (group,) = _groups(layers)
    assert len(group) == 4


def test_inner_wiring_tells_layers_apart() -> None:
    """The same ops on the same types, but two layers add to the input of the layer again."""
    layers = [*(_layer(i) for i in range(4)), *(_layer(i, again="%f") for i in range(4, 6))]
    groups = _groups(layers)
    assert sorted(len(g) for g in groups) == [2, 4]
    assert len({g.digest for g in groups}) == 2


@pytest.mark.parametrize("rounds", [2, 3])
def test_sliding_and_full_layers_are_two_groups(rounds: int) -> None:
    """Three sliding layers and a full one, over and over."""
    layers = [_layer(i, window="none" if i % 4 == 3 else "5") for i in range(4 * rounds)]
    groups = _groups(layers)
    assert sorted(len(g) for g in groups) == [rounds, 3 * rounds]
    assert all(_names(g) == NAMES for g in groups)


def test_dense_layers_before_others_are_a_group_of_their_own() -> None:
    def gated(i: int) -> str:
        return _layer(i).replace(f"silu %u{i}", f"relu %u{i}")

    groups = _groups([*(_layer(i) for i in range(3)), *(gated(i) for i in range(3, 8))])
    assert sorted(len(g) for g in groups) == [3, 5]


def test_constants_shared_by_all_layers_do_not_hide_them() -> None:
    """Only the first layer is preceded by the constant that all of them read."""

    def scaled(i: int) -> str:
        text = _layer(i).replace(f"silu %u{i}", f"mul %u{i}, %half")
        return text if i else "\n%half = full {value = 0.5, dtype = f32}" + text

    (group,) = _groups([scaled(i) for i in range(4)])
    assert len(group) == 4


def test_no_group_of_norms_side_by_side() -> None:
    """Queries and keys go through the same ops, but one does not read the other."""
    func = parse_func("""func @f(%x: f32[4, 8], %w: f32[8], %p: f32[8, 8], %q: f32[8, 8]) {
      %a1 = linear %x, %p
      %a2 = rms_norm %a1, %w {eps = 1e-06}
      %a3 = silu %a2
      %b1 = linear %x, %q
      %b2 = rms_norm %b1, %w {eps = 1e-06}
      %b3 = silu %b2
      %y = mul %a3, %b3
      return %y
    }""")
    assert repeated_layers(func) == ()


def test_no_group_of_a_single_layer() -> None:
    assert _groups([_layer(0)]) == ()


def test_no_group_in_an_empty_func() -> None:
    assert repeated_layers(parse_func("func @f(%x: f32[4]) { return %x }")) == ()


def test_finding_scales_with_depth() -> None:
    """Twice the layers are about twice the work, not four times."""

    def lines(count: int) -> int:
        func = _func([_layer(i) for i in range(count)])
        return lines_run(lambda: repeated_layers(func))

    assert lines(32) < 2.5 * lines(16)
