"""Ops, values and funcs: the data structures of the IR.

An op is declared once, as a class whose fields are its operands, attributes and results; the typed
constructor, the ``match`` pattern and the text form all follow from the fields. A `Func` owns a
list of ops in SSA form and knows, at any time, who reads each value.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar, cast, dataclass_transform

import sympy
import torch

from fuseline.ir.order import Order
from fuseline.ir.types import (
    BufferType,
    Dim,
    DType,
    IntType,
    Range,
    TensorType,
    ValueType,
    dim,
    free_symbols,
    product,
)


class Trait(enum.Enum):
    """What passes may assume of an op without knowing it."""

    PURE = "pure"
    """No effect; equal operands and attributes give equal results."""
    VIEW = "view"
    """The result may share memory with the first operand."""
    POINTWISE = "pointwise"
    """Each result element depends on the operand elements at its own (broadcast) place."""
    WRITES = "writes"
    """Writes its buffer operands in place."""
    READS = "reads"
    """Reads a buffer operand: ordered after earlier writes, before later ones."""
    MOVES = "moves"
    """Computes nothing: it moves, converts or makes elements."""


class IRError(ValueError):
    """An op or func that breaks the rules of the IR."""


class OpError(IRError):
    """An op whose operands or attributes do not fit its declaration."""

    def __init__(self, op: Op, message: str) -> None:
        super().__init__(f"{op.name}: {message}")
        self.op = op


@dataclass(frozen=True)
class Loc:
    """A place in the user's program: module path, and file and line of the source."""

    module: str = ""
    source: str = ""

    def __str__(self) -> str:
        if not self.source:
            return self.module or "<unknown>"
        return f"{self.module} ({self.source})" if self.module else self.source


@dataclass(frozen=True)
class Origin:
    """Where a func's argument comes from: ``kind`` input, param, buffer or const, and its name; or
    state, which the program keeps itself in the place of the argument of that hint; or number, an
    integer of the call that the program reads from memory; or count, the integer of the call that
    is this symbol, read from memory beside the sizes that it stands for.

    ``pinned`` says why its memory must stay where it is (tied, hooked, sharded ...); a parameter
    where that is empty may be packed beside others. Of an integer it says why it stays a size.
    ``limits`` are those of a number.
    """

    kind: Literal["input", "param", "buffer", "const", "state", "number", "count"]
    name: str = ""
    digest: str = ""
    pinned: str = ""
    limits: Range = Range()


@dataclass(eq=False)
class Value:
    """One SSA value: an argument of a func (no owner) or a result of an op."""

    type: Any
    hint: str = ""
    owner: Op | None = field(default=None, repr=False)
    origin: Origin | None = field(default=None, repr=False)

    @property
    def tensor(self) -> TensorType:
        """The type of a tensor or buffer value's elements; IRError for an integer argument."""
        if isinstance(self.type, TensorType):
            return self.type
        if isinstance(self.type, BufferType):
            return self.type.tensor
        raise IRError(f"%{self.hint} is {self.type}, expected a tensor")

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The dims of a tensor or buffer value."""
        return self.tensor.shape

    @property
    def dtype(self) -> DType:
        """The element type of a tensor or buffer value."""
        return self.tensor.dtype


@dataclass(frozen=True)
class Ref:
    """In an attribute: the operand of this number (see `aten.call`)."""

    index: int


@dataclass(frozen=True)
class Opaque:
    """In an attribute: a torch constant that the IR only carries, such as a device or a layout."""

    kind: str
    text: str


@dataclass(frozen=True)
class FieldSpec:
    """One declared field of an op."""

    kind: Literal["operand", "optional", "variadic", "attribute", "result", "results"]
    default: Any = ...
    name: str = ""


def operand() -> Any:
    """Declare a required operand (annotation ``Value``)."""
    return FieldSpec("operand")


def optional_operand(*, default: None = None) -> Any:
    """Declare an operand that may be absent (annotation ``Value | None``)."""
    return FieldSpec("optional", default)


def variadic_operand() -> Any:
    """Declare any number of operands (annotation ``tuple[Value, ...]``)."""
    return FieldSpec("variadic")


def attribute(*, default: Any = ..., kw_only: Literal[True] = True) -> Any:
    """Declare an attribute: a bool, number, string, dim, dtype, type, func, or tuple of these."""
    return FieldSpec("attribute", default)


def result(*, init: Literal[False] = False) -> Any:
    """Declare a result (annotation ``Value``)."""
    return FieldSpec("result")


def variadic_result(*, init: Literal[False] = False) -> Any:
    """Declare as many results as `infer` gives types (annotation ``tuple[Value, ...]``)."""
    return FieldSpec("results")


OPS: dict[str, type[Op]] = {}
"""Every declared op by name; filled as classes are defined."""

Attributes: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """What an op moves and computes at least: bytes read and written, floating-point operations."""

    bytes: Dim
    flops: Dim

    def __add__(self, other: Cost) -> Cost:
        return Cost(dim(self.bytes + other.bytes), dim(self.flops + other.flops))


@dataclass_transform(
    field_specifiers=(
        operand,
        optional_operand,
        variadic_operand,
        attribute,
        result,
        variadic_result,
    )
)
class Op:
    """Base of all ops. A subclass declares fields, `infer` and `reference`.

    ``loc`` is its place in the user's program, and ``also`` what else it came from: places of ops
    whose work it does.
    """

    name: ClassVar[str] = ""
    traits: ClassVar[frozenset[Trait]] = frozenset()
    fields: ClassVar[tuple[FieldSpec, ...]] = ()
    __match_args__: ClassVar[tuple[str, ...]] = ()

    reference: ClassVar[Callable[..., Any]]

    def __init_subclass__(
        cls, *, name: str | None = None, traits: Iterable[Trait] | None = None
    ) -> None:
        """Collect the declared fields and register the op under its name."""
        super().__init_subclass__()
        if traits is not None:
            cls.traits = frozenset(traits)
        own = [
            replace(spec, name=key)
            for key, spec in vars(cls).items()
            if isinstance(spec, FieldSpec)
        ]
        names = {s.name for s in own}
        cls.fields = (*(s for s in cls.fields if s.name not in names), *own)
        for spec in own:
            delattr(cls, spec.name)
        cls.__match_args__ = tuple(
            s.name for s in cls.fields if s.kind in ("operand", "optional", "variadic")
        )
        if name is None:
            return
        cls.name = name
        if OPS.setdefault(name, cls) is not cls:
            raise TypeError(f"op {name} is declared twice: {OPS[name]} and {cls}")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.loc: Loc | None = None
        self.also: tuple[Loc, ...] = ()
        self._operands: tuple[Value, ...] | None = None
        takes = [s for s in self.fields if s.kind in ("operand", "optional", "variadic")]
        if len(args) > len(takes):
            raise TypeError(f"{self.name} takes {len(takes)} operands, got {len(args)}")
        given = {spec.name: arg for spec, arg in zip(takes, args, strict=False)} | kwargs
        for spec in self.fields:
            if spec.kind in ("result", "results"):
                continue
            if spec.name not in given and spec.default is ... and spec.kind != "variadic":
                raise TypeError(f"{self.name} needs {spec.kind} {spec.name!r}")
            value = given.pop(spec.name, () if spec.kind == "variadic" else spec.default)
            setattr(self, spec.name, self._check_field(spec, value))
        if given:
            raise TypeError(f"{self.name} has no field {sorted(given)}")
        self._make_results()

    def _check_field(self, spec: FieldSpec, value: Any) -> Any:
        if spec.kind == "attribute":
            return normalize_attribute(value)
        if spec.kind == "variadic":
            return tuple(value)
        if not isinstance(value, Value) and not (spec.kind == "optional" and value is None):
            raise TypeError(f"{self.name}: operand {spec.name} is {value!r}, expected a Value")
        return value

    def _make_results(self) -> None:
        inferred = self.infer()
        types = inferred if isinstance(inferred, tuple) else (inferred,)
        specs = [s for s in self.fields if s.kind in ("result", "results")]
        if len(specs) == 1 and specs[0].kind == "results":
            hint = specs[0].name
            setattr(self, hint, tuple(Value(t, hint, self) for t in types))
            return
        if len(types) != len(specs):
            raise TypeError(f"{self.name}.infer gave {len(types)} types for {len(specs)} results")
        for spec, value_type in zip(specs, types, strict=True):
            setattr(self, spec.name, Value(value_type, spec.name, self))

    def infer(self) -> TensorType | tuple[TensorType, ...]:
        """The result types, from the op's own operands and attributes; raises `OpError`."""
        raise NotImplementedError(self.name)

    def cost(self) -> Cost:
        """Bytes and flops of one execution; every operand read once, every result written once."""
        moved = [v.tensor.nbytes for v in (*self.operands, *self.results)]
        computes = self.results and not self.has(Trait.MOVES)
        flops = product(self.results[0].shape) if computes else 0
        return Cost(dim(sum(moved)), flops)

    @property
    def operands(self) -> tuple[Value, ...]:
        """All operands in order, absent ones left out, variadic ones flattened."""
        if self._operands is None:
            self._operands = self._find_operands()
        return self._operands

    def _find_operands(self) -> tuple[Value, ...]:
        found: list[Value] = []
        for spec in self.fields:
            if spec.kind in ("operand", "optional"):
                value = getattr(self, spec.name)
                if value is not None:
                    found.append(value)
            elif spec.kind == "variadic":
                found.extend(getattr(self, spec.name))
        return tuple(found)

    @property
    def results(self) -> tuple[Value, ...]:
        """All results in order."""
        found: list[Value] = []
        for spec in self.fields:
            if spec.kind == "result":
                found.append(getattr(self, spec.name))
            elif spec.kind == "results":
                found.extend(getattr(self, spec.name))
        return tuple(found)

    @property
    def attributes(self) -> Attributes:
        """The attributes by name, in declared order."""
        return {s.name: getattr(self, s.name) for s in self.fields if s.kind == "attribute"}

    @property
    def sources(self) -> tuple[Loc, ...]:
        """All places that the op came from, each once, the main one first."""
        return self.also if self.loc is None else (self.loc, *self.also)

    def place_like(self, other: Op) -> None:
        """Have the places of another op."""
        self.loc, self.also = other.loc, other.also

    def has(self, trait: Trait) -> bool:
        """Whether the op has a trait."""
        return trait in self.traits

    def map_operands(self, mapping: Mapping[Value, Value]) -> None:
        """Replace operands in place. Only a `Func` that holds the op may call this."""
        self._operands = None
        for spec in self.fields:
            if spec.kind in ("operand", "optional"):
                value = getattr(self, spec.name)
                if value in mapping:
                    setattr(self, spec.name, mapping[value])
            elif spec.kind == "variadic":
                values = getattr(self, spec.name)
                setattr(self, spec.name, tuple(mapping.get(v, v) for v in values))

    def clone(self, mapping: Mapping[Value, Value], **attributes: Any) -> Op:
        """A new op of the same class over mapped operands, with some attributes replaced."""
        fields: dict[str, Any] = {}
        for spec in self.fields:
            value = getattr(self, spec.name)
            if spec.kind in ("operand", "optional"):
                fields[spec.name] = None if value is None else mapping.get(value, value)
            elif spec.kind == "variadic":
                fields[spec.name] = tuple(mapping.get(v, v) for v in value)
            elif spec.kind == "attribute":
                fields[spec.name] = attributes.get(spec.name, value)
        twin = type(self)(**fields)
        twin.place_like(self)
        for mine, new in zip(self.results, twin.results, strict=True):
            new.hint = mine.hint
        return twin

    def __repr__(self) -> str:
        operands = ", ".join(f"%{v.hint}" for v in self.operands)
        return f"<{self.name} {operands}>"


def normalize_attribute(value: Any) -> Any:
    """Bring an attribute to its one form: dims canonical, sequences as tuples."""
    if isinstance(value, (list, tuple, torch.Size)):
        return tuple(normalize_attribute(v) for v in cast("Sequence[Any]", value))
    if isinstance(value, sympy.Expr):
        return dim(value)
    return value


OpT = TypeVar("OpT", bound=Op)


class Func:
    """A function: typed arguments, ops in order, returned values, and the symbols' ranges."""

    def __init__(self, name: str = "main") -> None:
        self.name = name
        self.args: list[Value] = []
        self.symbols: dict[str, Range] = {}
        self._ops: Order[Op] = Order()
        self._returns: list[Value] = []
        self._users: dict[Value, dict[Op, int]] = {}

    # -- building ---------------------------------------------------------------------------

    def add_arg(self, value_type: ValueType, hint: str, origin: Origin | None = None) -> Value:
        """Append an argument; symbols of its type that are new get the full range."""
        value = Value(value_type, hint, None, origin or Origin("input", hint))
        self.args.append(value)
        extents: Iterable[Dim] = (
            (value_type.value,) if isinstance(value_type, IntType) else value.shape
        )
        for extent in extents:
            for name in sorted(free_symbols(extent)):
                self.symbols.setdefault(name, Range())
        return value

    @property
    def unknown_sizes(self) -> set[str]:
        """The symbols that no argument gives: only the data tells them."""
        given = [(a.type.value,) if isinstance(a.type, IntType) else a.shape for a in self.args]
        return set(self.symbols).difference(*(free_symbols(d) for dims in given for d in dims))

    def append(self, op: OpT) -> OpT:
        """Append an op and return it."""
        self._ops.append(op)
        self._count(op, +1)
        return op

    def _count(self, op: Op, sign: int) -> None:
        for value in op.operands:
            users = self._users.setdefault(value, {})
            users[op] = users.get(op, 0) + sign
            if users[op] <= 0:
                del users[op]

    @property
    def returns(self) -> tuple[Value, ...]:
        """The returned values."""
        return tuple(self._returns)

    def set_returns(self, values: Iterable[Value]) -> None:
        """Set the returned values."""
        self._returns = list(values)

    # -- reading ----------------------------------------------------------------------------

    @property
    def ops(self) -> Sequence[Op]:
        """The ops in program order (a snapshot: safe to hold while the func is edited)."""
        return self._ops.items_in_order

    @property
    def places(self) -> Mapping[Op, int]:
        """The number of each op in program order, now and after edits."""
        return self._ops

    def __iter__(self) -> Iterator[Op]:
        return iter(self.ops)

    def __len__(self) -> int:
        return len(self._ops)

    def __contains__(self, op: Op) -> bool:
        return op in self._ops

    def users(self, value: Value) -> tuple[Op, ...]:
        """The ops that read a value, each once, in program order; being returned does not count.

        The order is that of the ops and not that of the edits, so that what a pass makes of them
        depends on what the func is, and not on how it came to be.
        """
        found = self._users.get(value, ())
        return tuple(found) if len(found) < 2 else tuple(sorted(found, key=self._ops.rank))

    def use_count(self, value: Value) -> int:
        """How often a value is read: by ops (each operand counts) and by the return."""
        return sum(self._users.get(value, {}).values()) + self._returns.count(value)

    def is_returned(self, value: Value) -> bool:
        """Whether a value is among the returned ones."""
        return value in self._returns

    # -- editing ----------------------------------------------------------------------------

    def edit(
        self,
        *,
        before: Op | None = None,
        insert: Sequence[Op] = (),
        replace_values: Mapping[Value, Value] | None = None,
        erase: Iterable[Op] = (),
    ) -> None:
        """Insert ops before one op (or at the end), redirect readers, then erase ops.

        Raises:
            IRError: an erased op's result is still read.

        """
        if insert:
            self._insert(before, insert)
        if replace_values:
            self._replace(replace_values)
        for op in erase:
            for value in op.results:
                if self.use_count(value):
                    raise IRError(f"cannot erase {op!r}: %{value.hint} is still read")
            self._count(op, -1)
            self._ops.remove(op)

    def _insert(self, before: Op | None, insert: Sequence[Op]) -> None:
        if before is None:
            for op in insert:
                self.append(op)
            return
        self._ops.insert(before, insert)
        for op in insert:
            self._count(op, +1)

    def _replace(self, mapping: Mapping[Value, Value]) -> None:
        for op in dict.fromkeys(op for value in mapping for op in self.users(value)):
            self._count(op, -1)
            op.map_operands(mapping)
            self._count(op, +1)
        self._returns = [mapping.get(v, v) for v in self._returns]

    def replace_operands(self, op: Op, mapping: Mapping[Value, Value]) -> None:
        """Redirect one op's operands; other readers keep theirs."""
        self._count(op, -1)
        op.map_operands(mapping)
        self._count(op, +1)

    def rebuild(self, ops: Iterable[Op], returns: Iterable[Value]) -> None:
        """Set all ops and returned values at once, in time linear in their number.

        For passes that walk the whole func; the verifier checks what they leave.
        """
        self._ops = Order(ops)
        self._returns = list(returns)
        self._users = {}
        for op in self._ops:
            self._count(op, +1)

    def reorder(self, ops: Sequence[Op]) -> None:
        """Put the same ops into another order; the verifier checks that it is a valid one."""
        if len(ops) != len(self._ops) or any(op not in self._ops for op in ops):
            raise IRError("reorder must be given exactly the ops of the func")
        self._ops = Order(ops)

    def clone(self) -> Func:
        """A deep copy: new ops and values, same names and places."""
        twin = Func(self.name)
        twin.symbols = dict(self.symbols)
        mapping: dict[Value, Value] = {}
        for arg in self.args:
            mapping[arg] = Value(arg.type, arg.hint, None, arg.origin)
            twin.args.append(mapping[arg])
        for op in self.ops:
            copy = twin.append(op.clone(mapping))
            mapping.update(zip(op.results, copy.results, strict=True))
        twin.set_returns(mapping[v] for v in self._returns)
        return twin


def digest(data: bytes) -> str:
    """The short content digest that text forms and symbols use."""
    return hashlib.sha256(data).hexdigest()[:12]
