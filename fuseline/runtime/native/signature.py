"""What a call takes, and whether it got that.

A signature gives each dim as a number, a symbol, or None for anything; matching a call finds the
symbols' values. It runs before every call, so it is native code where that can be had; the same in
Python stands beside it, and says what is wrong when something is.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

Size: TypeAlias = "int | str | None"
"""A number, the name of a symbol, or anything."""

DLPACK_CODES = {
    torch.int8: 0,
    torch.int16: 0,
    torch.int32: 0,
    torch.int64: 0,
    torch.uint8: 1,
    torch.uint16: 1,
    torch.uint32: 1,
    torch.uint64: 1,
    torch.float16: 2,
    torch.float32: 2,
    torch.float64: 2,
    torch.bfloat16: 4,
    torch.complex64: 5,
    torch.complex128: 5,
    torch.bool: 6,
    torch.float8_e4m3fn: 10,
    torch.float8_e4m3fnuz: 11,
    torch.float8_e5m2: 12,
    torch.float8_e5m2fnuz: 13,
}
"""DLPack's type codes; a signature with another dtype is matched in Python."""

_ANY, _GREATEST = -(2**63), 2**63 - 1
_LAYOUTS = {"any": 0, "contiguous": 1}
_MEMORY, _ASKEW = {"fixed": 0, "read": 1, "written": 2}, 4

Match: TypeAlias = Callable[["list[object] | tuple[object, ...]"], "tuple[int, ...] | int"]


@dataclass(frozen=True)
class ArgumentSpec:
    """What is expected of one argument.

    Attributes:
        name: for messages.
        dtype: of a tensor; None for an integer, whose value is then `value`.
        shape: one size per dimension.
        strides: in elements, one per dimension (that of an extent of 0 or 1 may be anything);
            or ``"contiguous"``, or ``"any"``.
        value: of an integer.
        memory: whether the program reads or writes it; what is ``"fixed"`` (a weight) is taken to
            share memory with no other argument, which is not looked at.
        aligned: on a GPU, whether it must begin at a multiple of 16 bytes.
    """

    name: str
    dtype: torch.dtype | None
    shape: tuple[Size, ...] = ()
    strides: tuple[Size, ...] | Literal["any", "contiguous"] = "contiguous"
    value: Size = None
    memory: Literal["fixed", "read", "written"] = "fixed"
    aligned: bool = True


@dataclass(frozen=True)
class Mismatch:
    """What is wrong with an argument."""

    argument: str
    found: str
    expected: str


class _Matcher(Protocol):
    @property
    def match(self) -> Match: ...


NativeSignature: TypeAlias = Callable[[bytes, bytes, bytes, int, int], _Matcher]

CPU = torch.device("cpu")
CUDA_ALIGNMENT = 16
"""Bytes that tensors on a GPU begin at a multiple of: kernels read as much at once."""

_DLPACK_DEVICES = {"cpu": 1, "cuda": 2}


class Signature:
    """The arguments of a program. `match` is the call that must be fast.

    Args:
        arguments: in the order of the call.
        symbols: the least and the greatest value of each (None for no end); `match` gives their
            values in this order.
        device: where all tensors must be.
    """

    match: Match
    """``match(arguments)`` gives the symbols' values, or the number of the first argument that is
    wrong (the number of arguments, if there are too many), or ``-1 - number`` of one that shares
    memory with an earlier one, where either of the two is written."""

    def __init__(
        self,
        arguments: Sequence[ArgumentSpec],
        symbols: Mapping[str, tuple[int, int | None]],
        matcher: NativeSignature | None = None,
        *,
        device: torch.device = CPU,
    ) -> None:
        self.device = device
        self.arguments = tuple(arguments)
        self.symbols = dict(symbols)
        self._check()
        compiled = _compiled_match(matcher, self) if matcher is not None else None
        self.match = compiled or self._match

    def mismatch(self, arguments: Sequence[object], number: int) -> Mismatch:
        """What is wrong with the argument that `match` gave the number of."""
        if number >= len(self.arguments) or number >= len(arguments):
            return Mismatch("the arguments", str(len(arguments)), str(len(self.arguments)))
        spec, actual = self.arguments[number], arguments[number]
        known: dict[str, int] = {}
        for earlier, given in zip(self.arguments[:number], arguments, strict=False):
            self._agrees(earlier, given, known)
        return Mismatch(spec.name, _describe(actual), self._expectation(spec, known))

    def _match(self, arguments: Sequence[object]) -> tuple[int, ...] | int:
        known: dict[str, int] = {}
        for number, spec in enumerate(self.arguments):
            if number >= len(arguments) or not self._agrees(spec, arguments[number], known):
                return number
        if len(arguments) > len(self.arguments):
            return len(self.arguments)
        if overlap := self._overlap(arguments):
            return -1 - overlap[1]
        # A stride of an extent of 1 tells nothing: any value will do.
        return tuple(known.get(name, least) for name, (least, _) in self.symbols.items())

    def overlap(self, arguments: Sequence[object]) -> tuple[str, str] | None:
        """The names of an argument that shares memory with an earlier one, and of that, where one
        of the two is written; None where there are none."""
        found = self._overlap(arguments)
        if found is None:
            return None
        return self.arguments[found[1]].name, self.arguments[found[0]].name

    def _overlap(self, arguments: Sequence[object]) -> tuple[int, int] | None:
        """The first argument that shares memory with an earlier one, and that, as (that, it).

        What lies between the elements of a tensor counts as its memory.
        """
        seen: list[tuple[int, int, int, str]] = []
        for number, (spec, tensor) in enumerate(zip(self.arguments, arguments, strict=False)):
            if spec.memory == "fixed" or not isinstance(tensor, Tensor) or not tensor.numel():
                continue
            reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            first = tensor.data_ptr()
            last = first + reach * tensor.element_size()
            for earlier, begin, end, memory in seen:
                written = "written" in (memory, spec.memory)
                if written and begin <= last and first <= end:
                    return earlier, number
            seen.append((number, first, last, spec.memory))
        return None

    def _agrees(self, spec: ArgumentSpec, actual: object, known: dict[str, int]) -> bool:
        if spec.dtype is None:
            return isinstance(actual, int) and self._size(spec.value, actual, known)
        if not isinstance(actual, Tensor) or actual.device != self.device:
            return False
        if self._must_align(spec) and actual.data_ptr() % CUDA_ALIGNMENT:
            return False
        if actual.dtype != spec.dtype or actual.ndim != len(spec.shape):
            return False
        if not all(self._size(*pair, known) for pair in zip(spec.shape, actual.shape, strict=True)):
            return False
        if spec.strides == "contiguous":
            return actual.is_contiguous()
        if spec.strides == "any":
            return True
        strides = zip(spec.strides, actual.stride(), actual.shape, strict=True)
        return all(extent < 2 or self._size(size, s, known) for size, s, extent in strides)

    def _must_align(self, spec: ArgumentSpec) -> bool:
        return self.device.type == "cuda" and spec.aligned

    def _size(self, expected: Size, actual: int, known: dict[str, int]) -> bool:
        if expected is None or isinstance(expected, int):
            return expected is None or expected == actual
        if expected in known:
            return known[expected] == actual
        known[expected] = actual
        least, greatest = self.symbols[expected]
        return least <= actual and (greatest is None or actual <= greatest)

    def _expectation(self, spec: ArgumentSpec, known: Mapping[str, int]) -> str:
        if spec.dtype is None:
            return f"int {self._bound(spec.value, known)}"
        text = f"{spec.dtype}[{', '.join(self._bound(size, known) for size in spec.shape)}]"
        if spec.strides == "contiguous":
            text += " contiguous"
        elif spec.strides != "any":
            text += f" with strides [{', '.join(self._bound(s, known) for s in spec.strides)}]"
        if self._must_align(spec):
            text += f" at a multiple of {CUDA_ALIGNMENT} bytes"
        return f"{text} on {self.device}"

    def _bound(self, size: Size, known: Mapping[str, int]) -> str:
        if not isinstance(size, str):
            return "any" if size is None else str(size)
        if size in known:
            return f"{size}={known[size]}"
        least, greatest = self.symbols[size]
        return f"{size} in {least}..{'' if greatest is None else greatest}"

    def _check(self) -> None:
        """Every symbol must be read from some argument.

        Raises:
            ValueError: one is not, or one is read and has no range.
        """
        read: set[str] = set()
        for spec in self.arguments:
            strides = () if isinstance(spec.strides, str) else spec.strides
            if strides and len(strides) != len(spec.shape):
                raise ValueError(f"{spec.name}: {len(spec.shape)} dims, {len(strides)} strides")
            read |= {s for s in (*spec.shape, *strides, spec.value) if isinstance(s, str)}
        if read != set(self.symbols):
            odd = sorted(read ^ set(self.symbols))
            raise ValueError(f"symbols without a range, or that no argument shows: {odd}")


def _compiled_match(matcher: NativeSignature, signature: Signature) -> Match | None:
    """The native `match`: the signature as the arrays that ``binding.cpp`` describes."""
    expected: list[int] = []
    words: list[int] = []
    numbers = {name: number for number, name in enumerate(signature.symbols)}
    for spec in signature.arguments:
        if spec.dtype is None:
            expected += [1, 0, 0, 0, 0]
            words.append(_word(spec.value, numbers))
            continue
        code = DLPACK_CODES.get(spec.dtype)
        if code is None:
            return None
        layout = _LAYOUTS.get(spec.strides, 2) if isinstance(spec.strides, str) else 2
        strides = (None,) * len(spec.shape) if isinstance(spec.strides, str) else spec.strides
        expected += [0, code * 256 + spec.dtype.itemsize * 8, len(spec.shape), layout]
        expected.append(_MEMORY[spec.memory] + (0 if spec.aligned else _ASKEW))
        words += [_word(size, numbers) for size in (*spec.shape, *strides)]
    ranges = [
        bound
        for least, greatest in signature.symbols.values()
        for bound in (least, _GREATEST if greatest is None else greatest)
    ]
    arrays = (array("i", expected), array("q", words), array("q", ranges))
    device = signature.device
    kind = _DLPACK_DEVICES[device.type]
    packed = (arrays[0].tobytes(), arrays[1].tobytes(), arrays[2].tobytes())
    return matcher(*packed, kind, device.index or 0).match


def _word(size: Size, numbers: Mapping[str, int]) -> int:
    if size is None:
        return _ANY
    return _ANY + 1 + numbers[size] if isinstance(size, str) else size


def _describe(actual: object) -> str:
    if not isinstance(actual, Tensor):
        return f"int {actual}" if isinstance(actual, int) else type(actual).__name__
    text = f"{actual.dtype}[{', '.join(map(str, actual.shape))}]"
    if actual.layout is not torch.strided:
        text += f" of layout {actual.layout}"
    elif not actual.is_contiguous():
        text += f" with strides [{', '.join(map(str, actual.stride()))}]"
    return f"{text} on {actual.device}"
