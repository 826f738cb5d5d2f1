"""One walk over a func, in order, that replaces single results by simpler values.

This is what the clean-up passes share. A rule looks at one op, whose operands are already in their
final form, and gives a value to read in place of the op's result, or None. The value may be made by
new ops, to which the rules apply again. The walk takes time linear in the number of ops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, TypeVar

from fuseline.ir.core import Func, Op, Value

OpT = TypeVar("OpT", bound=Op)
Rule: TypeAlias = Callable[[Any], "Value | None"]


class Rules:
    """Simplifications by the class of op that they look at, subclasses included."""

    def __init__(self) -> None:
        self._declared: list[tuple[type[Op], Rule]] = []
        self._by_class: dict[type[Op], tuple[Rule, ...]] = {}

    def rule(
        self, *classes: type[OpT]
    ) -> Callable[[Callable[[OpT], Value | None]], Callable[[OpT], Value | None]]:
        """Register a rule for ops of these classes; each has exactly one result."""

        def register(simplify: Callable[[OpT], Value | None]) -> Callable[[OpT], Value | None]:
            self._declared += [(cls, simplify) for cls in classes]
            self._by_class.clear()
            return simplify

        return register

    def include(self, other: Rules) -> None:
        """Add another set of rules, behind the present ones."""
        self._declared += other._declared
        self._by_class.clear()

    def of(self, cls: type[Op]) -> tuple[Rule, ...]:
        """The rules for a class of op, in the order in which they were registered."""
        known = self._by_class.get(cls)
        if known is None:
            known = tuple(rule for root, rule in self._declared if issubclass(cls, root))
            self._by_class[cls] = known
        return known


def sweep(func: Func, rules: Rules) -> None:
    """Apply rules to every op, operands first. Ops that nobody reads any longer are left behind."""
    _Sweep(rules).run(func)


class _Sweep:
    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.ops: dict[Op, None] = {}
        self.mapping: dict[Value, Value] = {}

    def run(self, func: Func) -> None:
        for op in func.ops:
            if any(v in self.mapping for v in op.operands):
                op.map_operands(self.mapping)
            self.emit(op)
        func.rebuild(self.ops, [self.mapping.get(v, v) for v in func.returns])

    def emit(self, op: Op) -> None:
        """Append an op, or let its result be read from what a rule gives."""
        for rule in self.rules.of(type(op)):
            found = rule(op)
            if found is not None and found.type == op.results[0].type:
                self.mapping[op.results[0]] = self.place(found, op)
                return
        self.ops[op] = None

    def place(self, value: Value, root: Op) -> Value:
        """Append the new ops that make a value; the value that stands for it in the end."""
        op = value.owner
        if op is None or op in self.ops:
            return value
        if value in self.mapping:
            return self.mapping[value]
        for operand in op.operands:
            self.place(operand, root)
        op.map_operands(self.mapping)
        if op.loc is None:
            op.place_like(root)
        value.hint = root.results[0].hint
        self.emit(op)
        return self.mapping.get(value, value)


def collect(modules: Iterable[Rules]) -> Rules:
    """Several sets of rules as one."""
    rules = Rules()
    for module in modules:
        rules.include(module)
    return rules
