"""Compiled functions, modules and classes, as users hold them.

A compiled module is a second view of the same module: an object of a subclass made for it that
shares the original's ``__dict__``, so that parameters, buffers, hooks and settings are one and the
same in both, ``state_dict`` and ``generate`` work, and only calling it differs.
"""

from __future__ import annotations

import builtins
import copy
import functools
import inspect
import logging
import re
import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar, cast

from torch import nn

from fuseline import _torch
from fuseline._torch import precompile
from fuseline.frontend.backend import Backend, watch
from fuseline.frontend.execute import Compiled, CompileStep
from fuseline.frontend.names import Names
from fuseline.frontend.outside import Outside
from fuseline.frontend.traceable import Traceable
from fuseline.frontend.warm import FormStore, NeedsTraceError, WarmStart, factors_of
from fuseline.report import Report

log = logging.getLogger(__name__)


class Watch(Protocol):
    """What holds each call to what is required of the programs that run in it."""

    def begin(self) -> None:
        """A call begins."""
        ...

    def end(self, outside: Report) -> None:
        """A call has ended; ``outside`` says what is in no program. Raises where it does not do."""
        ...


class Engine(Protocol):
    """What compiles captured programs, and reports on them."""

    @property
    def step(self) -> CompileStep:
        """Compiles one captured program."""
        ...

    @property
    def dynamic(self) -> bool | None:
        """Whether sizes are dynamic, as ``torch.compile`` takes it."""
        ...

    @property
    def eager(self) -> Sequence[str]:
        """Paths of modules that run outside compiled graphs."""
        ...

    @property
    def forms(self) -> FormStore | None:
        """Where compiled forms are kept for other processes; None to keep none."""
        ...

    @property
    def required(self) -> Watch | None:
        """What holds calls to what is required; None where nothing is."""
        ...

    def begin(self) -> None:
        """A program is about to be traced: make ready meanwhile what compiling it needs."""
        ...

    def plain(self, name: str, reason: str) -> None:
        """A call is run as it is, by torch, and why; an error refuses that."""
        ...

    def broken(self, where: str, reason: str) -> None:
        """A graph ended at a line before its function returned, and why."""
        ...

    def factors(self, target: object) -> Mapping[str, Any]:
        """What compiled code depends on that tracing does not guard."""
        ...

    def restore(self, saved: str) -> Compiled:
        """Compiled code from what its ``saved`` attribute said in another process."""
        ...

    def report(self) -> Report:
        """What was compiled so far."""
        ...


EngineMaker = Callable[[], Engine]
T = TypeVar("T")


class Program:
    """A callable compiled through Dynamo, and the account of its compilations."""

    def __init__(self, target: Callable[..., Any], engine: Engine, name: str) -> None:
        self.engine = engine
        plain = re.sub(r"\W+", "_", name).strip("_") or "main"
        self.backend = Backend(
            engine.step,
            plain,
            names=Names(target),
            on_plain=engine.plain,
            on_break=engine.broken,
        )
        self._watch = watch(self.backend, engine.begin)
        self._outside = Outside(target, engine.eager) if engine.eager else nullcontext()
        self._traceable = Traceable(target)
        entry = _entry_of(target)
        self._warm = self._warm_start(entry, target)
        package = None if self._warm is None else self._warm.precompiled.package
        self._call = _torch.optimize(entry, self.backend, dynamic=engine.dynamic, package=package)
        self._target = target

    def _warm_start(self, entry: types.FunctionType, target: object) -> WarmStart | None:
        store, factors = self.engine.forms, factors_of(target)
        if store is None or factors is None or not precompile.available():
            return None
        factors |= {"dynamic": self.engine.dynamic, "eager": list(self.engine.eager)}
        factors |= self.engine.factors(target)
        return WarmStart(entry, store, self.engine, factors, self.backend.ran)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the compiled program; compiles where no code fits the arguments."""
        self.backend.ran.yes = False
        required = self.engine.required
        if required is not None:
            required.begin()
        result = self._run(args, kwargs)
        self.backend.called()
        if required is not None:
            required.end(self.backend.report())
        return result

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        warm, call = self._warm, self._call
        if warm is None:
            with self._watch, self._outside, self._traceable:
                return call(self._target, args, kwargs)
        if warm.waiting:
            warm.use({"self": self._target, "args": args, "kwargs": kwargs})
        before = self.backend.graphs
        with self._watch, self._outside, self._traceable:
            try:
                result = call(self._target, args, kwargs)
            except NeedsTraceError:
                pass
            else:
                if self.backend.graphs != before:
                    warm.save()
                return result
            self._start_anew(call)
            return self._call(self._target, args, kwargs)

    def _start_anew(self, refused: Callable[..., Any]) -> None:
        """Use no saved forms any more. What runs in other threads keeps the old entry alive."""
        if self._call is refused:
            log.info("a saved form met arguments that overlap: everything is traced from here on")
            entry = _entry_of(self._target)
            self._call = _torch.optimize(entry, self.backend, dynamic=self.engine.dynamic)
            self._warm = None

    def report(self) -> Report:
        """What was compiled so far, and what was not."""
        found = self.engine.report() + self.backend.report()
        if self._warm is None or not self._warm.used:
            return found
        return found + Report(stats={"graphs from the cache": self._warm.used})


def _entry(self: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return self(*args, **kwargs)


def _entry_of(target: Callable[..., Any]) -> types.FunctionType:
    """A function that calls the target, with a code object of its own.

    Dynamo keeps what it has compiled with the code object. Models of one library often share the
    outermost one, and would use up one another's recompilations. Its globals are its own as well:
    Dynamo puts compiled graphs there.
    """
    name = getattr(target, "__name__", type(target).__name__)
    code = _entry.__code__.replace(co_name=f"compiled {name}")
    names = {"__name__": __name__, "__builtins__": builtins}
    return types.FunctionType(code, names, code.co_name)


class CompiledFunction:
    """A compiled function; also works as a method of a class."""

    def __init__(self, function: Callable[..., Any], make: EngineMaker) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        name = getattr(function, "__name__", type(function).__name__)
        self._program = Program(function, make(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function, compiled."""
        return self._program(*args, **kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def report(self) -> Report:
        """Everything that was compiled so far."""
        return self._program.report()


@dataclass(frozen=True)
class Recipe:
    """How the instances of a compiled class compile themselves: its plain class, and the engine."""

    base: type[nn.Module]
    make: EngineMaker


class CompiledModule(nn.Module):
    """Mixin of compiled modules: a call goes to the program of the instance."""

    fuseline_recipe: ClassVar[Recipe]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module, compiled."""
        return program_of(self)(*args, **kwargs)

    def report(self) -> Report:
        """Everything that was compiled so far."""
        return program_of(self).report()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy has memory of its own, and compiles for itself."""
        cls = type(self)
        twin = cast("CompiledModule", object.__new__(cls))
        memo[id(self)] = twin
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin


_PROGRAMS: weakref.WeakKeyDictionary[nn.Module, Program] = weakref.WeakKeyDictionary()


def program_of(module: CompiledModule) -> Program:
    """The program of a compiled module, made at its first call."""
    program = _PROGRAMS.get(module)
    if program is None:
        recipe = module.fuseline_recipe
        plain = view_as(module, plain_class(type(module)))
        program = Program(plain, recipe.make(), recipe.base.__name__)
        _PROGRAMS[module] = program
    return program


def plain_class(cls: type[CompiledModule]) -> type[nn.Module]:
    """The class whose calls are not compiled: the one that was wrapped, or a user's subclass of the
    wrapped one with the original way of being called.
    """
    base = cls.fuseline_recipe.base
    if "fuseline_recipe" in vars(cls):
        return base
    return _subclass(cls, (cls,), {"__call__": base.__call__})


def _subclass(
    like: type[nn.Module], bases: tuple[type, ...], namespace: dict[str, Any]
) -> type[nn.Module]:
    """A class that goes by the name of another."""
    names = {"__doc__": like.__doc__, "__module__": like.__module__}
    metaclass: Any = type(like)
    made = metaclass(like.__name__, bases, {**names, **namespace})
    made.__qualname__ = like.__qualname__
    return made


def view_as(module: nn.Module, cls: type[T]) -> T:
    """A second object for the same module: another class, the same ``__dict__``."""
    twin = object.__new__(cls)
    twin.__dict__ = module.__dict__
    return twin


def compiled_class(cls: type[nn.Module], make: EngineMaker, *, importable: bool) -> type[nn.Module]:
    """A subclass whose instances compile themselves.

    Where it does not take the place of the original by name (``importable``), its instances are
    pickled as the original's.
    """
    namespace: dict[str, Any] = {"fuseline_recipe": Recipe(cls, make)}
    if not importable:
        namespace["__reduce_ex__"] = _reduce_as_original
    return _subclass(cls, (CompiledModule, cls), namespace)


def _reduce_as_original(self: CompiledModule, protocol: Any) -> Any:
    return _unpickled, (view_as(self, self.fuseline_recipe.base),)


def _unpickled(module: nn.Module) -> nn.Module:
    return module


def wrap(target: Any, make: EngineMaker) -> Any:
    """The compiled form of a function, of an ``nn.Module``, or of a class of them.

    ``make`` gives a new engine for each program.

    Raises:
        TypeError: the target is none of these.

    """
    if inspect.isclass(target) and issubclass(target, nn.Module):
        return compiled_class(target, make, importable=True)
    if isinstance(target, CompiledModule):
        target = view_as(target, target.fuseline_recipe.base)
    if isinstance(target, nn.Module):
        return view_as(target, compiled_class(type(target), make, importable=False))
    if isinstance(target, CompiledFunction):
        target = target.function
    if callable(target) and not inspect.isclass(target):
        return CompiledFunction(cast("Callable[..., Any]", target), make)
    kind = target.__name__ if inspect.isclass(target) else f"a {type(target).__name__}"
    raise TypeError(f"cannot compile {kind}: expected a function, an nn.Module or a class of them")
