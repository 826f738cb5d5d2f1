"""The row kernels on processors with narrower vectors, run, and with wider ones, compiled."""

from __future__ import annotations

import platform

import pytest
import torch

from fuseline.codegen.cpu.attention import BlockedAttentionKernel, DecodeAttentionKernel
from fuseline.codegen.cpu.gather import ArgmaxKernel
from fuseline.codegen.cpu.norm import NormKernel
from fuseline.codegen.cpu.qk_norm_rope import QkNormRopeKernel
from fuseline.codegen.heads import Rotation, qk_streams
from fuseline.codegen.kernel import KernelTemplate
from tests.codegen.cpu import (
    harness,
    test_attention,
    test_gather,
    test_latent,
    test_norm,
    test_qk_norm_rope,
)
from tests.codegen.oracle import DTYPES

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of x86-64")


def qwen(dtype: str, width: int) -> QkNormRopeKernel:
    streams = qk_streams((3, 2), width, weights=(dtype, "f32"))
    return QkNormRopeKernel(dtype, streams, Rotation(width, dtype=dtype), cast="last")


@pytest.mark.parametrize("march", ["x86-64"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_narrow_vectors(dtype: str, march: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "NATIVE", [f"-march={march}"])
    test_norm.check(NormKernel(dtype, 76, weight=dtype, residual=True), 3, 2)
    test_qk_norm_rope.check(qwen(dtype, 32))
    test_qk_norm_rope.check(qwen(dtype, 36))
    for kind in (DecodeAttentionKernel, BlockedAttentionKernel):
        kernel = kind(dtype, 2, 36, 20, 0.2, causal=True, positions=True, softcap=5.0)
        case = test_attention.Case(queries=5, positions=torch.arange(5) + 40)
        test_attention.check(kernel, case, nth=2)
    geometry = test_latent.Geometry(latent=20, key=12)
    for name in test_latent.KINDS:
        latent = geometry.kernel(name, dtype, causal=True, positions=True)
        positions = torch.arange(5) + 40
        case = test_latent.Case(geometry, queries=5, positions=positions)
        test_latent.check(latent, case, nth=2)
    x = torch.arange(3000.0).remainder(997).to(DTYPES[dtype]).view(2, 1500)
    assert torch.equal(test_gather.argmax(x, dtype, 2), x.argmax(-1))


@pytest.mark.parametrize("march", ["x86-64-v4"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_vectors_compile(dtype: str, march: str) -> None:
    """Loading code for another processor is harmless; nothing of it is called."""
    kernels: list[KernelTemplate] = [
        NormKernel(dtype, 96, weight="f32"),
        qwen(dtype, 128),
        qwen(dtype, 80),
        DecodeAttentionKernel(dtype, 2, 80, 80, 0.2, causal=True, positions=True),
        BlockedAttentionKernel(dtype, 2, 128, 128, 0.2, causal=True),
        ArgmaxKernel(dtype),
        *test_latent.Geometry(16, 64, 64, 256, 32).kernel("absorbed", dtype).launches(),
        test_latent.Geometry(16, 64, 64, 256, 32).kernel("expanded", dtype),
    ]
    for kernel in kernels:
        harness.build(kernel, [f"-march={march}"])
