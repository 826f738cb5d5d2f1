"""What ``binding.cpp`` does, in Python: for an interpreter without headers, or an older torch."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from fuseline.runtime.native.piece import Run
from fuseline.runtime.native.structures import Functions


def run_by_ctypes(functions: Functions) -> Run:
    """The `Run` that reads tensors with ``data_ptr``."""

    def run(address: int, tensors: Sequence[Tensor | None]) -> bool | int:
        _refuse_other_sequences(tensors)
        if functions.piece_begin(address):
            return False
        try:
            for slot, tensor in enumerate(tensors):
                if tensor is not None and functions.piece_uses(address, slot):
                    functions.piece_set(address, slot, _memory(tensor, slot))
            functions.piece_go(address)
            return functions.piece_fault(address) or True
        finally:
            functions.piece_end(address)

    return run


Addresses: TypeAlias = Callable[["list[Any] | tuple[Any, ...]", bytes], bytes]
"""``addresses(arguments, numbers)``: where the tensors with these numbers (int32, as bytes) lie."""


def addresses_of(arguments: Sequence[object], numbers: bytes) -> bytes:
    """The `Addresses` that reads tensors with ``data_ptr``."""
    _refuse_other_sequences(arguments)
    found = array("Q")
    for number in array("i", numbers):
        tensor = arguments[number] if 0 <= number < len(arguments) else None
        if not isinstance(tensor, Tensor) or tensor.device.type not in ("cpu", "cuda"):
            raise TypeError(f"argument {number}: expected a tensor on the CPU or a GPU")
        found.append(tensor.data_ptr())
    return found.tobytes()


def _refuse_other_sequences(tensors: object) -> None:
    if not isinstance(tensors, list | tuple):
        raise TypeError(f"expected a list or a tuple, not {type(tensors).__name__}")


def _memory(tensor: object, slot: int) -> int:
    if isinstance(tensor, Tensor) and tensor.device.type in ("cpu", "cuda"):
        try:
            return tensor.data_ptr()
        except RuntimeError:
            pass  # it has no memory
    raise TypeError(f"slot {slot}: expected a tensor on the CPU or a GPU, not {type(tensor)}")
