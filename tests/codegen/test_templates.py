"""Every template reads only what its context offers, and its source names what it is."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import jinja2.meta
import jinja2.nodes
import pytest

import fuseline.codegen
from fuseline.codegen.cpu.attention import BlockedAttentionKernel, DecodeAttentionKernel
from fuseline.codegen.cpu.cumsum import CumsumKernel
from fuseline.codegen.cpu.gather import ArgmaxKernel, GatherKernel, IndexWriteKernel
from fuseline.codegen.cpu.latent import AbsorbedKernel, ExpandedKernel
from fuseline.codegen.cpu.mla_projection import mla_projection
from fuseline.codegen.cpu.norm import NormKernel
from fuseline.codegen.cpu.qk_norm_rope import QkNormRopeKernel
from fuseline.codegen.cpu.rope import rope
from fuseline.codegen.cpu.route import RouteKernel
from fuseline.codegen.cpu.shift_write import ShiftWriteKernel
from fuseline.codegen.cpu.topk import TopKKernel
from fuseline.codegen.heads import Rotation, Stream, qk_streams
from fuseline.codegen.kernel import KernelTemplate, environment

for module in pkgutil.walk_packages(fuseline.codegen.__path__, "fuseline.codegen."):
    importlib.import_module(module.name)


def subclasses(cls: type[KernelTemplate]) -> Iterator[type[KernelTemplate]]:
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)


KINDS = sorted({c for c in subclasses(KernelTemplate) if hasattr(c, "template")}, key=str)


def reads(template: str) -> set[str]:
    """The names that a template and what it includes look up in the context."""
    loader = environment().loader
    assert loader is not None
    source, _, _ = loader.get_source(environment(), template)
    tree = environment().parse(source)
    names = jinja2.meta.find_undeclared_variables(tree)
    for included in tree.find_all(jinja2.nodes.Include):
        assert isinstance(included.template, jinja2.nodes.Const)
        names |= reads(included.template.value)
    return names


def offered(cls: type[KernelTemplate]) -> set[str]:
    """The fields, the public properties and the symbol."""
    names = {field.name for field in dataclasses.fields(cls)} | {"symbol"}
    for base in cls.__mro__:
        names |= {n for n, member in vars(base).items() if isinstance(member, property)}
    return names


@pytest.mark.parametrize("cls", KINDS, ids=lambda c: c.__name__)
def test_template_reads_what_its_context_offers(cls: type[KernelTemplate]) -> None:
    assert reads(cls.template) <= offered(cls)


ROTATION = Rotation(64)
LATENT: dict[str, Any] = {"scale": 0.1, "key": 16, "value": 24, "latent": 40, "shared": 8}
SAMPLES: list[KernelTemplate] = [
    NormKernel("f32", 64),
    NormKernel("bf16", 64),
    NormKernel("f32", 64, weight="f32"),
    NormKernel("f32", 64, weight="f32", offset=1.0),
    NormKernel("f32", 64, residual=True),
    QkNormRopeKernel("f32", qk_streams((2, 1), 64), ROTATION),
    QkNormRopeKernel("f32", qk_streams((2, 1), 64), ROTATION, rounded=False),
    QkNormRopeKernel("f32", qk_streams((2, 1), 64), None),
    QkNormRopeKernel("f32", qk_streams((2, 1), 64, cache=True, values=(1, 64)), ROTATION),
    rope("f32", 2, 64, ROTATION),
    mla_projection("f32", latent=Stream("latent", 1, 64), shared=None, q=None, rotation=None),
    DecodeAttentionKernel("f32", 2, 64, 64, 0.125),
    DecodeAttentionKernel("f32", 2, 64, 64, 0.125, window=3),
    BlockedAttentionKernel("f32", 2, 64, 64, 0.125),
    GatherKernel("f32", ("i64",), 1, wraps=False),
    GatherKernel("f32", ("i64", "i32"), 3, wraps=True),
    IndexWriteKernel("f32"),
    ShiftWriteKernel("f32"),
    RouteKernel("f32", 8, 2),
    RouteKernel("f32", 8, 2, correction="f32", groups=4, top_groups=2, ordered=False),
    TopKKernel("f32"),
    CumsumKernel("f32"),
    ArgmaxKernel("f32"),
    *ArgmaxKernel("bf16").launches(),
    *DecodeAttentionKernel("bf16", 2, 64, 64, 0.125, max_splits=2).launches(),
    *AbsorbedKernel("f32", group=4, width=24, value_width=40, **LATENT).launches(),
    ExpandedKernel("f32", group=1, width=24, value_width=24, all_heads=4, **LATENT),
]


def test_equal_contexts_give_equal_sources_and_others_do_not() -> None:
    for kernel in SAMPLES:
        again = dataclasses.replace(kernel)
        assert again.symbol == kernel.symbol
        assert again.render() == kernel.render()
    assert len({kernel.symbol for kernel in SAMPLES}) == len(SAMPLES)
    ordered = sorted(kernel.render() for kernel in SAMPLES)
    assert all(a != b for a, b in pairwise(ordered))


def test_a_source_says_what_it_is_and_exports_its_symbol() -> None:
    for kernel in SAMPLES:
        source = kernel.render()
        head = source[: source.index("#include")]
        assert head.startswith("// ")
        assert "// buf: " in head
        assert "// dim: " in head
        assert source.count(f'extern "C" void {kernel.symbol}(') == 1
        assert source.count('extern "C"') == 1
