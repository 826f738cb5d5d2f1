"""Latent attention in Triton: numbers through the interpreter, and released sizes as binaries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fuseline.codegen.gpu import lower_latent
from fuseline.codegen.latent_choice import most_absorbed
from fuseline.codegen.lower import emit
from fuseline.ir.evaluate import evaluate
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.runtime.cache import Cache
from tests.codegen.gpu.attention_binaries import built, copied, families
from tests.codegen.gpu.harness import run_func
from tests.codegen.oracle import DTYPES, assert_numbers, broadcast_masks, seeded

slow = pytest.mark.slow
CAUSAL = "causal = true"


def run(
    dtype: str = "bf16",
    *,
    heads: int = 3,
    groups: int | None = None,
    key: int = 12,
    value: int = 20,
    latent: int = 40,
    shared: int = 8,
    apart: bool = False,
    batch: int = 2,
    queries: int = 1,
    keys: int = 70,
    positions: Tensor | None = None,
    mask: Tensor | None = None,
    sinks: Tensor | None = None,
    scale: float = 0.2,
    more: str = CAUSAL,
    hidden: tuple[slice, ...] = (),
) -> Tensor:
    """Attention of a product's result over a cache whose rows hold latent and shared key.

    The result must stay the same where ``hidden`` keys become NaN.
    """
    groups, kind, width = groups or heads, DTYPES[dtype], key + shared
    rows = [groups * key, groups * value] if apart else [groups * (key + value)]
    x = seeded(batch, queries, heads * width, dtype=kind)
    cache = seeded(batch, 1, keys, latent + shared, dtype=kind, seed=1)
    weights = [
        seeded(n, latent, dtype=torch.float32, seed=2 + i).mul(latent**-0.5).to(kind)
        for i, n in enumerate(rows)
    ]
    declared = [
        f"%x: {dtype}[{batch}, {queries}, {heads * width}]",
        f"%c: {dtype}[{batch}, 1, T, {latent + shared}]",
        *(f"%w{i}: {dtype}[{n}, {latent}]" for i, n in enumerate(rows)),
    ]
    given = [x, cache, *weights]
    names = {torch.bool: "bool", torch.int64: "i64"} | {v: k for k, v in DTYPES.items()}
    operands = ["%q", "%l", "%w0", "%s" if shared else "_"]
    for name, tensor in (("m", mask), ("p", positions), ("k", sinks)):
        operands.append("_" if tensor is None else f"%{name}")
        if tensor is not None:
            declared.append(f"%{name}: {names[tensor.dtype]}[{', '.join(map(str, tensor.shape))}]")
            given.append(tensor)
    operands += ["%w1"] if apart else []
    while operands[-1] == "_":
        operands.pop()
    said = f"key = {key}, value = {value}, scale = {scale}{', ' if more else ''}{more}"
    cut = f"%s = slice %c {{axis = 3, start = {latent}, stop = {latent + shared}}}"
    text = f"""func @f({", ".join(declared)}) {{
      %r = reshape %x {{shape = ({batch}, {queries}, {heads}, {width})}}
      %q = permute %r {{dims = (0, 2, 1, 3)}}
      %l = slice %c {{axis = 3, start = 0, stop = {latent}}}
      {cut if shared else ""}
      %y = latent_attention {", ".join(operands)} {{{said}}}
      return %y
    }}"""
    func = parse_func(text)
    machine = run_func(func, given)
    assert [s.op.name for s in machine.steps] == ["latent_attention"]
    got = machine.tensor(func.returns[0]).contiguous()
    (want,) = evaluate(parse_func(text), given)
    exact = [a.double() if a.dtype.is_floating_point else a for a in given]
    (oracle,) = evaluate(parse_func(text.replace(f"{dtype}[", "f64[")), exact)
    # In 16 bits the reference rounds keys and values, which do not exist in the latent space.
    assert_numbers(got, want.contiguous(), oracle, like_eager=dtype == "f32")
    if hidden:
        for keys_hidden in hidden:
            cache[:, :, keys_hidden] = torch.nan
        func = parse_func(text)
        again = run_func(func, given)
        assert torch.equal(again.tensor(func.returns[0]).contiguous(), got)
    return got


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_forms_by_the_number_of_queries(dtype: str) -> None:
    for queries, keys in ((1, 90), (5, 7), (70, 75)):
        places = [torch.arange(queries) + keys - queries, torch.arange(queries)]
        run(dtype, queries=queries, keys=keys, positions=torch.stack(places))


@pytest.mark.parametrize("apart", [False, True])
def test_weights_apart_and_fewer_key_heads(apart: bool) -> None:
    for groups in (2, 1):
        for queries, keys in ((1, 50), (70, 75)):
            run("f32", heads=4, groups=groups, apart=apart, queries=queries, keys=keys)


@pytest.mark.parametrize(
    ("dtype", "key", "value", "latent", "shared"),
    [
        ("f32", 64, 64, 256, 32),
        ("bf16", 12, 20, 40, 5),
        pytest.param("f16", 33, 47, 112, 64, marks=slow),
        ("f32", 7, 1, 24, 1),
        ("bf16", 1, 13, 64, 16),
        ("f16", 80, 96, 40, 0),
        ("bf16", 128, 128, 512, 64),
    ],
)
def test_widths(dtype: str, key: int, value: int, latent: int, shared: int) -> None:
    widths: dict[str, Any] = {"key": key, "value": value, "latent": latent, "shared": shared}
    run(dtype, **widths, batch=1, heads=2, positions=torch.tensor([60]))
    positions = torch.arange(40) + 20
    run(dtype, **widths, batch=1, heads=1, queries=40, positions=positions)


@pytest.mark.parametrize("heads", [1, 16, 40])
def test_heads(heads: int) -> None:
    for queries in (1, 2):
        positions = torch.arange(queries) + 50
        run(heads=heads, queries=queries, batch=1, positions=positions)


@pytest.mark.parametrize("keys", [1, 2, 63, 65, 257])
def test_numbers_of_keys(keys: int) -> None:
    run(keys=keys, batch=1, heads=2, more="")
    run(keys=keys, queries=keys, batch=1, heads=2, dtype="f32" if keys == 65 else "bf16")


def test_keys_cut_over_blocks_give_the_same_in_every_run() -> None:
    made = [run("f32", batch=1, heads=4, keys=701, positions=torch.tensor([650])) for _ in "ab"]
    assert torch.equal(*made)


@pytest.mark.parametrize("apart", [False, True])
def test_heads_are_expanded_in_lots(apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower_latent, "AT_ONCE", 2)
    for groups in (3, 1):
        positions = torch.arange(40) + 30
        run(
            "f32",
            heads=6,
            groups=groups,
            key=16,
            value=16,
            apart=apart,
            batch=1,
            queries=40,
            keys=80,
            positions=positions,
        )


@pytest.mark.parametrize(
    ("dtype", "more", "sinks"),
    [
        ("f32", "window = 17", False),
        pytest.param("bf16", "window = 1", False, marks=slow),
        pytest.param("f32", "softcap = 2.0, window = 64", False, marks=slow),
        ("f16", "softcap = 30.0, window = 33", True),
    ],
)
def test_windows_caps_and_sinks(dtype: str, more: str, sinks: bool) -> None:
    sink = torch.tensor([1.0, -torch.inf, 0.5]) if sinks else None
    positions = torch.tensor([[30, 31, 32, 33], [160, 161, 170, 169]])
    said = f"{CAUSAL}, {more}"
    run(dtype, keys=200, queries=4, positions=positions, sinks=sink, scale=0.5, more=said)
    run(
        dtype,
        keys=90,
        queries=40,
        batch=1,
        heads=2,
        sinks=None if sink is None else sink[:2],
        more=said,
    )


@pytest.mark.parametrize("dtype", [pytest.param("f32", marks=slow), "bf16"])
def test_masks(dtype: str) -> None:
    for queries in (2, 30):
        for _, mask in [*broadcast_masks(dtype, queries, 70)][:: 2 if queries == 2 else 5]:
            run(dtype, heads=4, queries=queries, mask=mask, more="")


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_rows_that_see_no_key_are_zero(dtype: str) -> None:
    keep = torch.ones(1, 1, 3, 70, dtype=torch.bool)
    keep[..., 1, :] = False
    assert bool((run(dtype, queries=3, mask=keep, more="")[:, :, 1] == 0).all())
    got = run(dtype, queries=3, positions=torch.tensor([-1, 0, 5]))
    assert bool((got[:, :, 0] == 0).all())
    assert bool((run(dtype, keys=0, more="") == 0).all())


def test_keys_that_nobody_sees_may_hold_anything() -> None:
    """A static cache holds anything behind the last token, and in front of padded rows."""
    for queries in (2, 40):
        positions = torch.arange(queries) + 25
        behind = slice(25 + queries, None)
        run(queries=queries, batch=1, heads=2, positions=positions, hidden=(behind,))
        keep = torch.zeros(1, 1, 1, 70, dtype=torch.bool)
        keep[..., 10:67] = True
        hidden = (slice(0, 10), slice(67, None))
        run(queries=queries, batch=1, heads=2, mask=keep, more="", hidden=hidden)


def test_large_scores() -> None:
    run("f32", scale=30.0)


def test_nothing_to_do() -> None:
    for batch, queries in ((0, 3), (2, 0), (0, 40)):
        assert run(batch=batch, queries=queries, more="").numel() == 0


def released(dtype: str = "bf16", queries: str = "S") -> str:
    """The sizes of DeepSeek-V3."""
    return f"""func @f(%q: {dtype}[B, 128, {queries}, 192], %l: {dtype}[B, 1, 4096, 512],
                       %s: {dtype}[B, 1, 4096, 64], %w: {dtype}[32768, 512],
                       %p: i64[B, {queries}]) {{
      %y = latent_attention %q, %l, %w, %s, _, %p {{key = 128, value = 128, scale = 0.07, {CAUSAL}}}
      return %y
    }}"""


ABSORBED = ["head_product", "attention", "attention", "attention_combine", "head_product"]


def test_launches_by_the_number_of_queries() -> None:
    most = most_absorbed(128, 128, 512, keys=4096)
    assert most is not None
    assert families(released()) == [
        *((name, (0, 16)) for name in ABSORBED),
        *((name, (17, most)) for name in ABSORBED),
        *[("head_product", (most + 1, None)), ("attention", (most + 1, None))] * 4,
    ]
    assert families(released(queries="1")) == [(name, None) for name in ABSORBED]


def test_no_kernel_for_what_does_not_fit() -> None:
    for text, word in (
        (released("f64"), "one floating type"),
        (released().replace("32768, 512", "32768, 640").replace("4096, 512", "4096, 640"), "640"),
    ):
        func = parse_func(text)
        (step,) = emit(func, LayoutMap(func), "cuda")
        assert word in step.refusal


@slow
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_released_sizes_have_no_spills(dtype: str, binary_cache: Cache) -> None:
    for target, kernel, made in built(released(dtype), binary_cache):
        assert not made.binary.spills
        if kernel.family == "attention" and dtype == "bf16":
            assert 16 in copied(kernel, binary_cache, target), target.name
