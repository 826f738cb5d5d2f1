"""Tensors and types of an ONNX file as torch's and the IR's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from fuseline.expressions import is_size_name
from fuseline.frontend.onnx.registry import Unsupported
from fuseline.ir.types import Dim, DType, TensorType, dim, free_symbols, parse_dim, symbol

_DTYPES = {
    TensorProto.FLOAT: DType.F32,
    TensorProto.DOUBLE: DType.F64,
    TensorProto.FLOAT16: DType.F16,
    TensorProto.BFLOAT16: DType.BF16,
    TensorProto.INT64: DType.I64,
    TensorProto.INT32: DType.I32,
    TensorProto.INT16: DType.I16,
    TensorProto.INT8: DType.I8,
    TensorProto.UINT8: DType.U8,
    TensorProto.BOOL: DType.BOOL,
}
_ELEMENTS = {d: t for t, d in _DTYPES.items()}


def dtype_of(element: int) -> DType:
    """The IR's element type of an ONNX one.

    Raises:
        Unsupported: the IR has none.

    """
    found = _DTYPES.get(cast("Any", element))
    if found is None:
        raise Unsupported(f"the element type {TensorProto.DataType.Name(cast('Any', element))}")
    return found


def element_of(dtype: DType) -> int:
    """The ONNX element type of an IR one."""
    return _ELEMENTS[dtype]


def to_torch(proto: TensorProto, folder: Path | None) -> Tensor:
    """The tensor of a proto; external data are read from the folder of the model.

    Raises:
        Unsupported: the IR does not have its element type.
        NoDataError: its data are in a file that is not there.

    """
    dtype = dtype_of(proto.data_type)
    if proto.data_location == TensorProto.EXTERNAL:
        _check_file(proto, folder)
    array = cast("Any", numpy_helper).to_array(proto, str(folder or ""))
    if dtype is DType.BF16:
        bits = np.ascontiguousarray(array).view(np.uint16).astype(np.int16)
        return from_numpy(bits.reshape(array.shape)).view(torch.bfloat16)
    return from_numpy(array)


class NoDataError(Exception):
    """The file with a tensor's data is not there; what was looked for, and what helps."""

    def __init__(self, found: str, hint: str) -> None:
        super().__init__(found)
        self.found, self.hint = found, hint


def _check_file(proto: TensorProto, folder: Path | None) -> None:
    """See that the file with a tensor's data is there; that it lies below the folder, and is a
    plain one, is for the package onnx to check.
    """
    places = {str(entry.key): str(entry.value) for entry in proto.external_data}
    name = places.get("location", "")
    if folder is None:
        raise NoDataError(
            f"data in the file {name!r}, beside a model that was given without its place",
            "give the path of the model, or load it by onnx.load, which reads such files",
        )
    if not (folder / name).exists():
        raise NoDataError(
            f"no file {name!r} in {folder.resolve()}",
            "keep a model and the files that it names in one folder",
        )


def from_numpy(array: Any) -> Tensor:
    """A tensor of its own memory, 0-d arrays and ones that cannot be written included."""
    tensor: Tensor = cast("Any", torch).from_numpy(np.array(array, order="C"))
    return tensor if tensor.numel() else tensor.new_empty(tensor.shape)  # numpy has strides of 0


def tensor_type_of(proto: onnx.TypeProto, named: Mapping[str, str], unnamed: str) -> TensorType:
    """The type of a graph's input.

    A dim without a size is a symbol: of its ``dim_param``, under the name that ``named`` gives it,
    or its own, ``unnamed`` and the number of the axis.

    Raises:
        Unsupported: it is no tensor, has no rank, or an element type that the IR does not have.

    """
    kind = proto.WhichOneof("value")
    if kind != "tensor_type":
        raise Unsupported(f"a {str(kind or 'value without type').removesuffix('_type')}")
    tensor = proto.tensor_type
    dtype = dtype_of(tensor.elem_type)
    if not tensor.HasField("shape"):
        raise Unsupported("a tensor whose rank the file does not tell")
    shape: list[Dim] = []
    for axis, each in enumerate(tensor.shape.dim):
        if each.HasField("dim_value"):
            shape.append(int(each.dim_value))
        elif each.dim_param in named:
            shape.append(parse_dim(named[each.dim_param]))
        else:
            shape.append(symbol(f"{unnamed}_{axis}"))
    return TensorType(dtype, tuple(shape))


def name_dims(graph: onnx.GraphProto) -> dict[str, str]:
    """The text of the dim that each ``dim_param`` of a graph's inputs stands for.

    A plain name is a symbol; an expression over names that other dims have is that expression, any
    other one a symbol of its own.
    """
    params = {
        each.dim_param: None
        for item in graph.input
        if item.type.HasField("tensor_type")
        for each in item.type.tensor_type.shape.dim
        if each.dim_param
    }
    named: dict[str, str] = {}
    named.update({p: p for p in params if is_size_name(p)})
    for param in params:
        named.setdefault(param, _expression(param, set(named)) or _fresh(param, named))
    return named


def _expression(text: str, known: set[str]) -> str | None:
    try:
        extent = parse_dim(text)
    except ValueError:
        return None
    return text if free_symbols(extent) <= known else None


def _fresh(param: str, named: Mapping[str, str]) -> str:
    plain = "d_" + re.sub(r"\W+", "_", param, flags=re.ASCII).strip("_")
    while plain in named.values():
        plain += "_"
    return plain


def exact(value: Any) -> Any:
    """A number, or a size, as it is computed with beside dims: an int where it is whole."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


__all__ = [
    "dim",
    "dtype_of",
    "element_of",
    "exact",
    "from_numpy",
    "name_dims",
    "tensor_type_of",
    "to_torch",
]
