"""Dynamo, made to trace all turns of loops over the experts that have tokens.

    hit = (mask.sum((-1, -2)) > 0).nonzero()      # mask: one hot, [experts, top, tokens]
    for e in hit:
        top, token = torch.where(mask[e])
        if token.numel() == 0:
            continue

How often such a loop turns depends on data, and Dynamo refuses it. Where a judge says that a turn
without tokens does nothing, all turns are traced, each as if it had some. What was assumed is noted
with the graph: the backend that is handed it must find all of that there (`traced_turns`).

What is called in a turn is Dynamo's to see, and noted too: that code which may do more than compute
is run, that something is changed which was there before the turn, that an exception leaves it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import sympy
import torch
from torch import fx

from fuseline._torch.symbolic import is_unbacked

_NOTED = "fuseline_turns"
_SAMPLES = (1, 2, 1 << 40)
"""A comparison of a size with a number that answers alike for these, and not for 0, asks for 0."""


class Lines(NamedTuple):
    """The body of a loop: a file, its first line and its last."""

    file: str
    first: int
    last: int


class Judge(Protocol):
    """Who says of which loops all turns may be traced."""

    def turns(self, node: fx.Node, code: CodeType, line: int) -> Run | None:
        """The loop at a line over the experts that a node holds."""
        ...

    def asked(self, code: CodeType, line: int) -> Lines | None:
        """The loop, a turn of which asks at a line whether it has rows, and else does nothing."""
        ...

    def only_computes(self, code: CodeType) -> bool:
        """Whether a function does nothing but compute what it returns, for all that it shows."""
        ...


@dataclass(frozen=True)
class Run:
    """A loop that was traced with a turn for each of ``count`` experts, whatever ``mask`` holds.

    ``before`` is how often a turn of the same loop has looked for rows until then.
    """

    loop: Lines
    mask: fx.Node
    count: int
    before: int


@dataclass(frozen=True)
class Assumed:
    """A size that a turn of a loop asked for, and that is taken not to be 0."""

    loop: Lines
    env: Any
    size: sympy.Symbol


@dataclass
class Turns:
    """What was assumed of loops while a graph was traced, and what speaks against it."""

    runs: list[Run] = field(default_factory=list[Run])
    assumed: list[Assumed] = field(default_factory=list[Assumed])
    loops: dict[Lines, None] = field(default_factory=dict[Lines, None])
    against: str = ""


JudgeOf: TypeAlias = Callable[[Any], "Judge | None"]


def traced_turns() -> Turns:
    """What was assumed of the graph that a backend is handed."""
    tx = _innermost()
    return Turns() if tx is None else _noted(tx.output) or Turns()


def can_trace_all_turns() -> bool:
    """Whether this torch has the insides that are changed for it."""
    return _insides() is not None


@lru_cache(maxsize=1)
def _insides() -> tuple[Any, Any, Any, Any, Any] | None:
    """What is changed of Dynamo: tensors, sizes, side effects, and two translators of frames."""
    tensors, tracing, effects, constants = (
        cast("Any", importlib.import_module(f"torch._dynamo.{name}"))
        for name in ("variables.tensor", "symbolic_convert", "side_effects", "variables.constant")
    )
    wanted = (
        (tensors, "TensorVariable.unpack_var_sequence TensorVariable.method_tolist"),
        (tensors, "SymNodeVariable.evaluate_expr"),
        (effects, "SideEffects.check_allowed_side_effect"),
        (tracing, "InliningInstructionTranslator.inline_call"),
        (tracing, "InstructionTranslatorBase.exception_handler"),
        (constants, "ConstantVariable.hash_impl"),
    )
    if not all(_has(module, name) for module, names in wanted for name in names.split()):
        return None
    return (
        tensors.TensorVariable,
        tensors.SymNodeVariable,
        effects.SideEffects,
        tracing.InliningInstructionTranslator,
        tracing.InstructionTranslatorBase,
    )


def _has(module: Any, name: str) -> bool:
    cls, _, member = name.partition(".")
    return hasattr(getattr(module, cls, None), member)


@lru_cache(maxsize=1)
def trace_all_turns(judge_of: JudgeOf) -> None:
    """Have Dynamo do so, for graphs that have a judge, where it can be."""
    found = _insides()
    if found is None:
        return
    variable, sizes, effects, inliner, base = found
    unpack, tolist = variable.unpack_var_sequence, variable.method_tolist
    evaluate, check = sizes.evaluate_expr, effects.check_allowed_side_effect
    inline, handle = inliner.inline_call.__func__, base.exception_handler

    def unpack_all(self: Any, tx: Any, *args: Any, **kwargs: Any) -> Any:
        found = None if args or kwargs else _numbers(self, tx, judge_of)
        return unpack(self, tx, *args, **kwargs) if found is None else found

    def list_all(self: Any, *args: Any) -> Any:
        found = _numbers(self, args[0] if args else _innermost(), judge_of, listed=True)
        return tolist(self, *args) if found is None else _as_list(found)

    def evaluate_or_answer(self: Any, *args: Any, **kwargs: Any) -> Any:
        answer = _answer(self.sym_num, judge_of)
        return evaluate(self, *args, **kwargs) if answer is None else answer

    def check_and_note(self: Any, item: Any) -> Any:
        if not _is_head(item, tx := _innermost()):
            _note(tx, f"a {type(item).__name__} is changed")
        return check(self, item)

    def inline_and_note(cls: Any, tx: Any, func: Any, args: Any, named: Any, **more: Any) -> Any:
        _note_call(tx, func, [*args, *named.values()], judge_of)
        return inline(cls, tx, func, args, named, **more)

    def handle_and_note(self: Any, *args: Any) -> Any:
        _note(self, "an exception is raised")
        return handle(self, *args)

    variable.unpack_var_sequence, variable.method_tolist = unpack_all, list_all
    sizes.evaluate_expr, effects.check_allowed_side_effect = evaluate_or_answer, check_and_note
    inliner.inline_call, base.exception_handler = classmethod(inline_and_note), handle_and_note


def _noted(output: Any) -> Turns | None:
    """What was assumed of a graph so far; Dynamo begins another when it traces anew."""
    return cast("Turns | None", getattr(output, _NOTED, None))


def _turns_of(output: Any) -> Turns:
    turns = _noted(output) or Turns()
    setattr(output, _NOTED, turns)
    return turns


def _is_whole(output: Any) -> bool:
    """Whether what is traced goes into the graph itself, not into a part that an op has."""
    return output.current_tracer.parent is None


# -- the numbers of the experts ---------------------------------------------------------------


def _numbers(
    variable: Any, tx: Any, judge_of: JudgeOf, *, listed: bool = False
) -> list[Any] | None:
    """The number of each expert, as Dynamo's constants, in place of a tensor of those hit; where
    that is made a list, as the numbers of Python that they are then.
    """
    judge = judge_of(tx.output)
    node = variable.as_proxy().node
    value = node.meta.get("example_value")
    if judge is None or not isinstance(value, torch.Tensor) or value.dim() not in (1, 2):
        return None
    run = judge.turns(node, tx.f_code, int(tx.lineno or 0)) if _is_whole(tx.output) else None
    if run is None:
        return None
    turns = _turns_of(tx.output)
    turns.loops[run.loop] = None
    turns.runs.append(run)
    constants = cast("Any", importlib.import_module("torch._dynamo.variables"))
    kind, row = _number_type(), _row_type().of
    if listed:
        kind, row = constants.ConstantVariable.create, _as_list
    numbers = [kind(e) for e in range(run.count)]
    return numbers if value.dim() == 1 else [row([e]) for e in numbers]


def _as_list(items: list[Any]) -> Any:
    variables = cast("Any", importlib.import_module("torch._dynamo.variables"))
    base = cast("Any", importlib.import_module("torch._dynamo.variables.base"))
    return variables.ListVariable(items, mutation_type=base.ValueMutationNew())


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

        def hash_impl(self, tx: Any) -> Any:
            _note(_innermost(), "a number in a tensor is a key")
            return super().hash_impl(tx)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    return Number


@lru_cache(maxsize=1)
def _row_type() -> Any:
    lists = cast("Any", importlib.import_module("torch._dynamo.variables.lists"))
    new = cast("Any", importlib.import_module("torch._dynamo.variables.base")).ValueMutationNew

    class Row(lists.ListVariable):
        """A row of one number, which it also gives by ``item()``."""

        @classmethod
        def of(cls, items: list[Any]) -> Any:
            return cls(items, mutation_type=new())

        def call_method(self, tx: Any, name: str, args: Any, kwargs: Any) -> Any:
            if name == "item" and len(self.items) == 1:
                return self.items[0].call_method(tx, name, args, kwargs)
            return super().call_method(tx, name, args, kwargs)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    return Row


# -- whether there are rows -------------------------------------------------------------------


def _answer(value: Any, judge_of: JudgeOf) -> bool | None:
    """What a question for rows gives where there are some; None for any other question."""
    if not isinstance(value, torch.SymBool):
        return None
    node, tx = cast("Any", value).node, _innermost()
    size = _compared_with_zero(node.expr)
    if tx is None or size is None or not _is_whole(tx.output):
        return None
    judge = judge_of(tx.output)
    if judge is None:
        return None
    loop = judge.asked(tx.f_code, int(tx.lineno or 0))
    if loop is None:
        return None
    turns = _turns_of(tx.output)
    turns.loops[loop] = None
    turns.assumed.append(Assumed(loop, node.shape_env, size))
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


# -- what else a turn does --------------------------------------------------------------------


def _note(tx: Any, what: str) -> None:
    """Note against what was assumed that something is done in a turn, if it is."""
    turns = None if tx is None else _noted(tx.output)
    if turns is None or turns.against:
        return
    line = next((t.lineno for t in _callers(tx) if _is_in_turn(t, turns)), None)
    if line is not None:
        turns.against = f"in a turn of a loop, at line {line}, {what}"


def _note_call(tx: Any, func: Any, args: list[Any], judge_of: JudgeOf) -> None:
    """Note a call of code that may do more than compute, or that is given a tensor's number."""
    judge = judge_of(tx.output)
    if judge is None:
        return
    code = func.get_code()
    if str(code.co_filename).startswith(_MODULES):  # a list of modules takes either for a number
        return
    if any(isinstance(a, (_number_type(), _row_type())) for a in args):
        _note(tx, f"{code.co_name} is given a number in a tensor")
    elif not judge.only_computes(code):
        _note(tx, f"{code.co_name} may do more than compute")


def _is_head(item: Any, tx: Any) -> bool:
    """Whether a value that is changed is what the loop of torch's own code runs over."""
    return tx is not None and str(tx.f_code.co_filename).startswith(_MODULES) and not item.source


_MODULES = f"{importlib.import_module('torch.nn').__path__[0]}/"


def _callers(tx: Any) -> Iterator[Any]:
    """A translator of a frame, and those of the frames that called it."""
    while tx is not None:
        yield tx
        tx = getattr(tx, "parent", None)


def _is_in_turn(tx: Any, turns: Turns) -> bool:
    file, line = str(tx.f_code.co_filename), int(tx.lineno or 0)
    return any(loop.file == file and loop.first <= line <= loop.last for loop in turns.loops)


def _innermost() -> Any:
    """The translator of the frame that is being traced; None where none is."""
    tracing = cast("Any", importlib.import_module("torch._dynamo.symbolic_convert"))
    try:
        return tracing.InstructionTranslator.current_tx().output.current_tx
    except AttributeError:
        return None
