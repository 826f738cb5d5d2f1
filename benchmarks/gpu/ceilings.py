"""What the device can do at most: copy, read, and multiply matrices."""

from __future__ import annotations

import torch

from benchmarks.common import Json, medians
from benchmarks.gpu.device import Device


def measure(device: Device) -> Json:
    """Bytes a second of a large copy (read and written) and of a sum over a large buffer, and
    floating-point operations a second of a large bfloat16 product.
    """
    nbytes, width = (1 << 22, 128) if device.quick else (1 << 30, 8192)
    source = device.random(nbytes // 2, seed=1)
    target = torch.empty_like(source)
    numbers = source.view(torch.float32)[: nbytes // 4].nan_to_num()
    left, right = (device.random(width, width, seed=seed) for seed in (2, 3))
    product = torch.empty_like(left)
    samples = device.samples(
        {
            "copy": lambda: target.copy_(source),
            "read": lambda: numbers.sum(),
            "matmul": lambda: torch.mm(left, right, out=product),
        }
    )
    middle = medians(samples)
    return {
        "copy_bytes_per_s": 2 * nbytes / middle["copy"],
        "read_bytes_per_s": nbytes / middle["read"],
        "matmul_flops_per_s": 2 * width**3 / middle["matmul"],
        "median_s": middle,
        "samples_s": samples,
    }
