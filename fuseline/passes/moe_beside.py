"""The branch beside experts that work between projections: its ops, put in anew over the same x."""

from __future__ import annotations

from dataclasses import dataclass, field

from fuseline.ir.core import Func, Op, Trait, Value
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.ops.raised import GatedMlp
from fuseline.passes.expert_body import Refused
from fuseline.passes.expert_rows import unshaped
from fuseline.passes.match import only_user
from fuseline.passes.shared_branch import described
from fuseline.passes.wording import called, readers_beside


@dataclass(frozen=True)
class Beside:
    """What the branch adds to the result of the product behind the experts.

    Attributes:
        y: made by ops that are not yet in the func.
        words: what it is, for the site.
    """

    y: Value
    words: str


def beside(value: Value, x: Value, func: Func) -> Beside:
    """The branch that makes a value of x, which is what the product before the experts reads.

    Where only views part what both read, the branch reads x itself: its first products and that
    one are then siblings.

    Raises:
        Refused: it reads something else, or others read what is inside of it.

    """
    words = described(value, x)
    twin = _Twin(x)
    y = twin.of(value)
    _check_readers(func, value, twin)
    if twin.views and any(own.shape != x.shape for own in twin.read):
        y = _Twin(x, keep=True).of(value)
    assert y is not None, "a branch is made of x"
    return Beside(y, words)


@dataclass
class _Twin:
    """Copies the ops between a branch's x and its result.

    Attributes:
        x: what copies read in the place of the branch's own.
        keep: whether each reads what it has read.
        read: the values that stand for x in the branch.
        ops: what was copied.
        views: whether views are among them.
    """

    x: Value
    keep: bool = False
    read: list[Value] = field(default_factory=list[Value])
    ops: list[Op] = field(default_factory=list[Op])
    views: bool = False
    made: dict[Value, Value | None] = field(default_factory=dict[Value, "Value | None"])

    def of(self, value: Value) -> Value | None:
        """The copy of a value; None where it does not come from x."""
        if value not in self.made:
            self.made[value] = self._copied(value)
        return self.made[value]

    def _copied(self, value: Value) -> Value | None:
        if unshaped(value) is unshaped(self.x) and value.shape[-1:] == self.x.shape[-1:]:
            self.read.append(value)
            return value if self.keep else self.x
        op = value.owner
        known = isinstance(op, (Linear, GatedMlp))
        if op is None or not (known or op.has(Trait.POINTWISE) or op.has(Trait.VIEW)):
            return None
        mapping = {o: new for o in op.operands if (new := self.of(o)) is not None}
        if not mapping:
            return None
        self.ops.append(op)
        self.views |= op.has(Trait.VIEW)
        return op.clone(mapping).results[0]


def _check_readers(func: Func, end: Value, twin: _Twin) -> None:
    """Nothing else may read what would be computed twice; casts of x it may."""
    if only_user(func, end) is None:
        raise Refused(f"{called(end)} has other readers")
    inside = {op for op in twin.ops if not set(op.operands) <= set(twin.read)}
    inside.update(op for op in twin.ops if isinstance(op, (Linear, GatedMlp)))
    for op in inside:
        value = op.results[0]
        if value is not end and (readers := readers_beside(func, value, twin.ops)):
            raise Refused(f"{called(value)} inside of it is read by {readers}")
