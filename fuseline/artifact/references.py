"""Ops that run by their references: the only part of loading that needs the IR."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from fuseline.artifact.codec import MalformedError
from fuseline.ir.evaluate import Reference
from fuseline.ir.text import parse_func
from fuseline.runtime.plan import HostCall

MOST_TEXT = 16 << 20
"""Characters of a func: it takes some time to read."""


def references(
    text: str, ops: Collection[int], traced: Mapping[str, str]
) -> Mapping[int, HostCall]:
    """The references of some ops of a func, by their numbers in it.

    Args:
        text: of the func.
        ops: the numbers.
        traced: what the func calls a size that the plan has another name for.

    Raises:
        MalformedError: the text is no func, or has no such op.

    """
    if len(text) > MOST_TEXT:
        raise MalformedError(f"a func of {len(text)} characters")
    try:
        func = parse_func(text)
    except Exception as error:  # what ops say of operands that no compiler has given them
        said = f"{type(error).__name__}: {error}"
        raise MalformedError(f"a func that cannot be read: {said[:200]}") from error
    if any(not 0 <= number < len(func.ops) for number in ops):
        raise MalformedError(f"a func of {len(func.ops)} ops that lacks one")
    return {number: _call(Reference(func.ops[number]), traced) for number in ops}


def _call(reference: Reference, traced: Mapping[str, str]) -> HostCall:
    def call(binding: Mapping[str, int], tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        own = {traced.get(name, name): value for name, value in binding.items()}
        return reference(own, tensors)

    return call if traced else reference


__all__ = ["references"]
