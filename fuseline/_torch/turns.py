"""Dynamo, made to trace all turns of loops over the experts that have tokens.

    hit = (mask.sum((-1, -2)) > 0).nonzero()      # mask: one hot, [experts, top, tokens]
    for e in hit:
        top, token = torch.where(mask[e])
        if token.numel() == 0:
            continue

How often such a loop turns depends on data, and Dynamo refuses it. A turn of an expert without
tokens does nothing, as `frontend.idle_turns` reads from the source; so all are traced, as if each
had tokens. What is traced must then become one op over all experts, or is given up: as long as
sizes that only the data tells are left in a graph, it is not run.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias, cast

import sympy
import torch
from torch import fx

from fuseline._torch.symbolic import is_unbacked

Idle: TypeAlias = Callable[[str, int], bool]
"""Whether turns of the loop at a file and line do nothing where they have no rows."""

MARK = "fuseline_turns"
"""In the meta of a mask's node: the numbers for which turns were traced."""

_SAMPLES = (1, 2, 3, 64, 4097)


@lru_cache(maxsize=1)
def trace_all_turns(idle: Callable[[], Idle | None]) -> None:
    """Have Dynamo do so while ``idle`` gives what to ask of a loop; where torch has other insides
    than expected, nothing is changed.
    """
    tensors = cast("Any", importlib.import_module("torch._dynamo.variables.tensor"))
    jumps = cast("Any", importlib.import_module("torch._dynamo.symbolic_convert"))
    variable, constant = tensors.TensorVariable, _constant()
    call = constant.call_method
    unpack, tolist = variable.unpack_var_sequence, variable.method_tolist
    scalar, boolean = tensors.guard_scalar, jumps.guard_bool

    def unpack_all(self: Any, tx: Any, *args: Any, **kwargs: Any) -> Any:
        found = None if args or kwargs else _numbers(self, tx, idle())
        return unpack(self, tx, *args, **kwargs) if found is None else found

    def list_all(self: Any, tx: Any, *args: Any, **kwargs: Any) -> Any:
        found = _numbers(self, tx, idle())
        if found is None:
            return tolist(self, tx, *args, **kwargs)
        return _list(found)

    def call_or_number(self: Any, tx: Any, name: str, *args: Any) -> Any:
        asked = name == "item" and type(self.value) is int and idle()
        return self if asked and asked(*_place(tx)) else call(self, tx, name, *args)

    def of_rows(original: Any) -> Any:
        def guard(value: Any) -> Any:
            found = _truth(value, idle())
            return original(value) if found is None else found

        return guard

    variable.unpack_var_sequence, variable.method_tolist = unpack_all, list_all
    constant.call_method = call_or_number
    tensors.guard_scalar, jumps.guard_bool = of_rows(scalar), of_rows(boolean)


def _numbers(variable: Any, tx: Any, idle: Idle | None) -> list[Any] | None:
    """The number of each expert, as Dynamo's constants, in place of a tensor of those hit."""
    if idle is None:
        return None
    node = variable.as_proxy().node
    flat = len(_shape(node)) == 1
    mask = _mask_of(node)
    if mask is None or not idle(*_place(tx)):
        return None
    numbers = range(_experts(mask))
    mask.meta[MARK] = numbers
    made = [_constant().create(e) for e in numbers]
    return made if flat else [_list([e]) for e in made]


def _constant() -> Any:
    return cast("Any", importlib.import_module("torch._dynamo.variables")).ConstantVariable


def _list(items: list[Any]) -> Any:
    """A list, or a row of one number, which it also gives by ``item()``."""
    return _row_type()(items, mutation_type=_new())


@lru_cache(maxsize=1)
def _row_type() -> Any:
    lists: Any = importlib.import_module("torch._dynamo.variables.lists")

    class Row(lists.ListVariable):
        def call_method(self, tx: Any, name: str, args: Any, kwargs: Any) -> Any:
            if name == "item" and len(self.items) == 1:
                return self.items[0]
            return super().call_method(tx, name, args, kwargs)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    return Row


def _new() -> Any:
    return cast("Any", importlib.import_module("torch._dynamo.variables.base")).ValueMutationNew()


def _place(tx: Any) -> tuple[str, int]:
    """The file and line that a translator is at."""
    return str(tx.f_code.co_filename), int(tx.lineno or 0)


def _mask_of(node: fx.Node) -> fx.Node | None:
    """The mask ``[experts, ...]`` whose hit experts a node holds: those with anything in it."""
    picked = _peel(node, {"flatten", "squeeze", "view", "reshape", "getitem"})
    if _name(picked) not in ("nonzero", "argwhere"):
        return None
    hit = _argument(picked, 0)
    if hit is None or _name(hit) not in ("gt", "greater", "ne", "not_equal"):
        return None
    total = _argument(hit, 0)
    if total is None or hit.args[1] != 0 or _name(total) != "sum" or len(_shape(total)) != 1:
        return None
    mask = _argument(total, 0)
    if mask is None or _shape(mask)[0] != _shape(total)[0] or not _is_one_hot(mask):
        return None
    return mask if isinstance(_shape(mask)[0], int) else None


def _is_one_hot(mask: fx.Node) -> bool:
    return _name(_peel(mask, {"permute", "transpose"})) == "one_hot"


def _experts(mask: fx.Node) -> int:
    """How many classes of a one-hot mask can occur: those that the indices were chosen from."""
    classes = int(_shape(mask)[0])
    indices = _argument(_peel(mask, {"permute", "transpose"}), 0)
    chosen = None if indices is None else _peel(indices, {"view", "reshape", "flatten", "to"})
    choice = None if chosen is None or _name(chosen) != "getitem" else _argument(chosen, 0)
    if choice is None or _name(choice) != "topk":
        return classes
    scores = _argument(choice, 0)
    width = None if scores is None else _shape(scores)[-1]
    return min(classes, width) if isinstance(width, int) else classes


def _truth(value: Any, idle: Idle | None) -> bool | None:
    """What a test of the number of rows gives for every number but 0; None where that differs."""
    node = getattr(value, "node", None)
    expr = getattr(node, "expr", None)
    if idle is None or not isinstance(expr, sympy.Basic):
        return None
    symbols = list(expr.free_symbols)
    if len(symbols) != 1 or not is_unbacked(expr):
        return None
    place = _place_of_caller()
    if place is None or not idle(*place):
        return None
    found = {bool(expr.subs(symbols[0], sample)) for sample in _SAMPLES}
    return found.pop() if len(found) == 1 else None


def _place_of_caller() -> tuple[str, int] | None:
    """Where the innermost translator is that is asking."""
    base = cast("Any", importlib.import_module("torch._dynamo.symbolic_convert"))
    frame = inspect.currentframe()
    while frame is not None:
        tx = frame.f_locals.get("self")
        if isinstance(tx, base.InstructionTranslatorBase):
            return _place(tx)
        frame = frame.f_back
    return None


def all_turns_are_there(graph: fx.Graph) -> bool:
    """Whether each mask that turns were traced for is read by one for every number."""
    for node in graph.nodes:
        numbers = node.meta.get(MARK)
        if numbers is None:
            continue
        read = {u.args[1] for u in node.users if _name(u) == "getitem"}
        if not set(numbers) <= {r[0] if isinstance(r, list) else r for r in read}:
            return False
    return True


def _peel(node: fx.Node, names: set[str]) -> fx.Node:
    """What a node was before calls of these names."""
    while _name(node) in names and (inner := _argument(node, 0)) is not None:
        node = inner
    return node


def _argument(node: fx.Node, number: int) -> fx.Node | None:
    found = node.args[number] if len(node.args) > number else None
    return found if isinstance(found, fx.Node) else None


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)) if "call" in node.op else ""


def _shape(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta.get("example_value")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()
