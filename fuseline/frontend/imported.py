"""A program that comes as IR, without a graph of torch: what `Captured` says of one that has it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from fuseline.frontend.captured import InputKind, Return, Symbol
from fuseline.ir.core import Func


@dataclass(frozen=True)
class Item:
    """A flat input.

    Attributes:
        name: of a weight or a constant, where it is stored; else what the caller knows it by.
        kind: what it is.
        actual: the tensor itself, of all inputs that are no user's.
        written: whether the program gives it new contents; none does so far.
    """

    name: str
    kind: InputKind
    actual: Tensor | None = None
    written: bool = False


@dataclass(frozen=True)
class Imported:
    """A program whose tensors are all dense and on the CPU, and that writes none of them.

    Attributes:
        func: of it, before all passes; whoever runs passes takes a clone.
        inputs: the func's arguments in order.
        returns: what the caller is owed, in order.
        symbols: integers among what is owed depend on these.
        pairs: which of the inputs are complex.
        name: of the program, for dumps.
    """

    func: Func
    inputs: tuple[Item, ...]
    returns: tuple[Return, ...]
    symbols: tuple[Symbol, ...] = ()
    pairs: tuple[int, ...] = ()
    name: str = "main"


@dataclass(frozen=True)
class Ready:
    """A program that comes as IR, and how it is called: with its inputs by name, or by place; it
    gives a dict.

    Attributes:
        captured: the program.
        takes: the names of the inputs that a call gives, in order.
        gives: those of the results.
    """

    captured: Imported
    takes: tuple[str, ...]
    gives: tuple[str, ...]


class Whole(ABC):
    """What becomes a program by itself: it knows its inputs."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What it is, in a few words."""

    @abstractmethod
    def ready(self, name: str) -> Ready:
        """The program, to be compiled ahead of time.

        Args:
            name: of the program in its artifact.

        """


__all__ = ["Imported", "Item", "Ready", "Whole"]
