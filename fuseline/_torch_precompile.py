"""What Dynamo found out about a program, as bytes: its guards, and the code that it generated.

Tracing Python is most of what a second start would cost. torch can serialise its outcome
(`torch._dynamo.package`); this module uses those parts for one entry function, whose traces it
gives as bytes, and takes back in another process. Everything here is private to torch: where a
piece is missing or refuses, a program is traced anew, and that is all.

Some guards compare objects by identity (functions, classes, modules), which means nothing in
another process. They are written down as names and a digest of the code, and compared before a
trace is used. The sources of all inlined functions are compared by digest as well.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import dis
import hashlib
import importlib
import logging
import pickle
import re
import types
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias, cast

log = logging.getLogger(__name__)

Identity: TypeAlias = "tuple[str, ...]"

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


class CannotSaveError(Exception):
    """A trace that holds something with no meaning outside this process."""


@dataclass(frozen=True)
class Trace:
    """One compiled form of an entry function: guards and bytecode, and the graphs that it calls.

    Attributes:
        data: what `Precompiled.install` needs; not the same bytes for the same trace.
        backends: the names by which the bytecode calls its compiled graphs.
        digest: of the sources and guards, the same in every process.
    """

    data: bytes
    backends: tuple[str, ...]
    digest: str = ""


@dataclass
class _State:
    """The contents of `Trace.data`."""

    guards: bytes
    code: Any
    imports: dict[str, str]
    sources: Any
    identities: list[tuple[str, Identity]]
    versions: Any
    backends: tuple[str, ...]


@dataclass
class _Recording:
    """What is noted while one form is compiled."""

    identities: list[tuple[str, Identity]] = field(default_factory=list[tuple[str, Identity]])
    guards: list[str] = field(default_factory=list[str])
    failure: str = ""


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether this torch has the pieces that are used here."""
    try:
        package = importlib.import_module("torch._dynamo.package")
        guards = importlib.import_module("torch._dynamo.guards")
        native = importlib.import_module("torch._C._dynamo.eval_frame")
        names = ("CompilePackage", "SerializedCode", "SystemInfo", "load_guards_state")
        return (
            all(hasattr(package, name) for name in (*names, "load_guard_manager"))
            and hasattr(guards.CheckFunctionManager, "serialize_guards")
            and hasattr(native, "_load_precompile_entry")
        )
    except ImportError:
        return False


class Precompiled:
    """The traces of one entry function, made here or brought from another process."""

    def __init__(self, entry: types.FunctionType) -> None:
        self.entry = entry
        self.package: Any = _package_class()(entry)
        self._saved = 0

    def new_traces(self, keep: Callable[[str], bool]) -> list[Trace]:
        """The forms compiled here since last asked, those left out that cannot be saved.

        ``keep`` says of a compiled graph, by name, whether it can be brought back.
        """
        codes: list[Any] = list(self.package._codes.values())
        forms, recordings = codes[0].guarded_codes, self.package.recordings
        fresh = range(self._saved, len(forms))
        self._saved = len(forms)
        if len(codes) != 1 or len(recordings) != len(forms):
            return []  # graph breaks: the forms belong together
        traces: list[Trace] = []
        for index in fresh:
            try:
                traces.append(self._trace(forms[index], recordings[index], codes[0], keep))
            except (CannotSaveError, pickle.PicklingError, TypeError) as reason:
                log.debug("a trace cannot be kept: %s", reason)
        return traces

    def _trace(
        self, form: Any, recording: _Recording, code: Any, keep: Callable[[str], bool]
    ) -> Trace:
        if recording.failure or not form.guards_state:
            raise CannotSaveError(recording.failure or "no guards")
        aliases: dict[str, str] = dict(code.import_sources)
        backends: list[str] = []
        for name in _globals_read(form.dynamo_code):
            if name in code.backend_ids:
                backends.append(name)
                if not keep(name):
                    raise CannotSaveError(f"the graph {name}")
            elif name not in aliases and name not in vars(builtins):
                aliases[name] = _module_of(self.entry.__globals__, name)
        state = _State(
            form.guards_state,
            dataclasses.replace(form.dynamo_code, co_filename="<fuseline>"),
            aliases,
            _without_contents(self.package._source_info),
            recording.identities,
            _package().SystemInfo.current(),
            tuple(backends),
        )
        sources = sorted(
            (s.module, s.firstlineno, s.lastlineno, s.checksum)
            for s in state.sources.inlined_sources
        )
        code = form.dynamo_code
        generated = _everywhere(repr((code.co_code, code.co_names, code.co_consts)))
        known = repr((sources, recording.identities, recording.guards, generated))
        digest = hashlib.sha256(known.encode()).hexdigest()
        return Trace(pickle.dumps(state), tuple(backends), digest)

    def install(
        self,
        trace: Trace,
        scope: Mapping[str, object],
        restore: Callable[[], Mapping[str, Callable[..., Any]]],
    ) -> bool:
        """Use a trace from another process; False where it does not hold here.

        ``scope`` are the arguments of the call at hand by parameter name. ``restore`` gives the
        compiled graphs by name; it is called only where the trace holds.

        Raises:
            Exception: of any kind, for a trace that this torch cannot read.

        """
        state: _State = pickle.loads(trace.data)
        state.versions.check_compatibility(_package().SystemInfo.current())
        _check_sources(state.sources)
        names = self.entry.__globals__
        for alias, module in state.imports.items():
            names[alias] = importlib.import_module(module)
        guards = _package().load_guards_state(state.guards)
        key = guards.output_graph.name_of_builtins_dict_key_in_fglobals
        if key:
            names[key] = vars(builtins)
            _reserve(key)
        if not _same(state.identities, scope, names):
            return False
        for name, backend in restore().items():
            names[name] = cast("Any", importlib.import_module("torch")).compiler.disable(backend)
        manager = _package().load_guard_manager(guards, self.entry.__code__, names)
        native = cast("Any", importlib.import_module("torch._C._dynamo.eval_frame"))
        code = _package().SerializedCode.to_code_object(state.code)
        native._load_precompile_entry(self.entry.__code__, manager, code)
        return True


def _reserve(name: str) -> None:
    """Keep Dynamo from making up a name of another process again: it counts from 0 in each."""
    made_up = importlib.import_module("torch._dynamo.bytecode_transformation").unique_id
    number = int(name.rpartition("_")[2])
    while int(made_up("").rpartition("_")[2]) < number:
        pass


def _package() -> Any:
    return importlib.import_module("torch._dynamo.package")


def _without_contents(sources: Any) -> Any:
    """The digests of inlined functions, without the text of the modules that they stand in."""
    bare = {dataclasses.replace(s, content="") for s in sources.inlined_sources}
    return type(sources)(inlined_sources=bare)


def _check_sources(sources: Any) -> None:
    """Compare the sources of all inlined functions with those that were traced."""
    package = _package()
    for code in sources.inlined_sources:
        module = importlib.import_module(code.module)
        found = package._hash_sourcelines(module, code.firstlineno, code.lastlineno)
        if found != code.checksum:
            raise CannotSaveError(f"{code.module} has changed since")


# -- recording --------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _package_class() -> Any:
    """A ``CompilePackage`` that never gets into the way of a compilation."""
    base: Any = _package().CompilePackage
    _patch_serialisation()

    class Package(base):
        """Notes identities and failures beside what torch notes."""

        def __init__(self, entry: types.FunctionType) -> None:
            self.recordings: list[_Recording] = []
            self.current = _Recording()
            base.__init__(self, entry)

        @contextlib.contextmanager
        def code_context(self, code: types.CodeType) -> Generator[None]:
            self.current = _Recording()
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
        if not isinstance(recording, _Recording):
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
    return _everywhere(" ".join(map(str, parts)))


def _global_state(output_graph: Any) -> str:
    """The modes and settings that a trace holds under."""
    state = getattr(output_graph, "global_state_guard", None)
    describe = getattr(state, "__getstate__", None)
    return "" if describe is None else repr(describe())


def _everywhere(text: str) -> str:
    """A text without addresses, and without the numbers of names that torch makes up."""
    return _RANDOM.sub("#", text)


def _value(builder: Any, guard: Any) -> Any:
    try:
        return builder.get(guard)
    except (TypeError, AttributeError):
        return builder.get(_name(guard))


# -- identities -------------------------------------------------------------------------------


def identity_of(value: object) -> Identity:
    """What stands for an object in another process.

    Raises:
        CannotSaveError: nothing does.

    """
    if isinstance(value, types.ModuleType):
        return "module", value.__name__
    if isinstance(value, type):
        return "class", value.__module__, value.__qualname__
    if isinstance(value, types.MethodType):
        return "method", *identity_of(value.__func__)
    if isinstance(value, types.FunctionType):
        return "function", value.__module__, value.__qualname__, code_digest(value.__code__)
    if isinstance(value, types.CodeType):
        return "code", value.co_qualname, code_digest(value)
    if isinstance(value, types.BuiltinFunctionType | types.WrapperDescriptorType):
        return "builtin", str(getattr(value, "__module__", "")), value.__qualname__
    if isinstance(value, _operator_type()):
        packet = cast("Any", value)
        schemas = (str(getattr(packet, overload)._schema) for overload in packet.overloads())
        return "operator", str(packet), *sorted(schemas)
    if value is None or isinstance(value, bool | types.EllipsisType | types.NotImplementedType):
        return "constant", repr(value)
    raise CannotSaveError(f"a guard on the identity of a {type(value).__qualname__}")


def _operator_type() -> Any:
    return cast("Any", importlib.import_module("torch._ops")).OpOverloadPacket


def code_digest(code: types.CodeType) -> str:
    """A digest of what a function does, not of where it stands."""
    consts = [code_digest(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    text = repr((code.co_code, code.co_names, code.co_varnames, consts))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _same(
    identities: Sequence[tuple[str, Identity]], scope: Mapping[str, object], names: dict[str, Any]
) -> bool:
    """Whether each object that a guard names is the one that it was."""
    guards = cast("Any", importlib.import_module("torch._dynamo.guards"))
    known = {**guards._get_closure_vars(), "L": scope, "G": names}
    for source, identity in identities:
        try:
            found = identity_of(eval(source, known))  # torch's own names of sources
        except Exception as error:
            log.debug("%s cannot be looked up: %s", source, error)
            return False
        if found != identity:
            log.debug("%s is %s, was %s", source, found, identity)
            return False
    return True


def _globals_read(code: Any) -> list[str]:
    """The global names that serialised bytecode reads, nested code included."""
    real = _package().SerializedCode.to_code_object(code)
    found: dict[str, None] = {}
    todo = [real]
    while todo:
        item = todo.pop()
        for instruction in dis.get_instructions(item):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                found[str(instruction.argval)] = None
        todo += [c for c in item.co_consts if isinstance(c, types.CodeType)]
    return list(found)


def _module_of(names: Mapping[str, Any], name: str) -> str:
    """The name of the module that a global is.

    Raises:
        CannotSaveError: it is none.

    """
    value = names.get(name)
    if not isinstance(value, types.ModuleType):
        raise CannotSaveError(f"the global {name}, a {type(value).__name__}")
    return value.__name__
