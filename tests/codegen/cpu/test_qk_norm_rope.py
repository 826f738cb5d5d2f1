"""QK norm with RoPE against the meaning of its op, in float64 and in the model's own dtype."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fuseline.codegen.cpu.qk_norm_rope import QkNormRopeKernel
from fuseline.codegen.cpu.rope import rope
from fuseline.codegen.heads import Rotation, qk_streams
from fuseline.ir.ops.fused import QkNormRope, QkNormRopeWrite
from fuseline.ir.ops.raised import RopeStyle
from tests.codegen.cpu.harness import build
from tests.codegen.oracle import DTYPES, assert_numbers, distance, seeded


def attributes(kernel: QkNormRopeKernel, out: str) -> dict[str, Any]:
    """The attributes of the op that the kernel computes."""
    rotation = kernel.rotation or Rotation(0)
    same = ("style", "table", "start", "width", "sign", "round")
    return {name: getattr(rotation, name) for name in same} | {
        "norm": kernel.kind if kernel.streams[0].normed else "none",
        **{name: getattr(kernel, name) for name in ("eps", "offset", "cast", "scope", "order")},
        "out": out,
    }


@dataclass
class Case:
    """Operands of one launch: q, k (and v) as slices of one merged projection."""

    kernel: QkNormRopeKernel
    given: dict[str, Tensor]
    dims: dict[str, int]

    @staticmethod
    def of(kernel: QkNormRopeKernel, batch: int, tokens: int, table_batch: int = 1) -> Case:
        dtype = DTYPES[kernel.dtype]
        total = sum(s.heads * s.width for s in kernel.streams)
        merged = seeded(batch, tokens, total + 5, dtype=dtype, scale=2.0)
        case, start = Case(kernel, {}, {"B": batch, "S": tokens}), 3
        for i, s in enumerate(kernel.streams):
            part = merged[..., start : start + s.heads * s.width]
            case.add(s.name, part.reshape(batch, tokens, s.heads, s.width))
            start += s.heads * s.width
            rows = s.heads * s.width if kernel.scope == "row" else s.width
            shape = (s.heads, s.width) if s.per_head else (rows,)
            for operand, kind in (("weight", s.weight), ("bias", s.bias)):
                if kind:
                    seed = 2 * i + (operand == "bias") + 1
                    value = seeded(*shape, dtype=DTYPES[kind], seed=seed)
                    case.given[f"{s.name}_{operand}"] = value
        if kernel.rotation is not None:
            case.tables(kernel.rotation, table_batch, tokens)
        return case

    def add(self, name: str, value: Tensor) -> None:
        """A value [B, S, H, D] of any strides."""
        self.given[name] = value
        for axis, letter in enumerate("bth"):
            self.dims[f"{name}_{letter}"] = value.stride(axis)

    def tables(self, rotation: Rotation, batch: int, tokens: int) -> None:
        width = rotation.width if rotation.table == "full" else rotation.width // 2
        kind = DTYPES[rotation.dtype]
        for i, name in enumerate(("cos", "sin")):
            wide = seeded(batch, tokens, width * rotation.step, dtype=kind, seed=20 + i)
            self.given[name] = wide[..., :: rotation.step]
            self.dims |= {f"{name}_b": wide.stride(0) if batch > 1 else 0}
            self.dims |= {f"{name}_t": wide.stride(1)}

    def run(self, nth: int) -> None:
        kernel = self.kernel
        bufs = [self.given[n] for n in kernel.buffers]
        build(kernel)(bufs, [self.dims[n] for n in kernel.dims], nth=nth)

    def operands(self, double: bool) -> dict[str, Tensor | None]:
        names = ["q", "k", *(f"{s}_{p}" for s in "qk" for p in ("weight", "bias")), "cos", "sin"]
        values = {name: self.given.get(name) for name in names}
        if not double:
            return values
        return {name: None if v is None else v.double() for name, v in values.items()}

    def reference(self, double: bool, out: str) -> tuple[Tensor, Tensor]:
        return QkNormRope.reference(**self.operands(double), **attributes(self.kernel, out))


def check(
    kernel: QkNormRopeKernel,
    *,
    batch: int = 2,
    tokens: int = 5,
    out: str = "bhsd",
    nth: int = 2,
    table_batch: int = 1,
) -> Case:
    """Compute q and k, written with gaps between the tokens or heads."""
    case = Case.of(kernel, batch, tokens, table_batch)
    results: list[Tensor] = []
    for s in kernel.streams:
        shape = (batch, s.heads, tokens) if out == "bhsd" else (batch, tokens, s.heads)
        target = torch.full((*shape, s.width + 2), 7.0).to(DTYPES[kernel.out])
        results.append(target)
        value = target[..., : s.width]
        case.add(f"{s.name}_out", value.transpose(1, 2) if out == "bhsd" else value)
    case.run(nth)
    wanted = zip(results, case.reference(False, out), case.reference(True, out), strict=True)
    for got, eager, oracle in wanted:
        assert bool((got[..., -2:] == 7.0).all())
        assert_numbers(got[..., :-2].contiguous(), eager, oracle, like_eager=kernel.rounded)
    return case


def qwen(dtype: str, width: int = 64, **changes: Any) -> QkNormRopeKernel:
    """RMS norm per head, rotation by halves, everything of one dtype."""
    rotation = changes.pop("rotation", Rotation(width, dtype=dtype))
    streams = qk_streams((3, 2), width, weights=(dtype, dtype))
    return replace(QkNormRopeKernel(dtype, streams, rotation), **changes)


@pytest.mark.parametrize("width", [8, 64, 80, 96, 112, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_head_widths(dtype: str, width: int) -> None:
    check(qwen(dtype, width), nth=3)


@pytest.mark.parametrize(
    ("batch", "tokens"), [(1, 1), (1, 2), (3, 1), (2, 13), (1, 37), (2, 0), (0, 3)]
)
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_token_counts(batch: int, tokens: int, nth: int) -> None:
    for dtype in ("f32", "bf16"):
        check(qwen(dtype), batch=batch, tokens=tokens, nth=nth)


def test_more_heads_than_one_batch_of_moments() -> None:
    for heads in ((8, 1), (9, 8), (17, 16)):
        streams = qk_streams(heads, 32, weights=("bf16", "bf16"))
        check(QkNormRopeKernel("bf16", streams, Rotation(32, dtype="bf16")), nth=3)


@pytest.mark.parametrize("style", ["half", "interleaved", "deinterleave"])
@pytest.mark.parametrize("table", ["full", "half"])
def test_rotations(table: Any, style: RopeStyle) -> None:
    """Whole, leading, trailing, inner and odd parts of the head; both signs; rounded or not."""
    for i, (start, width) in enumerate([(0, 64), (0, 32), (32, 32), (8, 40), (2, 6), (0, 2)]):
        dtype, sign, rounded = list(DTYPES)[i % 3], *((-1, False) if i % 2 else (1, True))
        rotation = Rotation(width, style, table, start, sign, rounded, dtype)
        check(qwen(dtype, rotation=rotation), out="bshd" if i % 2 else "bhsd")


def test_a_rotated_part_that_fits_blocks_in_a_head_that_does_not() -> None:
    for dtype in DTYPES:
        check(qwen(dtype, 72, rotation=Rotation(64, dtype=dtype)))
        check(qwen(dtype, 72, rotation=Rotation(64, dtype=dtype), order="rope_norm"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tables_of_another_dtype(dtype: str) -> None:
    for table in set(DTYPES) - {dtype}:
        order = "rope_norm" if table == "f32" else "norm_rope"
        check(qwen(dtype, rotation=Rotation(64, dtype=table), order=order))


def test_tables_that_differ_over_the_batch_and_tables_of_complex_numbers() -> None:
    check(qwen("bf16"), batch=3, table_batch=3)
    rotation = Rotation(64, "interleaved", "half", round=False, step=2)
    check(qwen("bf16", rotation=rotation), batch=2, table_batch=2)


@pytest.mark.parametrize("order", ["norm_rope", "rope_norm"])
@pytest.mark.parametrize("cast", ["before_weight", "last"])
def test_norms(cast: Any, order: Any) -> None:
    """RMS with an offset and of float32 weights, layer norm shared and by head."""
    heads, width = (3, 2), 96
    for dtype in ("f32", "bf16"):
        same = (dtype, dtype)
        for streams, more in (
            (qk_streams(heads, width, weights=same), {"offset": 1.0}),
            (qk_streams(heads, width, weights=("f32", "f32")), {}),
            (qk_streams(heads, width), {}),
            (qk_streams(heads, width, weights=same, biases=same), {"kind": "layer"}),
            (qk_streams(heads, width, weights=same, per_head=True), {"kind": "layer"}),
        ):
            kernel = QkNormRopeKernel(dtype, streams, Rotation(48, dtype=dtype), cast=cast)
            check(replace(kernel, order=order, **more))


def test_norm_of_a_head_that_fits_no_block() -> None:
    for dtype in DTYPES:
        for order in ("norm_rope", "rope_norm"):
            streams = qk_streams((3, 1), 46, weights=("f32", "f32"), per_head=True)
            rotation = Rotation(30, start=10, dtype=dtype)
            check(QkNormRopeKernel(dtype, streams, rotation, order=order, offset=1.0, cast="last"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_without_rotation_and_rotation_without_norm(dtype: str) -> None:
    check(qwen(dtype, 80, rotation=None), nth=3)
    streams = qk_streams((4, 2), 80, normed=False)
    check(QkNormRopeKernel(dtype, streams, Rotation(80, dtype=dtype)))


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_across_heads_of_unequal_number(dtype: str, nth: int) -> None:
    """MiniMax-M2 and OLMo2: q and k are normed over their whole, different widths."""
    for width, cast in ((64, "before_weight"), (20, "last")):
        streams = qk_streams((6, 1), width, weights=(dtype, dtype))
        rotation = Rotation(16, dtype=dtype)
        kernel = QkNormRopeKernel(dtype, streams, rotation, scope="row", cast=cast)  # pyright: ignore[reportArgumentType]
        check(kernel, nth=nth)
        check(replace(kernel, kind="layer"), nth=nth, tokens=1, batch=1)


@pytest.mark.parametrize("nth", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_writes_keys_and_values_into_the_cache(dtype: str, nth: int) -> None:
    batch, tokens, rows, width, dv = 2, 4, 11, 64, 40
    streams = qk_streams((4, 2), width, weights=(dtype, dtype), cache=True, values=(2, dv))
    kernel = QkNormRopeKernel(dtype, streams, Rotation(width, dtype=dtype))
    case = Case.of(kernel, batch, tokens)
    q_out = torch.empty(batch, 4, tokens, width, dtype=DTYPES[dtype])
    caches = {
        name: torch.full((batch, 2, rows, w), 7.0).to(DTYPES[dtype])
        for name, w in (("k", width), ("v", dv))
    }
    case.add("q_out", q_out.transpose(1, 2))
    for name, cache in caches.items():
        case.add(f"{name}_out", cache.transpose(1, 2))
    positions = torch.tensor([9, 0, 3, 10])
    case.given["positions"], case.dims["capacity"] = positions, rows
    expected = {name: cache.clone() for name, cache in caches.items()}
    exact = {name: cache.double() for name, cache in caches.items()}
    case.run(nth)
    more = attributes(kernel, "bhsd")
    eager, oracle = (
        QkNormRopeWrite.reference(
            **case.operands(double),
            v=case.given["v"].double() if double else case.given["v"],
            index=positions,
            k_cache=into["k"],
            v_cache=into["v"],
            **more,
        )
        for double, into in ((False, expected), (True, exact))
    )
    assert_numbers(q_out, eager, oracle)
    assert_numbers(caches["k"], expected["k"], exact["k"])
    assert torch.equal(caches["v"], expected["v"])


def test_positions_outside_the_cache_are_not_written() -> None:
    streams = qk_streams((1, 1), 32, weights=("f32", "f32"), cache=True, values=(1, 32))
    kernel = QkNormRopeKernel("f32", streams, Rotation(32))
    case = Case.of(kernel, 1, 3)
    around = torch.full((3, 5, 32), 7.0)  # the cache is the middle one
    case.add("q_out", torch.empty(1, 3, 1, 32))
    for name in "kv":
        case.add(f"{name}_out", around[1].reshape(1, 5, 1, 32))
    case.given["positions"], case.dims["capacity"] = torch.tensor([-1, 5, 4]), 5
    with pytest.raises(IndexError):
        case.run(1)
    assert bool((around[[0, 2]] == 7.0).all())
    assert bool((around[1, :4] == 7.0).all())
    assert torch.equal(around[1, 4], case.given["v"][0, 2, 0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place(dtype: str) -> None:
    case = Case.of(qwen(dtype), 2, 5)
    eager, oracle = (case.reference(double, "bshd") for double in (False, True))
    for name in "qk":
        case.add(f"{name}_out", case.given[name])
    case.run(2)
    for i, name in enumerate("qk"):
        assert_numbers(case.given[name].contiguous(), eager[i].contiguous(), oracle[i])


@pytest.mark.parametrize("style", ["half", "interleaved", "deinterleave"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_alone(dtype: str, style: RopeStyle) -> None:
    """x of ``[B, H, S, D]`` in and out: the strides say so."""
    kernel = rope(dtype, 3, 64, Rotation(32, style, start=32, round=False))
    case = Case.of(kernel, 2, 7)
    x = seeded(2, 3, 7, 64, dtype=DTYPES[dtype])
    y = torch.empty_like(x)
    case.add("x", x.transpose(1, 2))
    case.add("x_out", y.transpose(1, 2))
    case.run(3)
    more = attributes(kernel, "bhsd")
    tables = {n: case.given[n] for n in ("cos", "sin")}
    absent = dict.fromkeys(["q_weight", "k_weight", "q_bias", "k_bias"])
    eager, oracle = (
        QkNormRope.reference(
            q=value.transpose(1, 2), k=value.transpose(1, 2), **absent, **tables, **more
        )[0]
        for value in (x, x.double())
    )
    assert kernel.family == "rope"
    assert_numbers(y, eager, oracle)


def test_bf16_rounds_where_eager_rounds() -> None:
    """Equal to eager but for rare ties: rounding points are eager's, in blocks and one by one."""
    for width in (128, 72):
        kernel = qwen("bf16", width)
        case = check(kernel, tokens=40)
        for got, eager in zip("qk", case.reference(False, "bshd"), strict=True):
            assert float((case.given[f"{got}_out"] != eager).float().mean()) < 2e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_intermediate_rounding(dtype: str) -> None:
    """Never further from the oracle than eager; the tables may then have taken up the weights."""
    whole = Rotation(64, dtype=dtype)
    interleaved = Rotation(32, "interleaved", "half", 16, -1)
    shared = qk_streams((9, 2), 64, weights=(dtype, dtype))
    for more in (
        {"rotation": whole, "cast": "last", "offset": 1.0},
        {"rotation": interleaved, "streams": shared},
        {"rotation": interleaved, "kind": "layer"},
        {"rotation": whole, "streams": qk_streams((9, 2), 64)},
        {"rotation": whole, "order": "rope_norm"},
    ):
        kernel = qwen(dtype, 64, rounded=False, **more)
        case = check(kernel, tokens=6, out="bshd")
        for i, name in enumerate("qk"):
            eager, oracle = (case.reference(double, "bshd")[i] for double in (False, True))
            bound = distance(eager, oracle) if dtype != "f32" else 3e-7
            assert distance(case.given[f"{name}_out"], oracle) <= bound


def test_special_values() -> None:
    """Infinities and NaN come out where eager has them."""
    for dtype in DTYPES:
        case = Case.of(qwen(dtype), 1, 6)
        q = case.given["q"]
        q[0, 0, 0, 3], q[0, 1, 1, 3], q[0, 2] = torch.inf, torch.nan, 0.0
        case.given["q_weight"][7], case.given["q_weight"][8] = torch.inf, torch.nan
        for name in "qk":
            case.add(f"{name}_out", torch.empty_like(case.given[name]).contiguous())
        case.run(1)
        eager, got = case.reference(False, "bshd")[0], case.given["q_out"]
        assert torch.equal(got.isnan(), eager.isnan())
        assert torch.equal(got.isinf(), eager.isinf())


def test_no_geometry_without_meaning() -> None:
    for rotation in (Rotation(66), Rotation(7), Rotation(0), Rotation(32, start=40)):
        with pytest.raises(ValueError, match="rotation"):
            qwen("f32", rotation=rotation)
    with pytest.raises(ValueError, match="across heads"):
        qwen("f32", scope="row", order="rope_norm")
    streams = qk_streams((1, 1), 8, weights=("f32", "bf16"))
    with pytest.raises(ValueError, match="several result dtypes"):
        QkNormRopeKernel("bf16", streams)
