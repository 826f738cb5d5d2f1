"""Inputs as the command line describes them: ``input_ids:int64[1..8,S=1..2048]``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from fuseline import errors
from fuseline.artifact.codec import DTYPES

T = TypeVar("T")

EXAMPLES = (3, 5, 7, 11, 13, 17, 19, 23)
"""Sizes of example inputs, one for each dim that varies: no two alike, and none that is a product
of others, so that tracing takes none for another.
"""

_INPUT = re.compile(r"(?P<name>[^\[\]]+):(?P<dtype>\w+)\[(?P<dims>[^\]]*)\]")
_DIM = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<low>\d+)(?:\.\.(?P<high>\d+))?")


@dataclass(frozen=True)
class Extent:
    """A dim: one size, or a range, which dims of one name share.

    Attributes:
        low: the least size.
        high: the greatest size.
        name: of the dim; empty where it has none.
    """

    low: int
    high: int
    name: str = ""

    @property
    def varies(self) -> bool:
        """Whether there is more than one size."""
        return self.low < self.high


@dataclass(frozen=True)
class InputSpec:
    """An input by name."""

    name: str
    dtype: torch.dtype
    dims: tuple[Extent, ...]


def parse(text: str) -> InputSpec:
    """One input.

    Raises:
        UsageError: FL0103, if the text is no input.

    """
    found = _INPUT.fullmatch(text.replace(" ", ""))
    expected = "such as input_ids:int64[1..8,S=1..2048]"
    if found is None or found["dtype"] not in DTYPES:
        raise errors.BAD_ARGUMENT.error("--input", found=repr(text), expected=expected)
    dims: list[Extent] = []
    for part in found["dims"].split(",") if found["dims"] else []:
        dim = _DIM.fullmatch(part)
        if dim is None:
            raise errors.BAD_ARGUMENT.error("--input", found=repr(part), expected=expected)
        low = int(dim["low"])
        extent = Extent(low, int(dim["high"] or low), dim["name"] or "")
        if extent.high < extent.low:
            raise errors.BAD_ARGUMENT.error("--input", found=repr(part), expected="a rising range")
        dims.append(extent)
    return InputSpec(found["name"], DTYPES[found["dtype"]], tuple(dims))


def examples(specs: Sequence[InputSpec], below: int = 2) -> tuple[dict[str, Tensor], Any]:
    """Seeded tensors of these shapes by name, and the dims of each that vary, for torch's export.

    Args:
        specs: the inputs.
        below: what integers are smaller than: they may be indices of a table.

    """
    sizes = iter(EXAMPLES)
    known: dict[str, tuple[Extent, int, Any]] = {}
    tensors: dict[str, Tensor] = {}
    dynamic: dict[str, dict[int, Any]] = {}
    generator = torch.Generator().manual_seed(0)
    for spec in specs:
        shape: list[int] = []
        varying: dict[int, Any] = {}
        for axis, extent in enumerate(spec.dims):
            if not extent.varies:
                shape.append(extent.low)
                continue
            name = extent.name or f"{spec.name}_{axis}"
            if name not in known:
                size = min(max(next(sizes, 29), extent.low), extent.high)
                # 0 and 1 are special to tracing: larger examples stand for them, too.
                dim = torch.export.Dim(name, min=extent.low, max=extent.high)
                known[name] = extent, size, dim
            other, size, dim = known[name]
            if other != extent:
                raise errors.BAD_ARGUMENT.error(
                    "--input", found=f"two ranges of {name}", expected="one range for a name"
                )
            shape.append(size)
            varying[axis] = dim
        tensors[spec.name] = _seeded(spec.dtype, shape, below, generator)
        dynamic[spec.name] = varying
    return tensors, dynamic


def arguments(
    forward: Callable[..., Any], given: Mapping[str, T]
) -> tuple[tuple[T, ...], dict[str, T]]:
    """How a function is called with inputs by name: by keyword, where that can be.

    What a signature takes by place alone goes there. Names that it does not have are further
    arguments, in the order in which they are given, where it takes any number of them.

    Raises:
        UsageError: FL0103, where the function cannot be called with these.

    """
    signature = inspect.signature(forward)
    parameters = signature.parameters.values()
    named = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    kinds = {p.kind for p in parameters}
    further: list[T] = []
    if inspect.Parameter.VAR_POSITIONAL in kinds and inspect.Parameter.VAR_KEYWORD not in kinds:
        further = [value for name, value in given.items() if name not in named]
    by_place = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
    if further:  # they stand behind all that has a place
        by_place += [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    first = [name for name in by_place if name in given]
    keywords = {n: v for n, v in given.items() if n not in first and (n in named or not further)}
    args = (*(given[name] for name in first), *further)
    try:
        if first != by_place[: len(first)] or (further and len(first) < len(by_place)):
            missing = next(name for name in by_place if name not in given)
            raise TypeError(f"missing a required argument: {missing!r}")
        signature.bind(*args, **keywords)
    except TypeError as error:
        raise errors.BAD_ARGUMENT.error(
            "--input", found=str(error), expected=f"those of forward{_bare(signature)}"
        ) from error
    return args, keywords


def by_parameter(
    forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Dims that vary of all arguments of a call, by parameter, as torch's export takes them.

    Raises:
        UsageError: FL0103, for one that is given as one of any keywords: torch's export takes no
            dims that vary beside such.

    """
    signature = inspect.signature(forward)
    if loose := [name for name in kwargs if name not in signature.parameters]:
        raise errors.BAD_ARGUMENT.error(
            "--input",
            found=f"sizes that vary, and {loose[0]}, which forward{_bare(signature)} does not name",
            expected="fixed sizes",
        )
    return dict(signature.bind(*args, **kwargs).arguments)


def _bare(signature: inspect.Signature) -> inspect.Signature:
    """A signature without types, which take up most of a line."""
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return inspect.Signature(bare)


def _seeded(
    dtype: torch.dtype, shape: Sequence[int], below: int, generator: torch.Generator
) -> Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        wide = torch.complex64 if dtype.is_complex else torch.float32
        return torch.randn(shape, generator=generator, dtype=wide).to(dtype)
    high = 2 if dtype is torch.bool else max(2, below)
    return torch.randint(0, high, shape, generator=generator).to(dtype)


def dims_of(shape: Sequence[int]) -> tuple[Extent, ...]:
    """A shape that does not vary."""
    return tuple(Extent(n, n) for n in shape)


__all__ = ["Extent", "InputSpec", "arguments", "by_parameter", "dims_of", "examples", "parse"]
