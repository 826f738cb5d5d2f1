"""What is noted of a program's guards while Dynamo compiles it, in the words of every process."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import re
import types
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

from fuseline._torch.identities import Identity, identity_of

_UNSAVED = frozenset(
    {
        "CLASS_MATCH",
        "CLOSURE_MATCH",
        "DICT_VERSION",
        "FUNCTION_MATCH",
        "ID_MATCH",
        "MODULE_MATCH",
        "NN_MODULE",
        "WEAKREF_ALIVE",
    }
)
"""Guards by identity, which torch does not serialise."""


_RANDOM = re.compile(
    r"\d{9,}|0x[0-9a-f]{6,}|[0-9a-f]{8}(_[0-9a-f]{4}){3}_[0-9a-f]{12}|(?<=_)\d+(?![\w.])|(?<=_)\d+(?=_)"
)
"""Addresses, and the numbers in names that torch makes up: different in every process."""


@dataclass
class Recording:
    """What is noted while one form is compiled."""

    identities: list[tuple[str, Identity]] = field(default_factory=list[tuple[str, Identity]])
    guards: list[str] = field(default_factory=list[str])
    failure: str = ""


def package_module() -> Any:
    """torch's module of what makes up a serialised compilation."""
    return importlib.import_module("torch._dynamo.package")


@lru_cache(maxsize=1)
def package_class() -> Any:
    """A ``CompilePackage`` that never gets into the way of a compilation."""
    base: Any = package_module().CompilePackage
    _patch_serialisation()

    class Package(base):
        """Notes identities and failures beside what torch notes."""

        def __init__(self, entry: types.FunctionType) -> None:
            self.recordings: list[Recording] = []
            self.current = Recording()
            base.__init__(self, entry)

        @contextlib.contextmanager
        def code_context(self, code: types.CodeType) -> Generator[None]:
            self.current = Recording()
            if code not in self._codes:
                self._add_function(code, self.entry_module())
            with base.code_context(self, code):
                yield

        def entry_module(self) -> str:
            return str(self._innermost_fn.__module__)

        def add_guarded_code(self, guards_state: bytes, dynamo_code: types.CodeType) -> None:
            if not self._current_entry.bypassed:
                self.recordings.append(self.current)
            base.add_guarded_code(self, guards_state, dynamo_code)

        def add_inlined_source(self, sources: Any) -> None:
            try:
                base.add_inlined_source(self, list(dict.fromkeys(sources)))  # once a function
            except Exception as error:
                self.current.failure = f"a source that cannot be found: {error}"

        def bypass_current_entry(self) -> None:
            self.current.failure = "torch cannot keep it"

    return Package


@lru_cache(maxsize=1)
def _patch_serialisation() -> None:
    """Let our packages, and no others, leave out the guards by identity and note them instead."""
    manager: Any = cast("Any", importlib.import_module("torch._dynamo.guards")).CheckFunctionManager
    original = manager.serialize_guards

    def serialize_guards(self: Any, builder: Any, sorted_guards: Any, output_graph: Any) -> bytes:
        package = getattr(output_graph, "package", None)
        recording = getattr(package, "current", None)
        if not isinstance(recording, Recording):
            return original(self, builder, sorted_guards, output_graph)
        try:
            by_identity = [g for g in sorted_guards if _is_by_identity(g)]
            by_value = [g for g in sorted_guards if not _is_by_identity(g)]
            recording.identities = [
                (_name(g), identity_of(_value(builder, g))) for g in by_identity
            ]
            recording.guards = sorted(map(_meaning, by_value))
            recording.guards.append(_global_state(output_graph))
            kept = [_bare(g) for g in by_value]
            _leave_out_lines(self)
            return original(self, builder, kept, output_graph)
        except Exception as error:
            recording.failure = f"guards that cannot be kept: {error}"
            return b""

    manager.serialize_guards = serialize_guards


def _bare(guard: Any) -> Any:
    """A guard without the stack that it was made on (paths of this machine, and much text), and
    without its text, which has addresses.
    """
    return dataclasses.replace(guard, stack=None, user_stack=None, code_list=None)


def _leave_out_lines(manager: Any) -> None:
    """Have guards of sizes written in their short form alone: the long one, for logs, quotes lines
    of files with parts of their paths.
    """
    shapes = getattr(manager, "shape_code_parts", None)
    if shapes is not None:
        short = dataclasses.replace(shapes, verbose_code_parts=shapes.python_code_parts)
        manager.shape_code_parts = short


def _is_by_identity(guard: Any) -> bool:
    return guard.create_fn_name() in _UNSAVED or any(
        kind in _UNSAVED for kind in guard.guard_types or ()
    )


def _name(guard: Any) -> str:
    name = guard.name  # a method in some versions, a property in others
    return str(name() if callable(name) else name)


def _meaning(guard: Any) -> str:
    """What a guard demands, in the same words in every process."""
    parts = (_name(guard), guard.create_fn_name(), *(guard.code_list or ()))
    return everywhere(" ".join(map(str, parts)))


def _global_state(output_graph: Any) -> str:
    """The modes and settings that a trace holds under."""
    state = getattr(output_graph, "global_state_guard", None)
    describe = getattr(state, "__getstate__", None)
    return "" if describe is None else repr(describe())


def everywhere(text: str) -> str:
    """A text without addresses, and without the numbers of names that torch makes up."""
    return _RANDOM.sub("#", text)


def _value(builder: Any, guard: Any) -> Any:
    try:
        return builder.get(guard)
    except (TypeError, AttributeError):
        return builder.get(_name(guard))
