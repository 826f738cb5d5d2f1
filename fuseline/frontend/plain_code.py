"""Python that only computes: read from the source of a function that is what runs.

An expression of that kind calls functions and methods with names, numbers and results of others. It
goes over nothing, makes no function, and calls no method that is known to change its object. A
function of that kind has such expressions only, given to names of its own or returned.
"""

from __future__ import annotations

import ast
import builtins
import linecache
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import CodeType

import torch

from fuseline.syntax import parse_module

_PLAIN_CALLS = {"int", "float", "len", "abs", "min", "max", "isinstance"}
_BUILTINS = set(dir(builtins)) - _PLAIN_CALLS
_TOO_MUCH = (
    ast.Lambda, ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr, ast.ListComp, ast.SetComp,
    ast.DictComp, ast.GeneratorExp, ast.Starred, ast.JoinedStr, ast.In, ast.NotIn,
)  # fmt: skip
_CHANGE_THEIR_OBJECT = {
    "append", "appendleft", "extend", "extendleft", "insert", "pop", "popleft", "popitem", "remove",
    "clear", "sort", "reverse", "discard", "update", "setdefault", "send", "throw", "close", "next",
    "write", "writelines", "read", "readline", "put", "get_nowait", "set", "rotate",
}  # fmt: skip
_GIVE_PARTS = {
    "chunk", "split", "unbind", "tensor_split", "where", "nonzero", "topk", "max", "min",
}  # fmt: skip
_MODULES = f"{Path(torch.__file__).parent / 'nn'}/"


class Other(Exception):
    """Source that is not of the form that is asked for."""


def only_computes(code: CodeType) -> bool:
    """Whether a function is one of torch's modules, or of the kind said above."""
    if code.co_filename.startswith(_MODULES):
        return True
    function = source_of_code(code)
    if function is None:
        return False
    try:
        _check_body(function.body, function)
    except Other:
        return False
    return True


def _check_body(body: list[ast.stmt], function: ast.FunctionDef) -> None:
    for statement in body:
        match statement:
            case ast.Pass() | ast.Return(None) | ast.Expr(ast.Constant()):
                pass
            case ast.Return(ast.expr() as value) | ast.AnnAssign(
                ast.Name(), value=ast.expr() as value
            ):
                check_computes(value, called=_own_names(function))
            case ast.Assign(targets=[target], value=value):
                check_computes(value, called=_own_names(function))
                parts = target.elts if isinstance(target, ast.Tuple) else [target]
                if not all(isinstance(p, ast.Name) for p in parts):
                    raise Other
                if isinstance(target, ast.Tuple) and not unpacks(value):
                    raise Other
            case ast.If(test=test, body=first, orelse=second):
                check_computes(test, called=_own_names(function))
                _check_body(first, function)
                _check_body(second, function)
            case _:
                raise Other


def _own_names(function: ast.FunctionDef) -> set[str]:
    """The names that a function makes, its arguments among them."""
    nodes = list(ast.walk(function))
    stored = {n.id for n in nodes if isinstance(n, ast.Name) and is_name_stored(n)}
    return stored | {n.arg for n in nodes if isinstance(n, ast.arg)}


def check_computes(node: ast.AST, *, called: set[str]) -> None:
    """Raise `Other` where a piece of source may do more than compute.

    Names that are ``called`` are the function's own; of others only the names of Python's own
    functions tell what they do.
    """
    for n in ast.walk(node):
        if isinstance(n, _TOO_MUCH):
            raise Other
        match n:
            case ast.Call(func=ast.Name(id=name)) if name in _BUILTINS - called:
                raise Other
            case ast.Call(func=ast.Attribute(attr=name)):
                if name in _CHANGE_THEIR_OBJECT or name.startswith("__"):
                    raise Other
            case ast.Call(func=ast.Name() | ast.Subscript()):
                pass
            case ast.Call():
                raise Other
            case _:
                pass


def unpacks(value: ast.expr) -> bool:
    """Whether a value that is given to several names has parts, and is not used up by that."""
    match value:
        case ast.Tuple():
            return True
        case ast.Call(func=ast.Attribute(attr=name)):
            return name in _GIVE_PARTS
        case _:
            return False


def is_name_stored(node: ast.AST) -> bool:
    """Whether a node is a name that is given something."""
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


# -- the source of what runs ------------------------------------------------------------------


def source_of_code(code: CodeType) -> ast.FunctionDef | None:
    """The function that a code was compiled from; None where its file tells of something else."""
    return _functions("".join(linecache.getlines(code.co_filename))).get(_identity(code))


def _identity(code: CodeType) -> tuple[object, ...]:
    plain = tuple(c for c in code.co_consts if not isinstance(c, CodeType))
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return (code.co_name, code.co_firstlineno, code.co_code, names, repr(plain))


@lru_cache(maxsize=64)
def _functions(text: str) -> dict[tuple[object, ...], ast.FunctionDef]:
    """The functions of a file, by what identifies their code."""
    try:
        tree = parse_module(text)
        codes = list(_codes(compile(text, "", "exec", dont_inherit=True)))
    except (SyntaxError, ValueError):
        return {}
    begins: dict[tuple[str, int], ast.FunctionDef] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            begins[(node.name, first)] = node
    found = {_identity(c): begins.get((c.co_name, c.co_firstlineno)) for c in codes}
    return {identity: node for identity, node in found.items() if node is not None}


def _codes(code: CodeType) -> Iterator[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from _codes(inner)
