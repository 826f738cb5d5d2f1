"""Second starts: what a program was compiled to comes back from a cache, and nothing is traced.

A saved form is what Dynamo found (guards and bytecode, `fuseline._torch.precompile`) and, for each
graph that the bytecode calls, what the engine needs to run it again and what the caller is owed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn

from fuseline import _torch
from fuseline._torch.identities import CannotSaveError, identity_of
from fuseline._torch.precompile import Precompiled, Trace
from fuseline.errors import OverlapError
from fuseline.frontend.captured import FromGraph, FromInput, FromNothing, FromSymbols, Owed, Return
from fuseline.frontend.captured import Symbol as SizeSymbol
from fuseline.frontend.execute import Compiled, Ran, finish
from fuseline.ir.types import format_dim, parse_dim

log = logging.getLogger(__name__)

Json: TypeAlias = Any
Factors: TypeAlias = Mapping[str, Json]

ATTEMPTS = 8
"""After so many calls, saved forms that still do not fit are forgotten."""


MOST_CONSTANTS = 1 << 16
"""Programs with more bytes of constants are not kept."""


class NeedsTraceError(Exception):
    """A saved form refuses a call, before it did anything, as the arguments overlap.

    Such a call runs in the order of the traced graph, which the form does not have.
    """


class FormStore(Protocol):
    """Keeps saved forms by what they depend on."""

    def load(self, factors: Factors) -> Iterable[tuple[bytes, str]]:
        """The forms saved under these factors: Dynamo's part, and the graphs as text."""
        ...

    def save(self, factors: Factors, form: str, trace: bytes, graphs: str) -> None:
        """Add a form, unless it is there; failing to is no error. ``form`` tells it from others."""
        ...


class Restorer(Protocol):
    """Brings compiled code back from what its ``saved`` attribute said."""

    def restore(self, saved: str) -> Compiled:
        """The compiled code of a saved graph."""
        ...


class WarmStart:
    """The saved forms of one program: used before its first calls, added to after compilations."""

    def __init__(
        self,
        entry: types.FunctionType,
        store: FormStore,
        restorer: Restorer,
        factors: Factors,
        ran: Ran,
    ) -> None:
        self.precompiled = Precompiled(entry)
        self.store = store
        self.restorer = restorer
        self.factors = factors
        self.ran = ran
        self.used = 0
        self._waiting: list[tuple[bytes, str]] | None = None
        self._attempts = 0

    @property
    def waiting(self) -> bool:
        """Whether there may be forms to use."""
        return self._waiting is None or bool(self._waiting)

    def use(self, scope: Mapping[str, object]) -> int:
        """Use the forms that fit the arguments of a call; how many there were."""
        if self._waiting is None:
            self._waiting = list(self.store.load(self.factors))
        self._attempts += 1
        left = [form for form in self._waiting if not self._use(form, scope)]
        used = len(self._waiting) - len(left)
        self._waiting = left if self._attempts < ATTEMPTS else []
        self.used += used
        return used

    def _use(self, form: tuple[bytes, str], scope: Mapping[str, object]) -> bool:
        data, graphs = form
        try:
            saved: dict[str, Json] = json.loads(graphs)
            return self.precompiled.install(
                Trace(data, tuple(saved)),
                scope,
                lambda: {name: self._restore(graph) for name, graph in saved.items()},
            )
        except Exception as error:  # whatever torch makes of bytes from another day
            log.debug("a saved form cannot be used: %s", error)
            return False

    def _restore(self, graph: Json) -> Callable[..., Any]:
        owed = owed_from(graph["owed"])
        run = finish(owed, self.restorer.restore(graph["program"]), self.ran)

        def call(*arguments: Any) -> Any:
            try:
                return run(*arguments)
            except OverlapError as error:
                raise NeedsTraceError from error

        return call

    def save(self) -> None:
        """Keep the forms that were compiled since last asked."""
        graphs: dict[str, Any] = self.precompiled.package.cached_backends
        for trace in self.precompiled.new_traces(lambda name: saved_of(graphs[name]) is not None):
            saved = {name: saved_of(graphs[name]) for name in trace.backends}
            known = json.dumps([trace.digest, *saved.values()])
            form = hashlib.sha256(known.encode()).hexdigest()
            self.store.save(self.factors, form, trace.data, json.dumps(saved))


def keep(call: Callable[..., Any], owed: Owed, compiled: object) -> None:
    """Note on the function of a graph what it takes to bring it back, where that can be."""
    program = getattr(compiled, "saved", None)
    if isinstance(program, str) and sum(c.nbytes for c in owed.constants) <= MOST_CONSTANTS:
        cast("Any", call).fuseline_saved = {"owed": owed_to(owed), "program": program}


def saved_of(call: object) -> Json:
    """What `keep` noted; None where it noted nothing."""
    return getattr(call, "fuseline_saved", None)


def factors_of(target: object) -> dict[str, Json] | None:
    """What tells a program from others before it is traced; None where nothing does."""
    try:
        if isinstance(target, nn.Module):
            return _factors_of_module(target)
        name = getattr(target, "__qualname__", type(target).__qualname__)
        return {"name": name, "function": list(identity_of(target))}
    except CannotSaveError as reason:
        log.debug("forms of %s are not kept: %s", target, reason)
        return None


def _factors_of_module(module: nn.Module) -> dict[str, Json]:
    """Its class, its tensors' types, and its hooks, on which Dynamo puts no guards."""
    cls = type(module)
    tensors = [
        (name, str(t.dtype), list(t.shape), list(t.stride()))
        for name, t in (*module.named_parameters(), *module.named_buffers())
    ]
    parts: list[tuple[str, nn.Module]] = list(cast("Any", module).named_modules())
    hooks = [
        [path, [list(identity_of(hook)) for hook in _torch.hooks_of(part)]]
        for path, part in parts
        if _torch.hooks_of(part)
    ]
    return {
        "name": f"{cls.__module__}.{cls.__qualname__}",
        "tensors": hashlib.sha256(json.dumps(tensors).encode()).hexdigest()[:16],
        "hooks": hooks,
    }


# -- what a caller is owed, as plain data -----------------------------------------------------


def owed_to(owed: Owed) -> Json:
    """`Owed` as plain data."""
    return {
        "constants": [_constant_to(c) for c in owed.constants],
        "returns": [_return_to(r) for r in owed.returns],
        "symbols": [[s.name, s.low, s.high, list(s.source)] for s in owed.symbols],
        "pairs": list(owed.pairs),
    }


def owed_from(data: Json) -> Owed:
    """`Owed` from what `owed_to` gave."""
    symbols = [
        SizeSymbol(name, low, high, (source[0], source[1]))
        for name, low, high, source in data["symbols"]
    ]
    returns = tuple(_return_from(r) for r in data["returns"])
    constants = tuple(_constant_from(*c) for c in data["constants"])
    return Owed(returns, tuple(symbols), constants, tuple(data["pairs"]))


def _constant_to(tensor: Tensor) -> Json:
    """Type, extents, strides, and the elements in the order of their addresses."""
    flat = torch.as_strided(tensor, (_reach(tensor.shape, tensor.stride()),), (1,))
    data = cast("Any", flat.view(torch.uint8)).numpy().tobytes()
    kind = str(tensor.dtype).removeprefix("torch.")
    return [kind, [*tensor.shape], [*tensor.stride()], base64.b64encode(data).decode()]


def _constant_from(kind: str, shape: list[int], strides: list[int], data: str) -> Tensor:
    flat = torch.empty(_reach(shape, strides), dtype=getattr(torch, kind))
    cast("Any", flat.view(torch.uint8)).numpy()[:] = bytearray(base64.b64decode(data))
    return flat.as_strided(shape, strides)


def _reach(shape: Sequence[int], strides: Sequence[int]) -> int:
    """How many elements lie between the first and the last one, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))


def _return_to(item: Return) -> Json:
    match item:
        case FromGraph(index):
            return ["graph", index]
        case FromInput(index, size, stride, offset):
            dims = [[format_dim(d) for d in part] for part in (size, stride, (offset,))]
            return ["input", index, *dims]
        case FromSymbols(value):
            return ["symbols", format_dim(value)]
        case FromNothing(value):
            return ["nothing", value]


def _return_from(data: Json) -> Return:
    match data:
        case ["graph", index]:
            return FromGraph(index)
        case ["input", index, size, stride, [offset]]:
            sizes, strides = (tuple(parse_dim(d) for d in part) for part in (size, stride))
            return FromInput(index, sizes, strides, parse_dim(offset))
        case ["symbols", value]:
            return FromSymbols(parse_dim(value))
        case ["nothing", value]:
            return FromNothing(value)
        case _:
            raise ValueError(f"{data!r} is nothing that a caller is owed")
