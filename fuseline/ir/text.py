"""The text form of the IR: a canonical printer and a parser that says where it stumbled."""

from __future__ import annotations

import enum
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn, TypeVar, cast

import sympy

from fuseline.expressions import is_size_name
from fuseline.ir.attributes import attribute_types, described, fits
from fuseline.ir.core import (
    OPS,
    FieldSpec,
    Func,
    IRError,
    Loc,
    Op,
    Opaque,
    Origin,
    Ref,
    Value,
    normalize_attribute,
)
from fuseline.ir.names import apart, names
from fuseline.ir.types import (
    MOST_EXTENT,
    BufferType,
    Dim,
    DType,
    IntType,
    Range,
    TensorType,
    ValueType,
    format_dim,
    has_extents,
    is_extent,
    parse_dim,
)

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_DTYPES = {d.value: d for d in DType}
_WORDS: dict[str, Any] = {
    "true": True,
    "false": False,
    "none": None,
    "inf": math.inf,
    "nan": math.nan,
}
_ROOM = 40
"""Characters that a message shows of what was found."""

_RESERVED = {*_WORDS, *_DTYPES, "func"}
"""Words that mean something as an attribute; a size of such a name stands in brackets."""

_ORIGINS = ("input", "param", "buffer", "const", "state", "number", "count")
_KINDS = f"{', '.join(_ORIGINS[:-1])} or {_ORIGINS[-1]}"
_INTEGER = re.compile(r"-?\d{1,400}")
"""Digits of an integer in the text: Python refuses to read many more."""


# -- printing -------------------------------------------------------------------------------


def print_func(func: Func, *, locations: bool = False) -> str:
    """The text of a func; equal funcs print equally. ``locations`` adds each op's places."""
    return "\n".join(_Printer(locations).func(func, "")) + "\n"


def print_ops(*groups: Sequence[Op], same: Mapping[Value, Value]) -> list[list[str]]:
    """The lines of some ops of one func, a list for each group; a value has one name in all.

    ``same`` has values that are to be called as others are.
    """
    printer = _Printer(False, same)
    ops = [op for group in groups for op in group]
    values = (same.get(v, v) for op in ops for v in (*op.operands, *op.results))
    printer.names = apart(dict.fromkeys(values), set())
    return [[line for op in group for line in printer.op(op, "")] for group in groups]


class _Printer:
    def __init__(self, locations: bool, same: Mapping[Value, Value] | None = None) -> None:
        self.locations = locations
        self.same = same or {}
        self.names: dict[Value, str] = {}

    def name(self, value: Value) -> str:
        value = self.same.get(value, value)
        name = self.names.get(value, value.hint)  # an invalid func may read what nothing defines
        return f"%{_quoted(name, _NAME)}"

    def func(self, func: Func, indent: str) -> list[str]:
        self.names = names(func)
        args = ", ".join(f"{self.name(a)}: {a.type}{_origin(a, self.names[a])}" for a in func.args)
        unknown = () if indent else func.unknown_sizes
        shown = [(n, r) for n, r in sorted(func.symbols.items()) if r != Range() or n in unknown]
        ranges = ", ".join(f"{n} in {r}" for n, r in shown)
        where = f" where {ranges}" if ranges else ""
        lines = [f"{indent}func @{_quoted(func.name, _WORD)}({args}){where} {{"]
        for op in func.ops:
            lines += self.op(op, indent + "  ")
        returns = ", ".join(self.name(v) for v in func.returns)
        lines.append(f"{indent}  return {returns}".rstrip())
        lines.append(indent + "}")
        return lines

    def op(self, op: Op, indent: str) -> list[str]:
        operands = ", ".join(self.operands(op))
        attributes = self.attributes(op, indent)
        results = ", ".join(self.name(v) for v in op.results)
        types = ", ".join(str(v.type) for v in op.results)
        head = f"{results} = {op.name}" if results else op.name
        text = indent + " ".join(part for part in (head, operands, attributes) if part)
        text += f" : {types}" if types else ""
        if self.locations and op.loc is not None:
            places = (f"{json.dumps(at.module)} {json.dumps(at.source)}" for at in op.sources)
            text += f" @ {', '.join(places)}"
        return text.split("\n")

    def operands(self, op: Op) -> list[str]:
        shown: list[str] = []
        for spec in op.fields:
            value: Any = getattr(op, spec.name)
            if spec.kind == "operand":
                shown.append(self.name(value))
            elif spec.kind == "optional":
                shown.append("_" if value is None else self.name(value))
            elif spec.kind == "variadic":
                shown.append("[" + ", ".join(self.name(v) for v in value) + "]")
        while shown and shown[-1] == "_":
            shown.pop()
        return shown

    def attributes(self, op: Op, indent: str) -> str:
        shown: list[str] = []
        for key, value in op.attributes.items():
            if isinstance(value, Func):
                inner = _Printer(self.locations).func(value, indent + "  ")
                text = "\n".join([inner[0].lstrip(), *inner[1:]])
            else:
                text = format_attribute(value)
            shown.append(f"{key} = {text}")
        return "{" + ", ".join(shown) + "}" if shown else ""


def _quoted(name: str, plain: re.Pattern[str]) -> str:
    """A name as it is where it is of this form, else in quotes."""
    return name if plain.fullmatch(name) else json.dumps(name)


def _origin(arg: Value, name: str) -> str:
    origin = arg.origin
    if origin is None or origin == Origin("input", name):
        return ""
    digest = f" #{origin.digest}" if origin.digest else ""
    pinned = f" pinned {json.dumps(origin.pinned)}" if origin.pinned else ""
    limits = f" in {origin.limits}" if origin.kind == "number" else ""
    return f" = {origin.kind} {json.dumps(origin.name)}{digest}{pinned}{limits}"


def format_attribute(value: Any) -> str:
    """The text of one attribute value."""
    match value:
        case bool() | None:
            return str(value).lower()
        case enum.Enum():
            return value.value if isinstance(value, DType) else json.dumps(value.value)
        case int():
            return str(value)
        case float():
            return repr(value)
        case str():
            return json.dumps(value)
        case tuple():
            items = [format_attribute(v) for v in cast("tuple[Any, ...]", value)]
            return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
        case sympy.Symbol() if str(value) not in _RESERVED:
            return str(value)
        case sympy.Expr():
            return f"<{format_dim(value)}>"
        case TensorType():
            return str(value)
        case Ref(index):
            return f"${index}"
        case Opaque(kind, text):
            return f"!{kind} {json.dumps(text)}"
        case _:
            raise IRError(f"attribute {value!r} of {type(value).__name__} has no text form")


# -- parsing --------------------------------------------------------------------------------


class ParseError(IRError):
    """Text that is not IR: says line, column, what was found and what was expected."""

    def __init__(self, line: int, column: int, found: str, expected: str) -> None:
        super().__init__(f"line {line}, column {column}: found {found}, expected {expected}")
        self.line = line
        self.column = column
        self.found = found
        self.expected = expected


_TOKEN = re.compile(
    r"""(?P<space>(?:\s|//[^\n]*)+)
      | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<value>%(?:[A-Za-z_][A-Za-z0-9_.]*|"(?:[^"\\\n]|\\.)*"))
      | (?P<number>-?(?:\d+\.(?!\.)\d*(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\d+(?!\.\d)))
      | (?P<digest>\#[0-9a-f]+)
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)
      | (?P<range>\.\.)
      | (?P<sign>[-+*%/@(){}\[\]<>=:,_$!])""",
    re.VERBOSE,
)


def parse_func(text: str, starts: dict[Op, int] | None = None) -> Func:
    """Read one func from its text form.

    Args:
        text: of the func.
        starts: where given, gets the character at which each op begins, see `place`.

    Raises:
        ParseError: the text is not a func, with line, column, and what was expected there.

    """
    parser = _Parser(text, {} if starts is None else starts)
    try:
        func = parser.func({})
    except RecursionError:
        parser.fail("less within one another")
    parser.skip()
    if parser.at < len(text):
        parser.fail("the end of the text")
    return func


def place(text: str, at: int) -> tuple[int, int]:
    """Line and column of a character of a text, both from 1."""
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)


class _Parser:
    def __init__(self, text: str, starts: dict[Op, int]) -> None:
        self.text = text
        self.at = 0
        self.starts = starts

    # -- scanning

    def skip(self) -> None:
        while (m := _TOKEN.match(self.text, self.at)) and m.lastgroup == "space":
            self.at = m.end()

    def place(self, at: int) -> tuple[int, int]:
        """Line and column of a character, both from 1."""
        return place(self.text, at)

    def fail(self, expected: str, at: int | None = None) -> NoReturn:
        at = self.at if at is None else at
        line, column = self.place(at)
        m = _TOKEN.match(self.text, at)
        found = "the end"
        if at < len(self.text):
            token = m.group() if m else self.text[at]
            found = repr(token if len(token) <= _ROOM else f"{token[:_ROOM]}...")
        raise ParseError(line, column, found, expected)

    def peek(self) -> tuple[str, str]:
        self.skip()
        m = _TOKEN.match(self.text, self.at)
        return (str(m.lastgroup), m.group()) if m else ("end", "")

    def take(self, group: str, expected: str) -> str:
        kind, token = self.peek()
        if kind != group:
            self.fail(expected)
        self.at += len(token)
        return token

    def sees(self, literal: str) -> bool:
        self.skip()
        return self.text.startswith(literal, self.at)

    def accept(self, literal: str) -> bool:
        if not self.sees(literal):
            return False
        self.at += len(literal)
        return True

    def expect(self, literal: str) -> None:
        if not self.accept(literal):
            self.fail(repr(literal))

    def listed(self, end: str, item: Callable[[], T]) -> list[T]:
        items: list[T] = []
        while not self.accept(end):
            items.append(item())
            if not self.sees(end):
                self.expect(",")
        return items

    def string(self) -> str:
        return self.unquoted(self.take("string", "a quoted string"))

    def unquoted(self, token: str) -> str:
        """What a quoted string that was just read says."""
        try:
            return cast("str", json.loads(token))
        except ValueError:
            self.fail("a string as JSON has them", self.at - len(token))

    def defined(self, expected: str) -> str:
        """The name of a value, without the sign before it."""
        token = self.take("value", expected)[1:]
        return self.unquoted(token) if token.startswith('"') else token

    def integer(self, expected: str) -> int:
        token = self.take("number", expected)
        if not _INTEGER.fullmatch(token):
            self.fail(expected, self.at - len(token))
        return int(token)

    # -- grammar

    def func(self, outer: Mapping[str, Value]) -> Func:
        self.expect("func")
        self.expect("@")
        is_quoted = self.peek()[0] == "string"
        func = Func(self.string() if is_quoted else self.take("word", "the name of the func"))
        scope: dict[str, Value] = dict(outer)
        self.expect("(")
        self.listed(")", lambda: self.argument(func, scope))
        if self.accept("where"):
            self.ranges(func)
        self.expect("{")
        while not self.accept("return"):
            self.op(func, scope)
        if not self.sees("}"):
            values = [self.value(scope)]
            while self.accept(","):
                values.append(self.value(scope))
            func.set_returns(values)
        self.expect("}")
        return func

    def argument(self, func: Func, scope: dict[str, Value]) -> None:
        self.skip()
        start = self.at
        name = self.defined("an argument such as %x")
        if name in scope:
            self.fail(f"a new name (%{name} is already defined)", start)
        self.expect(":")
        value_type = self.type()
        scope[name] = func.add_arg(value_type, name, self.origin(name))

    def origin(self, name: str) -> Origin:
        if not self.accept("="):
            return Origin("input", name)
        kind = self.take("word", _KINDS)
        if kind not in _ORIGINS:
            self.fail(_KINDS, self.at - len(kind))
        label = self.string()
        digest = self.take("digest", "a digest")[1:] if self.peek()[0] == "digest" else ""
        pinned = self.string() if self.accept("pinned") else ""
        limits = self.range() if self.accept("in") else Range()
        return Origin(cast("Any", kind), label, digest, pinned, limits)

    def ranges(self, func: Func) -> None:
        while True:
            name = self.take("word", "the name of a symbol")
            if not is_size_name(name):
                self.fail("the name of a symbol", self.at - len(name))
            self.expect("in")
            self.skip()
            start = self.at
            func.symbols[name] = limits = self.range()
            if limits.lo > MOST_EXTENT or (limits.hi is not None and limits.hi < 0):
                self.fail(f"a range with extents from 0 to {MOST_EXTENT}", start)
            if not self.accept(","):
                return

    def range(self) -> Range:
        lo = self.integer("the lower end of the range")
        self.expect("..")
        self.skip()
        start = self.at
        hi = self.integer("an integer") if self.peek()[0] == "number" else None
        if hi is not None and hi < lo:
            self.fail(f"an upper end of at least {lo}", start)
        return Range(lo, hi)

    def type(self) -> ValueType:
        start = self.at
        word = self.take("word", "a type such as f32[B, 64]")
        if word == "buffer":
            self.expect("<")
            inner = self.type()
            self.expect(">")
            if not isinstance(inner, TensorType):
                self.fail("a tensor", start)
            return BufferType(inner)
        if word == "int":
            self.expect("<")
            value = self.dim(">")
            self.expect(">")
            return IntType(value)
        if word not in _DTYPES:
            self.fail(f"a type ({', '.join(_DTYPES)})", self.at - len(word))
        self.expect("[")
        return TensorType(_DTYPES[word], tuple(self.listed("]", self.extent)))

    def extent(self) -> Dim:
        self.skip()
        start = self.at
        value = self.dim(",]")
        if not is_extent(value):
            self.fail(f"an extent from 0 to {MOST_EXTENT}", start)
        return value

    def dim(self, stops: str) -> Dim:
        self.skip()
        start, depth = self.at, 0
        while self.at < len(self.text):
            char = self.text[self.at]
            if depth == 0 and char in stops:
                break
            depth += (char == "(") - (char == ")")
            if char in "{}\n":
                break
            self.at += 1
        try:
            return parse_dim(self.text[start : self.at])
        except ValueError:
            self.fail("a dim, such as 64 or 2*B", start)

    def value(self, scope: Mapping[str, Value]) -> Value:
        self.skip()
        start = self.at
        name = self.defined("a value such as %x")
        if name not in scope:
            self.fail("a value defined before this line", start)
        return scope[name]

    def op(self, func: Func, scope: dict[str, Value]) -> None:
        results = self.result_names()
        self.skip()
        start = self.at
        word = self.take("word", "the name of an op")
        if word not in OPS:
            near = "".join(f", such as {name}" for name in get_close_matches(word, OPS, n=1))
            self.fail(f"the name of a declared op{near}", start)
        fields = self.operands(OPS[word], scope)
        fields |= self.attributes(OPS[word], scope)
        try:
            op = func.append(OPS[word](**fields))
        except Exception as error:  # whatever `infer` makes of attributes that it was not made for
            line, column = self.place(start)
            said = str(error) or type(error).__name__
            raise ParseError(line, column, f"an invalid op ({said})", f"a valid {word}") from error
        self.starts[op] = start
        self.results(op, results, scope, start)

    def result_names(self) -> list[tuple[str, int]]:
        """The names before the sign of equality, each with its place."""
        found: list[tuple[str, int]] = []
        end = self.at
        while self.peek()[0] == "value":
            start = self.at
            found.append((self.defined("a result"), start))
            end = self.at
            if not self.accept(","):
                break
        if found and not self.accept("="):
            if "\n" in self.text[end : self.at]:  # the names end a line, and begin no op
                self.fail("an op such as %y = exp %x", found[0][1])
            self.fail("'='")
        return found

    def operands(self, cls: type[Op], scope: Mapping[str, Value]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        specs = [s for s in cls.fields if s.kind in ("operand", "optional", "variadic")]
        for spec in specs:
            self.skip()
            if not self.sees("%") and not self.sees("[") and not self.sees("_"):
                break
            fields[spec.name] = self.operand(spec, scope)
            if not self.sees(","):
                break
            if spec is specs[-1]:
                self.fail(f"no more operands ({cls.name} takes {len(specs)})")
            self.expect(",")
        return fields

    def operand(self, spec: FieldSpec, scope: Mapping[str, Value]) -> Any:
        if spec.kind == "variadic":
            self.expect("[")
            return tuple(self.listed("]", lambda: self.value(scope)))
        if spec.kind == "optional" and self.accept("_"):
            return None
        return self.value(scope)

    def attributes(self, cls: type[Op], scope: Mapping[str, Value]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if not self.accept("{"):
            return fields
        known = attribute_types(cls)

        def item() -> None:
            self.skip()
            start = self.at
            key = self.take("word", "the name of an attribute")
            if key not in known:
                self.fail(f"an attribute of {cls.name} ({', '.join(sorted(known))})", start)
            self.expect("=")
            self.skip()
            start = self.at
            fields[key] = normalize_attribute(self.attribute())
            if not fits(fields[key], known[key]):
                self.fail(f"{described(known[key])} for {key} of {cls.name}", start)

        self.listed("}", item)
        return fields

    def attribute(self) -> Any:
        kind, token = self.peek()
        if kind == "number":
            if not re.fullmatch(r"-?\d+", token):
                self.at += len(token)
                return float(token)
            return self.integer("an integer of at most 400 digits")
        if kind == "string":
            return self.string()
        if self.accept("("):
            return tuple(self.listed(")", self.attribute))
        if self.accept("<"):
            value = self.dim(">")
            self.expect(">")
            return value
        if self.accept("$"):
            return Ref(self.integer("an operand number"))
        if self.accept("!"):
            return Opaque(self.take("word", "a kind such as device"), self.string())
        if self.accept("-inf"):
            return -math.inf
        return self.attribute_word(token)

    def attribute_word(self, token: str) -> Any:
        if token == "func":
            return self.func({})
        start = self.at
        word = self.take("word", "an attribute value")
        if word in _WORDS:
            return _WORDS[word]
        if word in _DTYPES:
            if not self.sees("["):
                return _DTYPES[word]
            self.at = start
            return self.type()
        try:
            return parse_dim(word)
        except ValueError:
            self.fail("an attribute value", start)

    def results(
        self, op: Op, names: list[tuple[str, int]], scope: dict[str, Value], start: int
    ) -> None:
        results = op.results
        if (count := len(results)) != len(names):
            plural = "" if count == 1 else "s"
            at = names[count][1] if count < len(names) else start
            self.fail(f"{count} result name{plural} for {op.name}, not {len(names)}", at)
        for (name, at), value in zip(names, results, strict=True):
            if name in scope:
                self.fail(f"a new name (%{name} is already defined)", at)
            if not has_extents(value.type):
                line, column = self.place(start)
                found = f"an op whose result would be {value.type}"
                raise ParseError(line, column, found, f"extents from 0 to {MOST_EXTENT}")
            value.hint = name
            scope[name] = value
        if self.accept(":"):
            for index, value in enumerate(results):
                if index:
                    self.expect(",")
                self.skip()
                at = self.at
                if (given := self.type()) != value.type:
                    line, column = self.place(at)
                    expected = f"the inferred type {value.type}"
                    raise ParseError(line, column, str(given), expected)
        if self.accept("@"):
            op.loc = Loc(self.string(), self.string())
            while self.accept(","):
                op.also = (*op.also, Loc(self.string(), self.string()))
