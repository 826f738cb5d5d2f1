"""Attention and norms beyond what the standard operators of ONNX say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fuseline.ir.ops.raised import Attention, LayerNorm, RmsNorm
from tests.exporting.onnx.running import assert_as_torch, built, seeded

FORMS: list[dict[str, Any]] = [{}, {"causal": True}, {"window": 2}]


def attends(dtype: torch.dtype, *, scale: float, masked: bool, error: float, **form: Any) -> None:
    """Grouped heads, as the reference has them."""
    q = seeded(2, 4, 3, 8, dtype=dtype)
    k, v = (seeded(2, 2, 9, 8, dtype=dtype, seed=n) for n in (1, 2))
    mask = [seeded(3, 9, dtype=torch.bool)] if masked else []

    def make(args: Any) -> Attention:
        given = args[3] if masked else None
        return Attention(args[0], args[1], args[2], given, None, None, scale=scale, **form)

    assert_as_torch(built(make, [q, k, v, *mask]), [q, k, v, *mask], atol=error, rtol=error)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_attention_whose_scale_has_no_root(
    scale: float, masked: bool, form: dict[str, Any]
) -> None:
    attends(torch.float32, scale=scale, masked=masked, error=1e-5, **form)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_float64(masked: bool, form: dict[str, Any]) -> None:
    attends(torch.float64, scale=8**-0.5, masked=masked, error=1e-13, **form)


@pytest.mark.parametrize("cast", ["last", "before_weight"])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm_of_float64(offset: float, cast: Any) -> None:
    x, weight = seeded(3, 9, dtype=torch.float64) * 1e-3, seeded(9, dtype=torch.float64)

    def make(args: Any) -> RmsNorm:
        return RmsNorm(args[0], args[1], eps=1e-6, offset=offset, cast=cast)

    assert_as_torch(built(make, [x, weight]), [x, weight], rtol=1e-13)
    bare = built(lambda args: RmsNorm(args[0], None, eps=1e-6), [x])
    assert_as_torch(bare, [x], rtol=1e-13)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_layer_norm_of_float64(count: int) -> None:
    x = seeded(3, 9, dtype=torch.float64) * 1e-3
    given = [x, *(seeded(9, dtype=torch.float64, seed=n) for n in range(count))]

    def make(args: Any) -> LayerNorm:
        params = [*args[1:], None, None]
        return LayerNorm(args[0], params[0], params[1], eps=1e-5)

    assert_as_torch(built(make, given), given, rtol=1e-12, atol=1e-14)
