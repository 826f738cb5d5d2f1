"""Everything that touches private names of torch, for torch 2.11 to 2.14.

Differences between versions are bridged here, by testing for the feature and never by the version
number. The rest of the package calls what this module exports and keeps to torch's public API.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import logging
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeAlias, cast

import sympy
import torch
from torch import Tensor, fx

from fuseline._torch_turns import Idle, trace_all_turns

Overload: TypeAlias = Any
"""An ``OpOverload``; torch gives it no useful static type."""

_lib = cast("Any", torch)


class ShapeEnv(Protocol):
    """The part of torch's shape environment that is read here."""

    def bound_sympy(self, expr: sympy.Expr) -> Any: ...


# -- fake tensors and symbolic integers -----------------------------------------------------------


def fake_mode_of(values: Sequence[object]) -> Any:
    """The fake tensor mode that the values were made under; None where there is no fake tensor.

    Not `torch._guards.detect_fake_mode`, which prefers the tracing context's: Dynamo gives its
    backends a fresh mode there, and one may not mix them.
    """
    return next((cast("Any", v).fake_mode for v in values if is_fake(v)), None)


def is_fake(value: object) -> bool:
    """Whether a value is a fake tensor."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(value, FakeTensor)


def shape_env_of(fake_mode: Any) -> ShapeEnv | None:
    """The shape environment of a fake mode; None where every shape is static."""
    return None if fake_mode is None else cast("ShapeEnv | None", fake_mode.shape_env)


def expression(value: int | torch.SymInt) -> int | sympy.Expr:
    """The value of an integer as an int, or as an expression over the symbols of its shape env."""
    if isinstance(value, torch.SymInt):
        expr = cast("sympy.Expr", cast("Any", value).node.expr)
        return int(expr) if expr.is_Integer else expr
    return int(value)


def scalar_expression(value: Any) -> Any:
    """The expression behind a SymInt, SymFloat or SymBool; other values as they are."""
    if isinstance(value, torch.SymInt):
        return expression(value)
    if isinstance(value, (torch.SymFloat, torch.SymBool)):
        return cast("Any", value).node.expr
    return value


def symbol_range(
    env: ShapeEnv | None, symbol: sympy.Symbol, stated: Any = None
) -> tuple[int | None, int | None]:
    """The least and the greatest value that a symbol may take; None where there is none.

    ``stated`` is a range of torch's that counts in place of the environment's.
    """
    if env is None:
        return 0, None
    bounds = stated if stated is not None else env.bound_sympy(symbol)
    return _finite(bounds.lower), _finite(bounds.upper)


def _finite(bound: Any) -> int | None:
    """A bound as an int; torch writes infinity in several ways, 2**62 and above among them."""
    if not bound.is_Integer or abs(int(bound)) >= 2**62:
        return None
    return int(bound)


def is_unbacked(expr: object) -> bool:
    """Whether an expression reads a symbol whose value only the data tells (``u0``)."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    return bool(cast("Any", free_unbacked_symbols)(expr))


def resized(fake: Tensor, sizes: Mapping[sympy.Symbol, sympy.Symbol]) -> Tensor:
    """A fake tensor like another, with other symbols in its sizes and strides."""
    env = cast("Any", fake).fake_mode.shape_env

    def renamed(size: int | torch.SymInt) -> Any:
        expr = expression(size)
        if isinstance(expr, int) or not expr.free_symbols & sizes.keys():
            return size
        return env.create_symintnode(cast("Any", expr).xreplace(dict(sizes)), hint=None)

    with cast("Any", fake).fake_mode:
        shape, strides = map(renamed, fake.shape), map(renamed, fake.stride())
        return torch.empty_strided([*shape], [*strides], dtype=fake.dtype, device=fake.device)


# -- operators ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schema:
    """What an overload's schema says about memory.

    Attributes:
        names: the parameters in order.
        written: parameters that the call writes.
        views: for each result, the parameter whose memory it shares; None for a fresh one.
        composite: whether torch defines the op by a composition of others.
    """

    names: tuple[str, ...]
    written: tuple[str, ...]
    views: tuple[str | None, ...]
    composite: bool
    fresh: bool

    @property
    def aliases(self) -> bool:
        """Whether a result may share memory with an argument, or an argument is written."""
        return not self.fresh


@lru_cache(maxsize=4096)
def schema_of(overload: Overload) -> Schema:
    """The memory effects of an overload."""
    schema = overload._schema
    arguments, results = schema.arguments, schema.returns
    written = tuple(a.name for a in arguments if a.alias_info and a.alias_info.is_write)
    fresh = not any(a.alias_info for a in arguments)
    views = tuple(_source_of(r, arguments) for r in results)
    composite = overload.namespace != "prim" and _lib._C._dispatch_has_kernel_for_dispatch_key(
        overload.name(), "CompositeImplicitAutograd"
    )
    return Schema(tuple(a.name for a in arguments), written, views, composite, fresh)


def _source_of(result: Any, arguments: Any) -> str | None:
    info = result.alias_info
    if info is None:
        return None
    # Of a list of views (``Tensor(a)[]``) torch tells nothing but that the source is a wildcard.
    sets = set(info.before_set) | set(info.after_set) or {"*"}
    for argument in arguments:
        other = argument.alias_info
        if other and sets & (set(other.before_set) | set(other.after_set)):
            return str(argument.name)
    return None


def functional_overload(overload: Overload) -> Overload | None:
    """The overload that computes what an in-place one writes: ``add.Tensor`` of ``add_.Tensor``."""
    name = overload.overloadpacket.__name__
    if not name.endswith("_") or name.endswith("__"):
        return None
    library = getattr(torch.ops, overload.namespace)
    packet = getattr(library, name[:-1], None)
    found = getattr(packet, overload._overloadname, None)
    if found is None or len(found._schema.arguments) != len(overload._schema.arguments):
        return None
    return found


def is_overload(value: object) -> bool:
    """Whether a value is an operator overload (``torch.ops.aten.add.Tensor``)."""
    from torch._ops import OpOverload

    return isinstance(value, OpOverload)


def is_random(overload: Overload) -> bool:
    """Whether an overload reads the random number generator."""
    return torch.Tag.nondeterministic_seeded in overload.tags


@lru_cache(maxsize=16)
def default_norm_eps(dtype: torch.dtype) -> float:
    """The epsilon of ``F.rms_norm`` where none is given, found by asking it.

    torch documents the one of the input's type, and uses float32's for narrow types since it
    computes those in float32.
    """
    probe = 2.0**-10
    found = float(torch.nn.functional.rms_norm(torch.full((1,), probe, dtype=dtype), (1,)))
    candidates = (torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    return min(candidates, key=lambda eps: abs(found - probe / (probe**2 + eps) ** 0.5))


def below_autograd() -> AbstractContextManager[object]:
    """Run with autograd's dispatch keys off, so that dispatch modes see composite ops whole."""
    return cast("AbstractContextManager[object]", _lib._C._AutoDispatchBelowAutograd())


def is_functorch(target: object) -> bool:
    """Whether a traced call belongs to a transform of ``torch.func``.

    Such calls enter and leave the transform, and between them tensors have dims that do not show.
    """
    modules = ("torch._functorch", "torch._C._functorch")
    return str(getattr(target, "__module__", "")).startswith(modules)


# -- tracing --------------------------------------------------------------------------------------


def export_graph(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
) -> Any:
    """``torch.export.export`` without Dynamo; an ``ExportedProgram``, in-place ops still in it."""
    export = cast("Any", torch.export.export)
    return export(model, args, dict(kwargs or {}), dynamic_shapes=dynamic_shapes, strict=False)


def functional_graph(module: fx.GraphModule, inputs: Sequence[object]) -> tuple[Any, list[str]]:
    """Trace a graph again through AOTAutograd: functional ATen, and what its outputs write.

    Slower than `fuseline.frontend.convert` and more general; the graph's first outputs are the new
    contents of the placeholders named.
    """
    from torch._functorch.aot_autograd import aot_export_module

    # Before dispatch, composite ops are whole, but what is inside a vmap has no batch.
    early = not any(is_functorch(node.target) for node in module.graph.nodes)
    with torch.no_grad(), _transforms_left():
        graph, signature = cast("Any", aot_export_module)(
            module, list(inputs), trace_joint=False, pre_dispatch=early
        )
    written = {**signature.buffers_to_mutate, **signature.user_inputs_to_mutate}
    outputs = next(n for n in graph.graph.nodes if n.op == "output").args[0]
    return graph, [written[n.name] for n in outputs[: len(written)]]


@contextmanager
def _transforms_left() -> Generator[None]:
    """Leave the transforms of ``torch.func`` that a failed run of a graph has entered."""
    functorch = _lib._C._functorch
    depth = len(functorch.get_interpreter_stack() or ())
    try:
        yield
    finally:
        if len(functorch.get_interpreter_stack() or ()) > depth:
            functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)


_SETTINGS = {"specialize_float": True, "record_runtime_overhead": False}
"""Dynamo's settings for our compilations."""

_SIZES_OF_DATA = "capture_dynamic_output_shape_ops"
"""Dynamo's setting to go on where only the data tells how large a result is."""


@dataclass(frozen=True)
class Break:
    """Why Dynamo ended a graph before its function returned, and the files and lines of the calls
    that led there, the outermost first.
    """

    reason: str
    frames: tuple[tuple[str, int], ...]


def _breaks_so_far() -> Sequence[Any]:
    """Dynamo's own account of all graph breaks; empty where a version of torch keeps none."""
    return getattr(_lib._dynamo.utils, "graph_break_reasons", ())


def _as_break(cause: Any) -> Break:
    frames = tuple((str(f.filename), int(f.lineno or 0)) for f in cause.user_stack or ())
    return Break(str(cause.reason), frames)


def name_of_target(node: fx.Node) -> str:
    """The name of what a node calls, whichever way it calls it."""
    target: Any = node.target
    if isinstance(target, str):
        return target
    packet = getattr(target, "overloadpacket", target)
    return str(getattr(packet, "__name__", packet))


class CompileWatch:
    """A context for calls of one program: settings while Dynamo compiles, and its graph breaks.

    Inside, float attributes stay literal constants (with torch's default under ``dynamic=True``
    an epsilon becomes an input), compiled code does not tell a profiler when it begins, and the
    graph breaks of each compilation are handed over, as is the option by which Dynamo refuses
    one. Costs next to nothing where nothing is compiled. May be entered again while it is in force.

    Graphs may have sizes that only the data tells (as of ``nonzero``), until
    `break_at_sizes_of_data` is called for one: from then on such ops end graphs, unless the user
    has set torch otherwise. Until then loops over the experts that have tokens are traced with all
    of their turns, if ``idle`` says of their place that turns without rows do nothing.
    """

    def __init__(
        self,
        on_start: Callable[[], None],
        on_breaks: Callable[[dict[str, int], Sequence[Break]], None],
        on_limit: Callable[[str], None],
        idle: Idle,
    ) -> None:
        self.on_start = on_start
        self.on_breaks = on_breaks
        self.on_limit = on_limit
        self.idle = idle
        self.follows_sizes = True
        self._outer: list[CompileWatch | None] = []
        self._breaks: dict[str, int] = {}
        self._known = 0
        self._void: list[Any] = []  # breaks of a graph that was given up
        self._before: dict[str, bool] = {}
        self._hurry: AbstractContextManager[None] = nullcontext()

    def __enter__(self) -> None:
        _listen()
        self._outer.append(_watching.now)
        _watching.now = self

    def __exit__(self, *error: object) -> None:
        _watching.now = self._outer.pop()

    def started(self) -> None:
        """Dynamo starts to compile."""
        self.on_start()
        config = _lib._dynamo.config
        wanted = dict(_SETTINGS)
        if self.follows_sizes and _can_trace_again():
            wanted[_SIZES_OF_DATA] = True
            trace_all_turns(_idle)
        settings = {n: v for n, v in wanted.items() if hasattr(config, n)}
        self._before = {name: getattr(config, name) for name in settings}
        for name, value in settings.items():
            setattr(config, name, value)
        self._breaks = dict(_lib._dynamo.utils.counters["graph_break"])
        self._known = len(_breaks_so_far())
        self._hurry = _hurry()
        self._hurry.__enter__()

    @property
    def asked_for_sizes(self) -> bool:
        """Whether graphs have sizes that only the data tells because of this watch."""
        return self.follows_sizes and self._before.get(_SIZES_OF_DATA) is False

    def give_up_sizes(self) -> None:
        """Have ops with sizes that only the data tells end graphs."""
        setattr(_lib._dynamo.config, _SIZES_OF_DATA, self._before.pop(_SIZES_OF_DATA))
        self.follows_sizes = False
        self._void = [b for b in _breaks_so_far()[self._known :] if _GUARDS_DATA in b.reason]

    def ended(self) -> None:
        """Dynamo has compiled, or has given up."""
        self._hurry.__exit__(None, None, None)
        for name, value in self._before.items():
            setattr(_lib._dynamo.config, name, value)
        now = _lib._dynamo.utils.counters["graph_break"]
        new = {r: n - self._breaks.get(r, 0) for r, n in now.items()}
        if any(new.values()):
            found = [b for b in _breaks_so_far()[self._known :] if b not in self._void]
            places = [_as_break(b) for b in found]
            self.on_breaks({r: n for r, n in new.items() if n}, places)


@contextmanager
def _hurry() -> Generator[None]:
    """Leave out of a compilation what takes long and serves no purpose of ours.

    Tracing makes millions of objects and hardly any cycles: collecting garbage meanwhile takes a
    sixth of the time. And Dynamo tokenises each source file that it meets, to name functions in a
    log that is off.
    """
    tracing = importlib.import_module("torch._dynamo.symbolic_convert")
    names = getattr(tracing, "get_funcname", None)
    calls = getattr(importlib.import_module("torch._dynamo.output_graph"), "trace_call_log", None)
    logged = calls is None or calls.isEnabledFor(logging.DEBUG)
    collecting = gc.isenabled()
    gc.disable()
    if names is not None and not logged:
        cast("Any", tracing).get_funcname = _no_name
    try:
        yield
    finally:
        if names is not None:
            cast("Any", tracing).get_funcname = names
        if collecting:
            gc.enable()


@contextmanager
def tracing_errors_to(log: logging.Logger) -> Generator[None]:
    """Make debug records of `log` from the errors that torch logs of ops that refuse their inputs.

    Torch raises the same error, so whoever reports that would have it said twice, once with the
    traceback of torch's insides.
    """
    theirs = logging.getLogger("torch._subclasses.fake_tensor")

    def demote(record: logging.LogRecord) -> bool:
        log.debug("torch: %s", record.getMessage(), exc_info=record.exc_info)
        return False

    theirs.addFilter(demote)
    try:
        yield
    finally:
        theirs.removeFilter(demote)


def _no_name(filename: str, line: int) -> None:
    """The name of no function."""


class _Watching(threading.local):
    """The watch that is in force on a thread."""

    now: CompileWatch | None = None


_watching = _Watching()


_open: list[CompileWatch] = []


def _on_start(*args: object) -> None:
    while _open:  # a compilation whose end Dynamo has not told us of
        _open.pop().ended()
    if _watching.now is not None:
        _watching.now.started()
        _open.append(_watching.now)


def _on_end(*args: object) -> None:
    if _open:
        _open.pop().ended()


@lru_cache(maxsize=1)
def _restart() -> type[Exception] | None:
    """What a backend may raise to have the present frame traced again; None in a torch without."""
    exceptions = importlib.import_module("torch._dynamo.exc")
    return getattr(exceptions, "TensorifyScalarRestartAnalysis", None)


@lru_cache(maxsize=1)
def _can_trace_again() -> bool:
    """Whether frames can be traced again, and are where tracing fails because of such sizes.

    Dynamo has calls that end a graph where no size may depend on data, and fail where it may
    (``x.unique().tolist()``), and where the program asks for such a size it breaks far outside.
    """
    module = cast("Any", importlib.import_module("torch._dynamo.convert_frame"))
    trace = getattr(module, "trace_frame", None)
    if trace is None or _restart() is None:
        return False

    def trace_again_without(*args: Any, **kwargs: Any) -> Any:
        try:
            return trace(*args, **kwargs)
        except Exception as error:
            if not may_break_at_sizes_of_data() or not _stems_from_sizes(error):
                raise
            _open[-1].give_up_sizes()
            again = cast("Any", _restart())(restart_reason=f"{type(error).__name__}: {error}")
            for name in filter(_is_dynamos, vars(error)):
                setattr(again, name, getattr(error, name))
            raise again from error

    module.trace_frame = trace_again_without
    return True


def _is_dynamos(name: str) -> bool:
    """Whether Dynamo has put an attribute on an error, to clean up after it."""
    return name.startswith("_torch_dynamo")


_GUARDS_DATA = "data-dependent expression"
"""What torch says where a program asks for a size that only the data tells."""


def _stems_from_sizes(error: Exception) -> bool:
    """Whether tracing may have failed because of a size that only the data tells.

    Where Dynamo breaks, skips or restarts on its own account, it says so; a backend's error is its
    own; anything else might come of it.
    """
    exceptions = cast("Any", importlib.import_module("torch._dynamo.exc"))
    if isinstance(error, exceptions.BackendCompilerFailed):
        return False
    own = (exceptions.RestartAnalysis, exceptions.SkipFrame, exceptions.Unsupported)
    said, cause = list[str](), cast("BaseException | None", error)
    while cause is not None:
        said += [str(cause), str(getattr(cause, "restart_reason", ""))]
        cause = cause.__cause__ or cause.__context__
    return not isinstance(error, own) or any(_GUARDS_DATA in text for text in said)


def may_break_at_sizes_of_data() -> bool:
    """Whether a backend that is called now may call `break_at_sizes_of_data`."""
    return bool(_open) and _open[-1].asked_for_sizes


def _idle() -> Idle | None:
    return _open[-1].idle if may_break_at_sizes_of_data() else None


def break_at_sizes_of_data(reason: str) -> NoReturn:
    """Have Dynamo forget the graph that it hands to a backend, and trace its frame again.

    Ops whose results have sizes that only the data tells then end graphs. Nothing has run by then
    of what was traced, and Dynamo keeps nothing of it.
    """
    _open[-1].give_up_sizes()
    restart = cast("Any", _restart())
    raise restart(restart_reason=reason)


@lru_cache(maxsize=1)
def _callback_handler() -> Any:
    return cast("Any", importlib.import_module("torch._dynamo")).callback_handler


def _listen() -> None:
    """Have Dynamo call us; ``torch.compiler.reset()`` makes it forget."""
    handler = _callback_handler()
    if _on_start not in handler.start_callbacks:
        handler.register_start_callback(_on_start)
        handler.register_end_callback(_on_end)
    _listen_for_limits()


_listening = threading.Lock()


@lru_cache(maxsize=1)
def _listen_for_limits() -> None:
    """Hear of it when a function has been compiled as often as Dynamo allows.

    It runs eagerly from then on where no code fits, and Dynamo counts nowhere that it does.
    """
    module = cast("Any", importlib.import_module("torch._dynamo.convert_frame"))
    with _listening:
        exceeds = getattr(module, "exceeds_recompile_limit", None)
        if exceeds is None or hasattr(exceeds, "tells_fuseline"):
            return

        def exceeds_and_tell(*args: Any, **kwargs: Any) -> Any:
            outcome = exceeds(*args, **kwargs)
            if outcome[0] and _watching.now is not None:
                _watching.now.on_limit(f"torch._dynamo.config.{outcome[1]}")
            return outcome

        cast("Any", exceeds_and_tell).tells_fuseline = True
        module.exceeds_recompile_limit = exceeds_and_tell


def source_name(placeholder: fx.Node) -> str:
    """Where Dynamo found an input, as Python text (``L['self']._modules['norm'].weight``)."""
    grapharg = placeholder.meta.get("grapharg")
    source = getattr(grapharg, "source", None) or getattr(placeholder, "_dynamo_source", None)
    if source is None:
        return placeholder.name
    name = source.name  # a method up to torch 2.11, a property later
    return str(name() if callable(name) else name)


def is_grad_mode(node: fx.Node) -> bool:
    """Whether a traced call switches gradients or inference mode on or off."""
    name = getattr(node.target, "__name__", "")
    return name in ("_set_grad_enabled", "_enter_inference_mode", "_exit_inference_mode")


def turns_gradients_off(node: fx.Node) -> bool:
    """Whether the switch of `is_grad_mode` is to no gradients."""
    enters = getattr(node.target, "__name__", "") == "_enter_inference_mode"
    return bool(node.args) and node.args[0] is enters


def traced_frame() -> Mapping[str, object]:
    """The local variables of the frame that Dynamo has traced, while it calls a backend."""
    tracing = importlib.import_module("torch._dynamo.symbolic_convert")
    try:
        return dict(tracing.InstructionTranslator.current_tx().output.root_tx.f_locals)
    except AttributeError:  # nothing is being traced on this thread
        return {}


def optimize(model: Any, backend: Any, *, dynamic: bool | None, package: Any = None) -> Any:
    """``torch.compile`` with a backend; ``package`` keeps what Dynamo finds."""
    if package is None:
        return cast("Any", torch.compile)(model, backend=backend, dynamic=dynamic)
    return _lib._dynamo.optimize(backend=backend, dynamic=dynamic, package=package)(model)


def never_compiled(function: Any) -> Any:
    """A function that does the same and that Dynamo neither traces nor looks into."""
    return cast("Any", torch.compiler.disable)(function)


def hooks_of(module: torch.nn.Module) -> list[Any]:
    """The functions that run before and after a module's ``forward``."""
    held = cast("Any", module)
    return [*held._forward_pre_hooks.values(), *held._forward_hooks.values()]


def storage_of(tensor: Tensor) -> int:
    """A number that tensors share exactly when they share storage."""
    return int(cast("Any", tensor.untyped_storage())._cdata)


# -- parameters -----------------------------------------------------------------------------------


def storage_holders(tensor: Tensor) -> int:
    """How many tensors hold the memory of this one, itself included; 1 where torch cannot say.

    Views, ``detach()``, NumPy arrays and a ``state_dict`` that is still held count; a second name
    for the same tensor object does not.
    """
    count = getattr(_lib._C, "_storage_Use_Count", None)
    if count is None:
        return 1
    storage = cast("Any", tensor.untyped_storage())  # holds it too while we ask
    return int(count(storage._cdata)) - 1


def has_hooks(tensor: Tensor) -> bool:
    """Whether hooks were registered on the tensor itself."""
    names = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return any(getattr(tensor, name, None) for name in names)


# -- memory ---------------------------------------------------------------------------------------


def _empty_strided(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype)


empty_strided: Callable[[Sequence[int], Sequence[int], torch.dtype], Tensor] = getattr(
    getattr(_lib._C._dynamo, "guards", None), "_empty_strided_cpu", _empty_strided
)
"""Uninitialised memory on the CPU: ``torch.empty_strided``, in half its time where torch can."""


# -- dispatch -------------------------------------------------------------------------------------


def dispatching(handler: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> Any:
    """A context in which every ATen call goes to ``handler(overload, args, kwargs)``."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return handler(func, args, kwargs or {})

    return Mode()


# -- native code ----------------------------------------------------------------------------------


def dlpack_exchange() -> object | None:
    """The capsule of torch's DLPack exchange table; None in a torch that has none."""
    return getattr(Tensor, "__dlpack_c_exchange_api__", None)


@lru_cache(maxsize=1)
def sgemm_address() -> int:
    """The address of the Fortran ``sgemm`` in libtorch_cpu; 0 if it shows none."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    return _address_in(str(library), "sgemm_")


@lru_cache(maxsize=1)
def thread_limits() -> tuple[int, int, int]:
    """``omp_get_max_threads`` and ``omp_set_num_threads`` of the runtime that torch has loaded, and
    ``MKL_Set_Num_Threads_Local`` of the MKL inside torch: for this thread alone. 0 where missing.
    """
    library = str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")
    most, limit = (_address_in(None, f"omp_{n}") for n in ("get_max_threads", "set_num_threads"))
    alone = _address_in(library, "MKL_Set_Num_Threads_Local")
    return (most, limit, alone) if most and limit else (0, 0, alone)


def _address_in(library: str | None, symbol: str) -> int:
    try:
        function = getattr(ctypes.CDLL(library), symbol)
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0
