"""Attention in Triton: numbers through the interpreter, and the binaries of released sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fuseline.codegen.lower import emit
from fuseline.codegen.targets import TARGETS
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.ir.types import substitute
from fuseline.runtime.cache import Cache
from tests.codegen.gpu.attention_binaries import built, copied, families
from tests.codegen.gpu.harness import check, run_func
from tests.codegen.oracle import DTYPES, broadcast_masks, seeded

slow = pytest.mark.slow
CAUSAL = "causal = true"


def run(
    dtype: str = "bf16",
    *,
    queries: int = 3,
    keys: int = 70,
    batch: int = 2,
    groups: int = 2,
    group: int = 2,
    width: int = 32,
    value_width: int | None = None,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    sinks: Tensor | None = None,
    scale: float = 0.3,
    more: str = "",
    known_keys: bool = False,
    behind: int | None = None,
) -> None:
    """Attention of slices of a merged projection and of caches, all with room behind their rows.

    With ``behind``, the caches hold NaN from that key on.
    """
    value_width = value_width or width
    heads, kind, length = groups * group, DTYPES[dtype], str(keys) if known_keys else "T"
    operands, given = ["%q", "%k", "%v"], list[Tensor]()
    declared = [
        f"%x: {dtype}[B, S, {heads * width + 8}]",
        f"%kc: {dtype}[B, {length}, {groups}, {width + 8}]",
        f"%vc: {dtype}[B, {length}, {groups}, {value_width}]",
    ]
    given.append(seeded(batch, queries, heads * width + 8, dtype=kind, seed=1))
    given.append(seeded(batch, keys, groups, width + 8, dtype=kind, seed=2))
    given.append(seeded(batch, keys, groups, value_width, dtype=kind, seed=3))
    if behind is not None:
        given[1][:, behind:], given[2][:, behind:] = torch.nan, torch.nan
    names = {torch.bool: "bool", torch.int64: "i64"} | {v: k for k, v in DTYPES.items()}
    for name, value in (("m", mask), ("p", positions), ("s", sinks)):
        operands.append("_" if value is None else f"%{name}")
        if value is not None:
            declared.append(f"%{name}: {names[value.dtype]}[{', '.join(map(str, value.shape))}]")
            given.append(value)
    while operands[-1] == "_":
        operands.pop()
    text = f"""func @f({", ".join(declared)}) {{
      %xs = slice %x {{axis = 2, start = 0, stop = {heads * width}}}
      %xr = reshape %xs {{shape = (B, S, {heads}, {width})}}
      %q = permute %xr {{dims = (0, 2, 1, 3)}}
      %ks = slice %kc {{axis = 3, start = 8, stop = {width + 8}}}
      %k = permute %ks {{dims = (0, 2, 1, 3)}}
      %v = permute %vc {{dims = (0, 2, 1, 3)}}
      %y = attention {", ".join(operands)} {{scale = {scale}{", " if more else ""}{more}}}
      return %y
    }}"""
    text = (
        text.replace("B,", f"{batch},").replace("S,", f"{queries},") if mask is not None else text
    )
    if positions is not None:
        text = text.replace("S,", f"{queries},").replace("B,", f"{batch},")
    check(text, given, ops=["attention"])


@pytest.mark.parametrize("width", [64, 80, 96, 112, 128, 192, 256, 20, 7])
def test_head_widths(width: int) -> None:
    for dtype in DTYPES if width == 20 else ("bf16",):
        positions = torch.tensor([40, 41, 42])
        run(dtype, width=width, batch=1, positions=positions, scale=width**-0.5, more=CAUSAL)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_of_another_width(dtype: str) -> None:
    """Expanded MLA has keys of 192 and values of 128."""
    for width, value_width in ((192, 128), (40, 72), (72, 36)):
        run(dtype, width=width, value_width=value_width, batch=1, groups=1, group=4, scale=0.1)


@pytest.mark.parametrize("group", [1, 3, 8, 40, 71])
def test_groups(group: int) -> None:
    run(group=group, groups=2 if group == 3 else 1, queries=2, batch=1, keys=33)


@pytest.mark.parametrize(
    "keys", [1, 2, 63, 64, 65, *(pytest.param(n, marks=slow) for n in (127, 257))]
)
def test_as_many_keys_as_queries(keys: int) -> None:
    """A prompt of few tokens, and parts of it; torch does those of many."""
    for queries in {min(keys, 5), keys}:
        run(queries=queries, keys=keys, batch=1, more=CAUSAL)


@pytest.mark.parametrize("context", [1, 64, 130, 700])
def test_keys_cut_over_blocks(context: int) -> None:
    positions = torch.tensor([context - 1])
    for dtype in ("f32", "bf16"):
        run(
            dtype,
            queries=1,
            keys=700,
            batch=1,
            groups=1,
            group=3,
            positions=positions,
            more=CAUSAL,
            known_keys=dtype == "f32",
        )


def test_rows_in_several_blocks_over_a_cache() -> None:
    """A chunk of a prompt behind others, in parts of the keys; and one that is not cut."""
    run(queries=70, keys=200, batch=1, positions=torch.arange(70) + 100, more=CAUSAL)
    positions = torch.arange(520) + 3
    run(queries=520, keys=530, batch=1, groups=1, group=1, positions=positions, more=CAUSAL)


def test_blocks_with_windows_caps_and_sinks_that_are_not_cut() -> None:
    run(
        queries=515,
        keys=515,
        batch=1,
        groups=1,
        sinks=torch.tensor([1.0, -torch.inf]),
        more=f"{CAUSAL}, window = 100, softcap = 3.0",
    )


@pytest.mark.parametrize(
    ("dtype", "more", "sinks"),
    [
        ("f32", "window = 17", None),
        ("bf16", "window = 1", None),
        ("f16", "softcap = 2.0", None),
        pytest.param("f32", "softcap = 30.0, window = 64", None, marks=slow),
        pytest.param("bf16", "", "bf16", marks=slow),
        ("f32", "window = 50", "f32"),
    ],
)
def test_windows_caps_and_sinks(dtype: str, more: str, sinks: str | None) -> None:
    positions = torch.tensor([[30, 31, 32, 33], [160, 161, 162, 169]])
    sink = None if sinks is None else seeded(4, dtype=DTYPES[sinks], seed=5)
    if sink is not None:
        sink[1] = -torch.inf
    said = f"{CAUSAL}, {more}" if more else CAUSAL
    run(dtype, queries=4, keys=170, width=48, positions=positions, sinks=sink, scale=0.5, more=said)


def test_a_window_without_an_order() -> None:
    run(queries=6, more="window = 10")


@pytest.mark.parametrize("dtype", [pytest.param("f32", marks=slow), "bf16"])
def test_masks(dtype: str) -> None:
    for _, mask in broadcast_masks(dtype, 2, 70):
        run(dtype, queries=2, mask=mask, more=CAUSAL if mask.shape[2] > 1 else "")


@pytest.mark.parametrize("dtype", ["f32", pytest.param("bf16", marks=slow)])
def test_rows_that_see_no_key_are_zero(dtype: str) -> None:
    keep = torch.ones(1, 1, 3, 70, dtype=torch.bool)
    keep[..., 1, :] = False
    run(dtype, mask=keep)
    low = torch.zeros(1, 1, 3, 70, dtype=DTYPES[dtype]).masked_fill(~keep, -torch.inf)
    run(dtype, mask=low)
    run(dtype, mask=low.clamp_min(torch.finfo(low.dtype).min))
    run(dtype, positions=torch.tensor([-1, 0, 5]), more=CAUSAL)


def test_keys_behind_the_position_are_not_read() -> None:
    """A static cache holds anything behind the last token: NaN there must not come through."""
    text = """func @f(%q: bf16[2, 4, 1, 32], %k: bf16[2, 2, 300, 32], %v: bf16[2, 2, 300, 32],
                     %p: i64[2, 1]) {
      %y = attention %q, %k, %v, _, %p {scale = 0.3, causal = true}
      return %y
    }"""
    q = seeded(2, 4, 1, 32, dtype=torch.bfloat16)
    caches = [seeded(2, 2, 300, 32, dtype=torch.bfloat16, seed=seed) for seed in (1, 2)]
    positions = torch.tensor([[66], [3]])
    clean = outputs(text, [q, *caches, positions])
    for cache in caches:
        cache[0, :, 67:], cache[1, :, 4:] = torch.nan, torch.nan
    assert torch.equal(outputs(text, [q, *caches, positions]), clean)
    assert bool(clean.isfinite().all())


def test_keys_that_a_mask_hides_may_hold_anything() -> None:
    keep = torch.zeros(1, 1, 1, 90, dtype=torch.bool)
    keep[..., 10:67] = True
    text = """func @f(%q: bf16[1, 4, 2, 32], %k: bf16[1, 2, 90, 32], %v: bf16[1, 2, 90, 32],
                     %m: bool[1, 1, 1, 90]) {
      %y = attention %q, %k, %v, %m {scale = 0.3}
      return %y
    }"""
    q = seeded(1, 4, 2, 32, dtype=torch.bfloat16)
    caches = [seeded(1, 2, 90, 32, dtype=torch.bfloat16, seed=seed) for seed in (1, 2)]
    clean = outputs(text, [q, *caches, keep])
    for cache in caches:
        cache[:, :, :10], cache[:, :, 67:] = torch.nan, torch.nan
    assert torch.equal(outputs(text, [q, *caches, keep]), clean)


def test_large_scores_and_special_values() -> None:
    run("f32", scale=40.0)
    text = """func @f(%q: f32[1, 4, 3, 32], %k: f32[1, 2, 70, 32], %v: f32[1, 2, 70, 32]) {
      %y = attention %q, %k, %v {scale = 0.3}
      return %y
    }"""
    q, k, v = (seeded(1, h, n, 32, dtype=torch.float32) for h, n in ((4, 3), (2, 70), (2, 70)))
    k[0, 0, 5] = torch.nan
    v[0, 1, 7, 3] = torch.inf
    got = outputs(text, [q, k, v])
    assert bool(got[0, :2].isnan().all())
    assert bool(got[0, 2:, :, 3].isinf().all())
    assert bool(got[0, 2:, :, :3].isfinite().all())


def test_nothing_to_do() -> None:
    run(queries=0)
    run(batch=0)
    run(keys=0)
    run(keys=0, more=CAUSAL, sinks=torch.zeros(4))


def outputs(text: str, given: list[Tensor]) -> Tensor:
    """What the launches give."""
    func = parse_func(text)
    return run_func(func, given).tensor(func.returns[0]).contiguous()


def test_choice_by_queries() -> None:
    text = """func @f(%q: bf16[B, 32, S, 128], %k: bf16[B, 8, T, 128], %v: bf16[B, 8, T, 128]) {
      %y = attention %q, %k, %v {scale = 0.1, causal = true}
      return %y
    }"""
    cut = ["attention", "attention", "attention_combine"]
    assert families(text) == [
        *((name, (0, 4)) for name in cut),
        *((name, (5, 16)) for name in cut),
        ("library", (17, None)),
    ]
    capped = text.replace("causal = true", "causal = true, softcap = 30.0")
    assert families(capped)[6:] == [
        *((name, (17, 512)) for name in cut),
        ("attention", (513, None)),
    ]
    assert families(text.replace("S,", "1,")) == [(name, None) for name in cut]


def test_a_single_part_leaves_nothing_to_join() -> None:
    """Few keys, or blocks enough to fill a GPU, are written at once; none is known beforehand."""
    text = """func @f(%q: bf16[B, 32, 1, 128], %k: bf16[B, 8, T, 128], %v: bf16[B, 8, T, 128]) {
      %y = attention %q, %k, %v {scale = 0.1, causal = true}
      return %y
    }"""
    func = parse_func(text)
    (step,) = emit(func, LayoutMap(func), "cuda")
    whole, parts, join = step.launches
    for batch, keys, splits in ((1, 0, 1), (1, 64, 1), (1, 65, 2), (64, 4096, 1), (8, 4096, 5)):
        sizes = {"B": batch, "T": keys}
        grids = [[substitute(n, sizes) for n in launch.grid] for launch in (whole, parts, join)]
        own, several = int(splits == 1), int(splits > 1)
        assert grids[0] == [8 * batch * own, 1, 1]
        assert grids[1] == [8 * batch * several, splits, 1]
        assert grids[2] == [32 * batch * several, 1, 1]
    assert families(text.replace("T,", "64,")) == [("attention", None)]


def test_no_kernel_for_double_or_unknown_heads() -> None:
    text = """func @f(%q: f64[B, 4, S, 8], %k: f64[B, 4, S, 8], %v: f64[B, 4, S, 8]) {
      %y = attention %q, %k, %v {scale = 0.1}
      return %y
    }"""
    for each, word in ((text, "f64"), (text.replace("f64", "f32").replace("4,", "H,"), "heads")):
        func = parse_func(each)
        (step,) = emit(func, LayoutMap(func), "cuda")
        assert word in step.refusal


RELEASED = {  # query heads, key heads, width, width of values
    "qwen3-8b": (32, 8, 128, 128),
    "llama-3-70b": (64, 8, 128, 128),
    "gemma-2-9b": (16, 8, 256, 256),
    "qwen2-0.5b": (14, 2, 64, 64),
    "phi-2": (32, 32, 80, 80),
    "deepseek-v3, expanded": (128, 128, 192, 128),
}


def released(name: str, dtype: str = "bf16", queries: str = "S") -> str:
    heads, groups, width, value_width = RELEASED[name]
    return f"""func @f(%q: {dtype}[B, {heads}, {queries}, {width}],
                       %k: {dtype}[B, {groups}, 4096, {width}],
                       %v: {dtype}[B, {groups}, 4096, {value_width}], %p: i64[B, {queries}]) {{
      %y = attention %q, %k, %v, _, %p {{scale = 0.088, causal = true}}
      return %y
    }}"""


def test_a_decode_step_copies_16_bytes_at_once(binary_cache: Cache) -> None:
    targets = [TARGETS[name] for name in ("sm_90", "sm_120")]
    for target, kernel, made in built(released("qwen3-8b", queries="1"), binary_cache, targets):
        assert not made.binary.spills
        assert made.binary.resources["widest_load"] == 128, target.name
        if kernel.family == "attention":
            assert made.binary.resources["widest_store"] == 128, target.name
            assert copied(kernel, binary_cache, target) == {16}, target.name


@slow
@pytest.mark.parametrize("name", RELEASED)
def test_released_sizes_have_no_spills_and_copy_16_bytes_at_once(
    name: str, binary_cache: Cache
) -> None:
    for target, kernel, made in built(released(name), binary_cache):
        assert not made.binary.spills
        if kernel.family == "attention":
            # A block of 16 columns is copied by 8 bytes a thread: there are no more of them.
            narrow = {8} if name == "phi-2" else set[int]()
            assert copied(kernel, binary_cache, target) - narrow == {16}, (target.name, kernel)


@slow
@pytest.mark.parametrize(("dtype", "name"), [("f32", "qwen3-8b"), ("f16", "qwen3-8b")])
def test_other_types_have_no_spills(dtype: str, name: str, binary_cache: Cache) -> None:
    assert list(built(released(name, dtype), binary_cache))


MARKED = {
    "everything": (
        64,
        8,
        128,
        "%m, %p, %s {scale = 0.1, causal = true, window = 128, softcap = 50.0}",
    ),
    "a mask": (32, 8, 128, "%m {scale = 0.1}"),
    "gemma-2-9b": (16, 8, 256, "_, %p {scale = 0.1, causal = true, window = 4096, softcap = 50.0}"),
    "gpt-oss-20b": (64, 8, 64, "_, %p, %s {scale = 0.1, causal = true, window = 128}"),
}


@slow
@pytest.mark.parametrize("name", MARKED)
def test_masks_caps_windows_and_sinks_have_no_spills(name: str, binary_cache: Cache) -> None:
    heads, groups, width, rest = MARKED[name]
    text = f"""func @f(%q: bf16[B, {heads}, S, {width}], %k: bf16[B, {groups}, T, {width}],
                     %v: bf16[B, {groups}, T, {width}], %m: bf16[B, 1, S, T], %p: i64[S],
                     %s: bf16[{heads}]) {{
      %y = attention %q, %k, %v, {rest}
      return %y
    }}"""
    assert list(built(text, binary_cache))
