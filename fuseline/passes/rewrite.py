"""Rewrites and passes: what a pass author writes.

A `Rewrite` looks at one op and returns new values, or a reason why it cannot apply, and edits
nothing; the manager applies what it returns. A `FuncPass` edits a whole func (dead code, common
subexpressions, planning).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

from fuseline.ir.core import Func, Op, Value

RootT = TypeVar("RootT", bound=Op)


@dataclass(frozen=True)
class NoMatch:
    """The place looks like the pattern, but a predicate failed: recorded as a missed site.

    Attributes:
        reason: the predicate that failed, with the values seen.
        details: further facts for the site.
        held: the predicates that held before; of two attempts, the one with more got further.
        others: the reasons of attempts at the same place that got less far.
    """

    reason: str
    details: Mapping[str, str] = field(default_factory=dict[str, str])
    held: Sequence[str] = ()
    others: Sequence[str] = ()


def failed(held: Sequence[str], *checks: tuple[str, Callable[[], str]]) -> NoMatch | None:
    """The first of some predicates that fails, with those that held before; None where all hold.

    Args:
        held: what was found to hold already.
        checks: each predicate in words, and what tells why it fails: empty where it holds.

    """
    for number, (_, why) in enumerate(checks):
        if reason := why():
            return NoMatch(reason, held=(*held, *(words for words, _ in checks[:number])))
    return None


def nearest(one: NoMatch | None, other: NoMatch) -> NoMatch:
    """The attempt that got further, or else the first; it keeps why the other one failed."""
    if one is None:
        return other
    best, rest = (other, one) if len(other.held) > len(one.held) else (one, other)
    others = dict.fromkeys((*best.others, rest.reason, *rest.others))
    others.pop(best.reason, None)
    return dataclasses.replace(best, others=tuple(others))


@dataclass(frozen=True)
class Replace:
    """New values for old ones, and what goes with them.

    Attributes:
        values: old value to new value; the new ops are found from the new values.
        ops: new ops that no value leads to (in-place writes), and what must keep an order with
            them (reads after a write), in order.
        erase: old ops without results that go away (in-place writes that were absorbed).
        args: new arguments of the func, behind those that it has: state that the program keeps.
        before: where the new ops go; the root where absent. They are moved down if needed.
        held: the predicates that held, for the record.
        details: further facts for the site.
        work: the new op that does the site's work, where others follow it.
        keep_sites: earlier sites of the same pattern whose ops are replaced stay sites of their
            own, beside this one, as the new ops do their work too.
    """

    values: Mapping[Value, Value] = field(default_factory=dict[Value, Value])
    ops: Sequence[Op] = ()
    erase: Sequence[Op] = ()
    args: Sequence[Value] = ()
    before: Op | None = None
    held: Sequence[str] = ()
    details: Mapping[str, str] = field(default_factory=dict[str, str])
    work: Op | None = None
    keep_sites: bool = False


Replacement: TypeAlias = "Mapping[Value, Value] | Replace"

PASSES: dict[str, type[Pass]] = {}
"""Every pass by name; filled as classes are defined."""


class Pass:
    """Base of all passes: a frozen dataclass whose fields are its options."""

    name: ClassVar[str] = ""
    reorders: ClassVar[bool] = False
    """Whether it reorders arithmetic, so that results may differ by rounding."""

    def __init_subclass__(cls, *, abstract: bool = False) -> None:
        """Derive the name (``FuseAddRmsNorm`` is ``fuse-add-rms-norm``) and register the pass."""
        super().__init_subclass__()
        if abstract:
            return
        cls.name = re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()
        PASSES[cls.name] = cls

    @property
    def options(self) -> dict[str, Any]:
        """The options by name."""
        if not dataclasses.is_dataclass(self):
            return {}
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def __str__(self) -> str:
        shown = ", ".join(f"{k.replace('_', '-')}={_shown(v)}" for k, v in self.options.items())
        return f"{self.name}{{{shown}}}" if shown else self.name


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class FuncPass(Pass, abstract=True):
    """A pass over a whole func, edited in place."""

    def __init_subclass__(cls, *, abstract: bool = False) -> None:
        super().__init_subclass__(abstract=abstract)

    def run(self, func: Func) -> None:
        """Edit the func."""
        raise NotImplementedError


class Rewrite(Pass, Generic[RootT], abstract=True):
    """A pass that rewrites around one root op at a time, until nothing changes.

    Subclasses give the root's class and, where the rewrite makes a site of the report, the name of
    the pattern: ``class FuseAddRmsNorm(Rewrite[RmsNorm], root=RmsNorm, pattern="add_rms_norm")``.
    """

    root: ClassVar[tuple[type[Op], ...]] = ()
    pattern: ClassVar[str] = ""

    def __init_subclass__(
        cls,
        *,
        root: type[Op] | tuple[type[Op], ...] = (),
        pattern: str = "",
        abstract: bool = False,
    ) -> None:
        """Note the root classes and the pattern."""
        cls.root = root if isinstance(root, tuple) else (root,)
        cls.pattern = pattern
        super().__init_subclass__(abstract=abstract)

    def rewrite(self, op: RootT, func: Func) -> Replacement | NoMatch | None:
        """New values for old ones; `NoMatch` for a near miss; None where nothing looks like it.

        New ops are only constructed, never inserted; ``func`` is there to be asked who reads what.
        """
        raise NotImplementedError
