"""Types of a model's inputs, narrower than the file has them: sizes fixed, ranges, names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import sympy
import torch

from fuseline import errors
from fuseline.expressions import is_size_name
from fuseline.ir.types import Dim, Range, TensorType, dim, format_dim, free_symbols, symbol


class Extent(Protocol):
    """A dim as it is asked for: a size, or a range, which dims of one name share.

    Attributes:
        low: the least size.
        high: the greatest one.
        name: of the dim; empty where it keeps that of the file.
    """

    @property
    def low(self) -> int:
        """See there."""
        ...

    @property
    def high(self) -> int:
        """See there."""
        ...

    @property
    def name(self) -> str:
        """See there."""
        ...


class Spec(Protocol):
    """An input as it is asked for, such as `fuseline.exporting.inputs.parse` gives it.

    Attributes:
        name: of the input.
        dtype: the one that the file says.
        dims: one for each that the file says.
    """

    @property
    def name(self) -> str:
        """See there."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """See there."""
        ...

    @property
    def dims(self) -> Sequence[Extent]:
        """See there."""
        ...


@dataclass
class _Asked:
    """What the symbols of the file, which are open, become."""

    open: Collection[str]
    dims: dict[str, Dim] = field(default_factory=dict[str, Dim])
    ranges: dict[str, Range] = field(default_factory=dict[str, Range])
    places: dict[str, str] = field(default_factory=dict[str, str])

    def note(self, where: str, name: str, extent: Extent) -> None:
        """A symbol of the file is to be this.

        Raises:
            InputError: FL0823, it was to be something else.

        """
        new: Dim = extent.low
        if extent.low != extent.high:
            new = symbol(extent.name or name)
            self._range(where, extent.name or name, Range(extent.low, extent.high))
        if self.dims.setdefault(name, new) != new:
            found = f"{format_dim(new)}, and {format_dim(self.dims[name])} for the same size"
            raise errors.ONNX_INPUT.error(where, found=found, expected=f"one for {name}")

    def _range(self, where: str, name: str, limits: Range) -> None:
        if not is_size_name(name):
            raise errors.ONNX_INPUT.error(where, found=f"a size of the name {name!r}")
        if self.ranges.setdefault(name, limits) != limits:
            found = f"{limits}, and {self.ranges[name]} for the same size"
            raise errors.ONNX_INPUT.error(where, found=found, expected=f"one range of {name}")
        self.places.setdefault(name, where)

    def check_names(self) -> None:
        """Hold new names to those of sizes that were not asked for, and stay what they are.

        Raises:
            InputError: FL0823, one of them is given to another size.

        """
        for name, where in self.places.items():
            if name in self.open and name not in self.dims:
                found = f"{name}, which is another size of the model"
                raise errors.ONNX_INPUT.error(where, found=found, expected="another name")


def narrowed(
    types: Mapping[str, TensorType], wanted: Iterable[Spec]
) -> tuple[dict[str, TensorType], dict[str, Range]]:
    """The types of all inputs, and the ranges of symbols, as they are asked for.

    A size that the file leaves open may be fixed, or get a range and a name; what it has in common
    with other dims it keeps. One that the file fixes, or computes of others, stays.

    Raises:
        InputError: FL0823, for an input that is not there, or of another form.

    """
    asked = _Asked({s for kind in types.values() for d in kind.shape for s in free_symbols(d)})
    computed: list[tuple[str, Any, Extent]] = []
    for spec in wanted:
        if not hasattr(spec, "dims"):
            hint = "fuseline.exporting.inputs.parse makes one of a text"
            raise errors.ONNX_INPUT.error(
                "inputs", found=repr(spec), expected="InputSpec objects", hint=hint
            )
        kind = types.get(spec.name)
        if kind is None:
            raise errors.ONNX_INPUT.error(
                spec.name, found="no such input", expected=", ".join(types) or "none"
            )
        if kind.dtype.torch != spec.dtype or kind.rank != len(spec.dims):
            found = f"{spec.dtype} with {len(spec.dims)} dims".removeprefix("torch.")
            raise errors.ONNX_INPUT.error(spec.name, found=found, expected=str(kind))
        for axis, (have, extent) in enumerate(zip(kind.shape, spec.dims, strict=True)):
            where = f"{spec.name}, dim {axis}"
            if isinstance(have, sympy.Symbol):
                asked.note(where, str(have), extent)
            else:
                computed.append((where, have, extent))
    asked.check_names()
    found = {
        name: kind.with_shape(tuple(_become(d, asked.dims) for d in kind.shape))
        for name, kind in types.items()
    }
    for where, have, extent in computed:
        new = _become(have, asked.dims)
        if not extent.low == extent.high == new:
            given = f"{extent.low}" + (f"..{extent.high}" if extent.high != extent.low else "")
            expected = f"{format_dim(new)}, as the file has it"
            raise errors.ONNX_INPUT.error(where, found=given, expected=expected)
    return found, asked.ranges


def _become(have: Dim, dims: Mapping[str, Dim]) -> Dim:
    if isinstance(have, int):
        return have
    pairs = {symbol(name): new for name, new in dims.items()}
    return dim(cast("Any", have).subs(pairs, simultaneous=True))


__all__ = ["Extent", "Spec", "narrowed"]
