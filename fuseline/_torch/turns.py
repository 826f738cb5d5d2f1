"""Dynamo, made to trace all turns of loops over the experts that have tokens.

    hit = (mask.sum((-1, -2)) > 0).nonzero()      # mask: one hot, [experts, top, tokens]
    for e in hit:
        top, token = torch.where(mask[e])
        if token.numel() == 0:
            continue

How often such a loop turns depends on data, and Dynamo refuses it. Where a judge says that a turn
without tokens does nothing, all turns are traced, each as if it had some. Two things no judge can
read from a loop's source, and they are kept here: what the calls in a turn change outside of it,
and the sizes for which "are there any?" was answered.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import sympy
import torch
from torch import fx

from fuseline._torch.symbolic import is_unbacked

_SAMPLES = (1, 2, 1 << 40)
"""A comparison of a size with a number that answers alike for these, and not for 0, asks for 0."""


class Lines(NamedTuple):
    """The body of a loop: a file, its first line and its last."""

    file: str
    first: int
    last: int


class Judge(Protocol):
    """Who says of which loops all turns may be traced."""

    def turns(self, node: fx.Node, file: str, line: int) -> tuple[Lines, int] | None:
        """The loop at a line over the experts that a node holds, and how many there can be."""
        ...

    def asked(self, file: str, line: int) -> Lines | None:
        """The loop, a turn of which asks at a line whether it has rows, and else does nothing."""
        ...


@dataclass
class Turns:
    """What has been traced of such loops in one compilation.

    Attributes:
        judge: who was asked.
        loops: those that are traced with all turns.
        assumed: sizes that are taken not to be 0, each with its shape environment and loop.
        changed: what a turn changed that was there before it.
    """

    judge: Judge
    loops: dict[Lines, None] = field(default_factory=dict[Lines, None])
    assumed: list[tuple[Lines, Any, sympy.Symbol]] = field(
        default_factory=list[tuple[Lines, Any, sympy.Symbol]]
    )
    changed: str = ""

    def begin(self, loop: Lines) -> None:
        """A turn begins, or goes on behind its question: what was made until now is older."""
        self.loops[loop] = None
        _made.turn += 1


class _Made:
    """A number for the turn in which Dynamo makes a value."""

    turn = 0


_made = _Made()

Now: TypeAlias = Callable[[], Turns | None]


def trace_all_turns(now: Now) -> bool:
    """Have Dynamo do so while ``now`` gives where to note it; False where torch has other insides
    than expected, and nothing is changed.
    """
    return _install(now)


@lru_cache(maxsize=1)
def _install(now: Now) -> bool:
    try:
        tensors = cast("Any", importlib.import_module("torch._dynamo.variables.tensor"))
        base = cast("Any", importlib.import_module("torch._dynamo.variables.base"))
        effects = cast("Any", importlib.import_module("torch._dynamo.side_effects")).SideEffects
        variable, sizes = tensors.TensorVariable, tensors.SymNodeVariable
        unpack, tolist = variable.unpack_var_sequence, variable.method_tolist
        evaluate, check = sizes.evaluate_expr, effects.check_allowed_side_effect
        make = base.MutationType.__init__
        _number_type()
        _row_type()
        _translator()
    except (ImportError, AttributeError):
        return False

    def unpack_all(self: Any, tx: Any, *args: Any, **kwargs: Any) -> Any:
        found = None if args or kwargs else _numbers(self, tx, now())
        return unpack(self, tx, *args, **kwargs) if found is None else found

    def list_all(self: Any, tx: Any) -> Any:
        found = _numbers(self, tx, now())
        return tolist(self, tx) if found is None else _row_type().of(found)

    def evaluate_or_answer(self: Any, *args: Any, **kwargs: Any) -> Any:
        answer = _answer(self.sym_num, now())
        return evaluate(self, *args, **kwargs) if answer is None else answer

    def check_and_note(self: Any, item: Any) -> Any:
        _note_change(item, now())
        return check(self, item)

    def make_in_turn(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        self.fuseline_turn = _made.turn

    variable.unpack_var_sequence, variable.method_tolist = unpack_all, list_all
    sizes.evaluate_expr, effects.check_allowed_side_effect = evaluate_or_answer, check_and_note
    base.MutationType.__init__ = make_in_turn
    return True


# -- the numbers of the experts ---------------------------------------------------------------


def _numbers(variable: Any, tx: Any, turns: Turns | None) -> list[Any] | None:
    """The number of each expert, as Dynamo's constants, in place of a tensor of those hit."""
    if turns is None:
        return None
    node = variable.as_proxy().node
    value = node.meta.get("example_value")
    if not isinstance(value, torch.Tensor) or value.dim() not in (1, 2):
        return None
    found = turns.judge.turns(node, *_place(tx))
    if found is None:
        return None
    loop, count = found
    turns.begin(loop)
    numbers = [_number_type()(e) for e in range(count)]
    return numbers if value.dim() == 1 else [_row_type().of([e]) for e in numbers]


@lru_cache(maxsize=1)
def _number_type() -> Any:
    constants = cast("Any", importlib.import_module("torch._dynamo.variables"))

    class Number(constants.ConstantVariable):
        """A number of Python's that a program takes for one in a tensor."""

        def var_getattr(self, tx: Any, name: str) -> Any:
            if name == "item":
                raise NotImplementedError  # a method: Dynamo calls it by `call_method`
            return super().var_getattr(tx, name)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

        def call_method(self, tx: Any, name: str, args: Any, kwargs: Any) -> Any:
            if name == "item":
                return constants.ConstantVariable.create(self.value)
            return super().call_method(tx, name, args, kwargs)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    return Number


@lru_cache(maxsize=1)
def _row_type() -> Any:
    lists = cast("Any", importlib.import_module("torch._dynamo.variables.lists"))
    new = cast("Any", importlib.import_module("torch._dynamo.variables.base")).ValueMutationNew

    class Row(lists.ListVariable):
        """A list, or a row of one number, which it also gives by ``item()``."""

        @classmethod
        def of(cls, items: list[Any]) -> Any:
            return cls(items, mutation_type=new())

        def call_method(self, tx: Any, name: str, args: Any, kwargs: Any) -> Any:
            if name == "item" and len(self.items) == 1:
                return self.items[0]
            return super().call_method(tx, name, args, kwargs)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    return Row


# -- whether there are rows -------------------------------------------------------------------


def _answer(value: Any, turns: Turns | None) -> bool | None:
    """What a question for rows gives where there are some; None for any other question."""
    if turns is None or not isinstance(value, torch.SymBool):
        return None
    node = cast("Any", value).node
    size = _compared_with_zero(node.expr)
    place = None if size is None else _innermost()
    loop = None if place is None else turns.judge.asked(*_place(place))
    if size is None or loop is None:
        return None
    turns.begin(loop)
    turns.assumed.append((loop, node.shape_env, size))
    return bool(node.expr.subs(size, _SAMPLES[0]))


def _compared_with_zero(expr: Any) -> sympy.Symbol | None:
    """The size that only the data tells, of which a comparison asks whether it is 0."""
    kinds = (sympy.Eq, sympy.Ne, sympy.Gt, sympy.Ge, sympy.Lt, sympy.Le)
    if not isinstance(expr, kinds):
        return None
    sides = (expr.lhs, expr.rhs)
    sizes = [s for s in sides if isinstance(s, sympy.Symbol)]
    numbers = [s for s in sides if isinstance(s, sympy.Integer)]
    if len(sizes) != 1 or len(numbers) != 1 or not is_unbacked(sizes[0]):
        return None
    answers = {bool(expr.subs(sizes[0], sample)) for sample in _SAMPLES}
    return sizes[0] if answers == {not bool(expr.subs(sizes[0], 0))} else None


# -- what turns change ------------------------------------------------------------------------


def _note_change(item: Any, turns: Turns | None) -> None:
    """Note that something is changed in a turn which was not made in it."""
    if turns is None or not turns.loops or turns.changed:
        return
    made = getattr(getattr(item, "mutation_type", None), "fuseline_turn", -1)
    if made == _made.turn and not _is_of_before(item):
        return
    tx = _innermost()
    while tx is not None:
        file, line = _place(tx)
        if any(loop.file == file and loop.first <= line <= loop.last for loop in turns.loops):
            turns.changed = f"a turn of the loop at line {line} changes {type(item).__name__}"
            return
        tx = getattr(tx, "parent", None)


def _is_of_before(item: Any) -> bool:
    """Whether a value of Dynamo's stands for one that was there before it began to trace."""
    return bool(getattr(item.mutation_type, "scope", 0) == 0)


# -- where Dynamo is --------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _translator() -> Any:
    return cast(
        "Any", importlib.import_module("torch._dynamo.symbolic_convert")
    ).InstructionTranslator


def _innermost() -> Any:
    """The translator of the frame that is being traced; None where none is."""
    try:
        return _translator().current_tx().output.current_tx
    except AttributeError:
        return None


def _place(tx: Any) -> tuple[str, int]:
    """The file and line that a translator is at."""
    return str(tx.f_code.co_filename), int(tx.lineno or 0)
