"""The registry of importer functions: by domain, operator and range of versions.

    @onnx_op("ReduceSum", since=13)
    def _reduce_sum(n: Node) -> Value: ...

An importer function takes a `Node` and gives the result, or a sequence of results of which those
that the graph does not name may be None. It raises `Unsupported` for what it cannot do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from fuseline.frontend.onnx.node import Node

MICROSOFT = "com.microsoft"
"""The domain of the operators that onnxruntime adds."""

Importer: TypeAlias = "Callable[[Node], Any]"
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class Unsupported(Exception):
    """What an operator asks for has no meaning here; the message says what it is."""


class NeedsValue(Exception):
    """A shape, or what decides the result's type, is data that only a run has.

    Attributes:
        value: the ONNX value that would have to be known.
        inputs: the graph inputs that it is computed from.
    """

    def __init__(self, value: str, inputs: frozenset[str]) -> None:
        super().__init__(value)
        self.value = value
        self.inputs = inputs


@dataclass(frozen=True)
class Entry:
    """One importer function and the versions of the operator set that it is for."""

    since: int
    until: int | None
    importer: Importer


REGISTRY: dict[tuple[str, str], list[Entry]] = {}
"""The importer functions of each operator, by domain (empty for the standard one) and name."""


def onnx_op(
    *names: str, domain: str = "", since: int = 1, until: int | None = None
) -> Callable[[FunctionT], FunctionT]:
    """Register an importer function for operators, from version ``since`` up to before ``until``.

    Raises:
        ValueError: another function is registered for one of the versions.

    """

    def register(function: FunctionT) -> FunctionT:
        for name in names:
            entries = REGISTRY.setdefault((domain, name), [])
            for entry in entries:
                if (until is None or entry.since < until) and (
                    entry.until is None or since < entry.until
                ):
                    raise ValueError(f"{domain}::{name} has two importer functions")
            entries.append(Entry(since, until, function))
        return function

    return register


def importer_of(domain: str, name: str, version: int) -> Importer | None:
    """The importer function of an operator in a version of its set; None where there is none."""
    for entry in REGISTRY.get((domain, name), ()):
        if entry.since <= version and (entry.until is None or version < entry.until):
            return entry.importer
    return None
