"""Tensors as an ONNX file holds them."""

from __future__ import annotations

import sys
from typing import Any, cast

import onnx
import torch
from torch import Tensor

from fuseline.frontend.onnx.data import element_of
from fuseline.ir.types import DType


def bytes_of(tensor: Tensor) -> memoryview:
    """The elements of a tensor in row-major order, little end first."""
    assert sys.byteorder == "little", "fuseline runs on little-endian machines"
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(cast("Any", flat.view(torch.uint8).numpy() if flat.numel() else b""))


def proto_of(tensor: Tensor, name: str) -> onnx.TensorProto:
    """A tensor with its data inside."""
    proto = typed(tensor, name)
    proto.raw_data = bytes(bytes_of(tensor))
    return proto


def typed(tensor: Tensor, name: str) -> onnx.TensorProto:
    """The name, type and shape of a tensor."""
    proto = onnx.TensorProto(
        name=name, data_type=cast("Any", element_of(DType.from_torch(tensor.dtype)))
    )
    proto.dims.extend(tensor.shape)
    return proto


__all__ = ["bytes_of", "proto_of", "typed"]
