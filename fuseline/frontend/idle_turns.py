"""Loops over experts whose turns do nothing where no row is theirs: read from the source.

    for e in hit:                            # the experts that have tokens; or all of them
        top, token = torch.where(mask[e])
        if token.numel() == 0:
            continue
        out = self.experts[e](x[token]) * weights[token, top, None]
        y.index_add_(0, token, out)

Such a loop can be traced as one over all experts, and as if every turn had rows, whatever the data.
What is read here is what the graph of such a trace does not show: the names and the numbers of
Python. A turn may give itself names, ask whether it has rows, and add something to those rows of
one tensor; any statement of another form is too much. That the rows of a turn are those of its
expert, and that nothing else is written, is for the graph to show (`traced_turns`); that what a
turn calls changes nothing outside, for Dynamo (`_torch.turns`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType

from fuseline._torch import Lines
from fuseline.frontend.expert_loops import Function
from fuseline.frontend.plain_code import (
    Other,
    check_computes,
    is_name_stored,
    source_of_code,
    unpacks,
)

_MODES = {"no_grad", "inference_mode"}
_AROUND = (
    ast.For, ast.While, ast.AsyncFor, ast.Try, ast.TryStar, ast.With, ast.AsyncWith, ast.Match,
)  # fmt: skip
_READS_ALL = {"locals", "vars", "eval", "exec", "globals", "dir"}


def loop_over(code: CodeType, line: int) -> Lines | None:
    """The loop, in the head of which or for which a line of a function turns a tensor into its
    numbers.

    That is ``for e in hit``, where hit is a name or made by methods, or the one use of
    ``hit = found.tolist()``.
    """
    found = [loop for loop in _loops_of(code) if line in loop.unpacked]
    return Lines(code.co_filename, *found[0].body) if len(found) == 1 else None


def loop_asking(code: CodeType, line: int) -> Lines | None:
    """The loop, a turn of which asks at a line whether it has rows, and else does nothing."""
    found = [loop for loop in _loops_of(code) if line in loop.asked]
    return Lines(code.co_filename, *found[0].body) if len(found) == 1 else None


def _loops_of(code: CodeType) -> tuple[_Idle, ...]:
    function = source_of_code(code)
    return () if function is None else _idle_loops(function)


@dataclass(frozen=True)
class _Idle:
    """A loop with idle turns: the lines of its body, where it asks, and where it is unpacked."""

    body: tuple[int, int]
    asked: frozenset[int]
    unpacked: frozenset[int]


@lru_cache(maxsize=256)
def _idle_loops(function: ast.FunctionDef) -> tuple[_Idle, ...]:
    """The loops of a function whose turns may be idle."""
    nodes = list(ast.walk(function))
    if any(_reads_all(n) for n in nodes):
        return ()
    found: list[_Idle] = []
    blocks = [n for n in nodes if isinstance(n, _AROUND) and not _is_plain_with(n)]
    for loop in (n for n in nodes if isinstance(n, ast.For)):
        if any(loop in ast.walk(block) for block in blocks if block is not loop):
            continue
        try:
            found.append(_Turn(function, loop).idle())
        except Other:
            continue
    return tuple(found)


def _is_plain_with(node: ast.AST) -> bool:
    return isinstance(node, ast.With) and all(map(_is_mode, node.items))


def _reads_all(node: ast.AST) -> bool:
    """Whether a node sees names that are not written there."""
    named = isinstance(node, ast.Name) and node.id in _READS_ALL
    return named or isinstance(node, ast.Yield | ast.YieldFrom)


@dataclass
class _Known:
    """The names that a turn has made so far.

    ``numbers`` are those that tell it from other turns; ``tensors`` among them hold a number in a
    tensor, and may only choose or be turned into numbers of Python. ``rows`` tell its rows.
    """

    names: set[str] = field(default_factory=set[str])
    numbers: set[str] = field(default_factory=set[str])
    tensors: set[str] = field(default_factory=set[str])
    rows: set[str] = field(default_factory=set[str])

    def copy(self) -> _Known:
        return _Known(set(self.names), set(self.numbers), set(self.tensors), set(self.rows))

    def both(self, other: _Known) -> _Known:
        return _Known(
            self.names & other.names,
            self.numbers & other.numbers,
            self.tensors | other.tensors,
            self.rows & other.rows,
        )

    def forget(self, names: set[str]) -> None:
        for known in (self.numbers, self.tensors, self.rows):
            known -= names


class _Turn:
    """One turn of a loop, statement by statement; raises `Other` where it may not be idle."""

    def __init__(self, function: ast.FunctionDef, loop: ast.For) -> None:
        self.function = function
        self.loop = loop
        self.inside = [n for statement in loop.body for n in ast.walk(statement)]
        self.effects = [n for n in self.inside if isinstance(n, ast.stmt) and _added_to(n)]
        self.sums = {name for e in self.effects if (name := _added_to(e)) is not None}
        stored = (n for n in (*self.inside, *ast.walk(loop.target)) if is_name_stored(n))
        self.own = {n.id for n in stored if isinstance(n, ast.Name)} - self.sums
        self.asked: set[int] = set()

    def idle(self) -> _Idle:
        head, body = self.loop.iter.end_lineno or 0, self.loop.body
        if self.loop.orelse or body[0].lineno <= head or len(self.effects) != 1:
            raise Other
        self._check_names()
        known = self._of_head()
        self._run(body, known)
        lines = (body[0].lineno, self.loop.end_lineno or 0)
        return _Idle(lines, frozenset(self.asked), frozenset(self._unpacked()))

    def _check_names(self) -> None:
        """What a turn makes is seen by that turn only."""
        inside, end = {*self.inside, *ast.walk(self.loop.target)}, self.loop.end_lineno or 0
        for node in ast.walk(self.function):
            if isinstance(node, ast.Global | ast.Nonlocal) and self.own & set(node.names):
                raise Other
            within = node is not self.function and isinstance(node, Function | ast.ClassDef)
            if within and self.own & {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}:
                raise Other
            if not isinstance(node, ast.Name) or node.id not in self.own or is_name_stored(node):
                continue
            if node not in inside and node.lineno > end:
                raise Other

    def _of_head(self) -> _Known:
        """What is known when a turn begins."""
        target = self.loop.target
        parts = target.elts if isinstance(target, ast.Tuple) else [target]
        names = {p.id for p in parts if isinstance(p, ast.Name)}
        if len(names) != len(parts):
            raise Other
        plain = isinstance(self.loop.iter, ast.Call) and isinstance(self.loop.iter.func, ast.Name)
        return _Known(set(names), set(names), set() if plain else set(names))

    def _unpacked(self) -> Iterator[int]:
        """The lines at which the loop's tensor is turned into what it turns over."""
        head = self.loop.iter
        if isinstance(self.loop.target, ast.Name) and _is_made_by_methods(head):
            yield from range(head.lineno, (head.end_lineno or 0) + 1)
            if isinstance(head, ast.Name):
                yield from self._listed(head)

    def _listed(self, head: ast.Name) -> Iterator[int]:
        """The lines of ``hit = found.tolist()``, where only the loop reads the list."""
        nodes = list(ast.walk(self.function))
        uses = [n for n in nodes if isinstance(n, ast.Name) and n.id == head.id]
        shared = any(isinstance(n, ast.Global | ast.Nonlocal) and head.id in n.names for n in nodes)
        made = [n for n in nodes if isinstance(n, ast.Assign) and _lists(n)]
        made = [n for n in made if n.targets[0] in uses]
        if len(uses) != 2 or len(made) != 1 or shared:
            return
        lines = range(made[0].lineno, (made[0].end_lineno or 0) + 1)
        beside = (n for n in nodes if isinstance(n, ast.stmt) and not _holds(n, made[0]))
        if not any(n.lineno in lines or (n.end_lineno or 0) in lines for n in beside):
            yield from lines

    # -- statements ---------------------------------------------------------------------------

    def _run(self, body: Sequence[ast.stmt], known: _Known) -> _Known | None:
        """What is known behind some statements; None where the turn has ended."""
        for statement in body:
            after = self._step(statement, known)
            if after is None:
                return None
            known = after
        return known

    def _step(self, statement: ast.stmt, known: _Known) -> _Known | None:
        match statement:
            case ast.Continue():
                return None
            case ast.Pass():
                return known
            case ast.If():
                return self._choice(statement, known)
            case ast.With(items=items, body=body) if all(map(_is_mode, items)):
                return self._run(body, known)
            case ast.Assign(targets=[target], value=value) if statement not in self.effects:
                return self._made(target, value, known)
            case _ if statement in self.effects:
                self._check_effect(statement, known)
                return known
            case _:
                raise Other

    def _choice(self, statement: ast.If, known: _Known) -> _Known | None:
        asked = _asks_for_rows(statement.test, known.rows)
        if asked is not None:
            self.asked.add(statement.test.lineno)
            skips = [type(s) for s in statement.body] == [ast.Continue]
            if statement.orelse or (asked == "none" and not skips):
                raise Other
            if asked == "some":
                self._run(statement.body, known.copy())
            return known
        self._check_number_test(statement.test, known)
        first = self._run(statement.body, known.copy())
        second = self._run(statement.orelse, known.copy())
        if first is None or second is None:
            return second if first is None else first
        return first.both(second)

    def _check_number_test(self, test: ast.expr, known: _Known) -> None:
        """A question about the number of the turn and what was there before."""
        self._check_read(test, known)
        for node in ast.walk(test):
            if isinstance(node, ast.Call) or (isinstance(node, ast.Name) and node.id in self.sums):
                raise Other
            if isinstance(node, ast.Name) and node.id in self.own - known.numbers:
                raise Other

    def _made(self, target: ast.expr, value: ast.expr, known: _Known) -> _Known:
        parts = target.elts if isinstance(target, ast.Tuple) else [target]
        names = {p.id for p in parts if isinstance(p, ast.Name)}
        if len(names) != len(parts) or names & self.sums:
            raise Other
        if isinstance(target, ast.Tuple) and not unpacks(value):
            raise Other
        source = _number_of(value)
        after = known.copy()
        after.forget(names)
        after.names |= names
        if source is not None and source.id in known.numbers:
            after.numbers |= names
            boxed = source.id in known.tensors and not _is_plain(value)
            after.tensors |= names if boxed else set()
            return after
        self._check_read(value, known)
        after.rows |= names if _picks_rows(value) else set()
        return after

    def _check_effect(self, effect: ast.stmt, known: _Known) -> None:
        """``y.index_add_(0, rows, value)``: it is told where to add by the rows."""
        rows = _rows_of(effect)
        if rows is None or rows not in known.rows:
            raise Other
        self._check_read(effect, known)

    def _check_read(self, node: ast.AST, known: _Known) -> None:
        """Nothing is read that an earlier turn made, or called that goes on by itself."""
        check_computes(node, called=known.names - known.tensors)
        for n in ast.walk(node):
            if isinstance(n, ast.Name) and not is_name_stored(n) and n.id in self.own - known.names:
                raise Other
        _check_boxed(node, known.tensors)


# -- forms ------------------------------------------------------------------------------------


def _check_boxed(node: ast.AST, tensors: set[str]) -> None:
    """A number in a tensor chooses from something (``w[e]``), or becomes one of Python's first."""
    source = _number_of(node)
    if source is not None and source.id in tensors and _is_plain(node):
        return
    if isinstance(node, ast.Name) and node.id in tensors:
        raise Other
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.Subscript):
        number = _number_of(node.slice)
        children = [node.value] if number is not None and number.id in tensors else children
    for child in children:
        _check_boxed(child, tensors)


def _number_of(value: ast.AST) -> ast.Name | None:
    """The name, of which an expression is the number in another form: ``int(e[0].item())``."""
    match value:
        case ast.Name():
            return value
        case ast.Subscript(value=inner, slice=ast.Constant(value=0)):
            return _number_of(inner)
        case ast.Call(func=ast.Attribute(value=inner, attr="item"), args=[], keywords=[]):
            return _number_of(inner)
        case ast.Call(func=ast.Name(id="int"), args=[inner], keywords=[]):
            return _number_of(inner)
        case _:
            return None


def _is_plain(value: ast.AST) -> bool:
    """Whether the number is one of Python's: behind ``int`` or ``item``."""
    return isinstance(value, ast.Call)


def _holds(statement: ast.stmt, other: ast.stmt) -> bool:
    return other in ast.walk(statement)


def _is_made_by_methods(head: ast.expr) -> bool:
    """``hit``, or a tensor made by methods and comparisons only, which nothing else unpacks."""
    match head:
        case ast.Name():
            return True
        case ast.Call(func=ast.Attribute(value=inner), args=args, keywords=keywords):
            every = args if _is_torch(inner) else [inner, *args]
            plain = [*every[1:], *(k.value for k in keywords)]
            numbers = all(isinstance(n, _NUMBERS) for a in plain for n in ast.walk(a))
            return numbers and all(map(_is_made_by_methods, every[:1]))
        case ast.Compare(left=left, comparators=[ast.Constant()]):
            return _is_made_by_methods(left)
        case ast.Subscript(value=inner, slice=ast.Constant()):
            return _is_made_by_methods(inner)
        case _:
            return False


_NUMBERS = (ast.Constant, ast.Tuple, ast.UnaryOp, ast.USub, ast.Load)


def _is_torch(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "torch"


def _lists(statement: ast.Assign) -> bool:
    """``hit = found.tolist()``."""
    match statement:
        case ast.Assign(
            targets=[ast.Name()],
            value=ast.Call(func=ast.Attribute(value=found, attr="tolist"), args=[], keywords=[]),
        ):
            return _is_made_by_methods(found)
        case _:
            return False


def _is_mode(item: ast.withitem) -> bool:
    """``torch.no_grad()``."""
    match item:
        case ast.withitem(
            ast.Call(func=ast.Attribute(value=module, attr=name), args=[], keywords=[]), None
        ):
            return name in _MODES and _is_torch(module)
        case _:
            return False


def _picks_rows(value: ast.expr) -> bool:
    """``torch.where(c)``, ``c.nonzero(as_tuple=True)``, and one part of either."""
    match value:
        case ast.Subscript(value=inner, slice=ast.Constant(value=int())):
            return _picks_rows(inner)
        case ast.Call(func=ast.Attribute(attr="where"), args=[_], keywords=[]):
            return True
        case ast.Call(
            func=ast.Attribute(attr="nonzero"),
            keywords=[ast.keyword(arg="as_tuple", value=ast.Constant(value=True))],
        ):
            return True
        case _:
            return False


def _asks_for_rows(test: ast.expr, rows: set[str]) -> str | None:
    """``"none"`` for ``token.numel() == 0``, ``"some"`` for ``> 0`` or ``!= 0``; else None."""
    match test:
        case ast.Compare(left=size, ops=[sign], comparators=[ast.Constant(value=0)]):
            pass
        case _:
            return None
    match size:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="numel"), args=[]):
            pass
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id=name), attr="size"), args=[ast.Constant(value=0)]
        ):
            pass
        case ast.Subscript(
            value=ast.Attribute(value=ast.Name(id=name), attr="shape"), slice=ast.Constant(value=0)
        ):
            pass
        case ast.Call(func=ast.Name(id="len"), args=[ast.Name(id=name)]):
            pass
        case _:
            return None
    if name not in rows:
        return None
    return "none" if isinstance(sign, ast.Eq) else "some" if _is_more(sign) else None


def _is_more(sign: ast.cmpop) -> bool:
    return isinstance(sign, ast.Gt | ast.NotEq)


def _added_to(statement: ast.stmt) -> str | None:
    """The name of the tensor that a statement adds rows to; None where it does not."""
    match statement:
        case ast.Expr(
            ast.Call(
                func=ast.Attribute(value=ast.Name(id=name), attr="index_add_"),
                args=[ast.Constant(value=0), _, _],
            )
        ):
            return name
        case ast.Assign(
            targets=[ast.Name(id=made)],
            value=ast.Call(
                func=ast.Attribute(value=ast.Name(id=name), attr="index_add"),
                args=[ast.Constant(value=0), _, _],
            ),
        ) if made == name:
            return name
        case ast.AugAssign(target=ast.Subscript(value=ast.Name(id=name)), op=ast.Add()):
            return name
        case _:
            return None


def _rows_of(effect: ast.stmt) -> str | None:
    """The name that tells an effect its rows."""
    match effect:
        case ast.AugAssign(target=ast.Subscript(slice=ast.Name(id=name))):
            return name
        case ast.Expr(ast.Call(args=[_, ast.Name(id=name), _])):
            return name
        case ast.Assign(value=ast.Call(args=[_, ast.Name(id=name), _])):
            return name
        case _:
            return None
