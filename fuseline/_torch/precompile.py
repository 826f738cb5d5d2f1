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
import dataclasses
import dis
import hashlib
import importlib
import logging
import pickle
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from fuseline._torch.identities import CannotSaveError, Identity, identity_of
from fuseline._torch.recording import Recording, everywhere, package_class, package_module

log = logging.getLogger(__name__)


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
        self.package: Any = package_class()(entry)
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
        self, form: Any, recording: Recording, code: Any, keep: Callable[[str], bool]
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
            package_module().SystemInfo.current(),
            tuple(backends),
        )
        sources = sorted(
            (s.module, s.firstlineno, s.lastlineno, s.checksum)
            for s in state.sources.inlined_sources
        )
        code = form.dynamo_code
        generated = everywhere(repr((code.co_code, code.co_names, code.co_consts)))
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
        state.versions.check_compatibility(package_module().SystemInfo.current())
        _check_sources(state.sources)
        names = self.entry.__globals__
        for alias, module in state.imports.items():
            names[alias] = importlib.import_module(module)
        guards = package_module().load_guards_state(state.guards)
        key = guards.output_graph.name_of_builtins_dict_key_in_fglobals
        if key:
            names[key] = vars(builtins)
            _reserve(key)
        if not _same(state.identities, scope, names):
            return False
        for name, backend in restore().items():
            names[name] = cast("Any", importlib.import_module("torch")).compiler.disable(backend)
        manager = package_module().load_guard_manager(guards, self.entry.__code__, names)
        native = cast("Any", importlib.import_module("torch._C._dynamo.eval_frame"))
        code = package_module().SerializedCode.to_code_object(state.code)
        native._load_precompile_entry(self.entry.__code__, manager, code)
        return True


def _reserve(name: str) -> None:
    """Keep Dynamo from making up a name of another process again: it counts from 0 in each."""
    made_up = importlib.import_module("torch._dynamo.bytecode_transformation").unique_id
    number = int(name.rpartition("_")[2])
    while int(made_up("").rpartition("_")[2]) < number:
        pass


def _without_contents(sources: Any) -> Any:
    """The digests of inlined functions, without the text of the modules that they stand in."""
    bare = {dataclasses.replace(s, content="") for s in sources.inlined_sources}
    return type(sources)(inlined_sources=bare)


def _check_sources(sources: Any) -> None:
    """Compare the sources of all inlined functions with those that were traced."""
    package = package_module()
    for code in sources.inlined_sources:
        module = importlib.import_module(code.module)
        found = package._hash_sourcelines(module, code.firstlineno, code.lastlineno)
        if found != code.checksum:
            raise CannotSaveError(f"{code.module} has changed since")


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
    real = package_module().SerializedCode.to_code_object(code)
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
