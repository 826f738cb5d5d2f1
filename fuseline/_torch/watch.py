"""Compilations of one program by Dynamo: settings while they last, and the graph breaks in them."""

from __future__ import annotations

import importlib
import inspect
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn, cast

import torch

from fuseline._torch import sizes_of_data
from fuseline._torch.quiet import hurry
from fuseline._torch.turns import Judge, trace_all_turns

_lib = cast("Any", torch)

_SETTINGS = {"specialize_float": True, "record_runtime_overhead": False}
"""Dynamo's settings for our compilations."""


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


def _frames() -> tuple[int, int]:
    """How many functions Dynamo has looked at so far, and how many it has compiled."""
    counts = _lib._dynamo.utils.counters["frames"]
    return counts["total"], counts["ok"]


def _as_break(cause: Any) -> Break:
    frames = tuple((str(f.filename), int(f.lineno or 0)) for f in cause.user_stack or ())
    return Break(str(cause.reason), frames)


class CompileWatch:
    """A context for calls of one program: settings while Dynamo compiles, and its graph breaks.

    Inside, float attributes stay literal constants (with torch's default under ``dynamic=True``
    an epsilon becomes an input), and compiled code does not tell a profiler when it begins. Handed
    over are the graph breaks of each compilation, the option by which Dynamo refuses one, and how
    many functions of a call it left to run in eager as a whole. Costs next to nothing where nothing
    is compiled. May be entered again while it is in force.

    Graphs may have sizes that only the data tells (as of ``nonzero``), until
    `break_at_sizes_of_data` is called for one: from then on such ops end graphs, unless the user
    has set torch otherwise. Until then loops over the experts that have tokens are traced with all
    of their turns, where ``judge`` says that this may be done.
    """

    def __init__(
        self,
        on_start: Callable[[], None],
        on_breaks: Callable[[dict[str, int], Sequence[Break]], None],
        on_limit: Callable[[str], None],
        on_left: Callable[[int], None],
        judge: Judge,
        backend: object,
    ) -> None:
        self.on_start = on_start
        self.on_breaks = on_breaks
        self.on_limit = on_limit
        self.on_left = on_left
        self.judge = judge
        self.backend = backend
        self.follows_sizes = True
        self._outer: list[CompileWatch | None] = []
        self._breaks: dict[str, int] = {}
        self._known = 0
        self._frames: tuple[int, int] | None = None
        self._void: list[Any] = []  # breaks of a graph that was given up
        self._before: dict[str, bool] = {}
        self._hurry: AbstractContextManager[None] = nullcontext()

    def __enter__(self) -> None:
        _listen()
        self._outer.append(_watching.now)
        _watching.now = self

    def __exit__(self, *error: object) -> None:
        _watching.now = self._outer.pop()
        if self._frames is not None and not self._outer:
            seen, compiled = self._frames
            self._frames = None
            now = _frames()
            if left := now[0] - seen - (now[1] - compiled):
                self.on_left(left)

    def started(self) -> None:
        """Dynamo starts to compile."""
        self.on_start()
        if self._frames is None:
            seen, compiled = _frames()
            self._frames = (seen - 1, compiled)  # it has counted the one that it is at
        config = _lib._dynamo.config
        wanted = dict(_SETTINGS)
        if self.follows_sizes and sizes_of_data.can_trace_again(_gave_up_sizes):
            wanted[sizes_of_data.SETTING] = True
            trace_all_turns(_judge_of)
        settings = {n: v for n, v in wanted.items() if hasattr(config, n)}
        self._before = {name: getattr(config, name) for name in settings}
        for name, value in settings.items():
            setattr(config, name, value)
        self._breaks = dict(_lib._dynamo.utils.counters["graph_break"])
        self._known = len(_breaks_so_far())
        self._hurry = hurry()
        self._hurry.__enter__()

    @property
    def asked_for_sizes(self) -> bool:
        """Whether graphs have sizes that only the data tells because of this watch."""
        return self.follows_sizes and self._before.get(sizes_of_data.SETTING) is False

    def give_up_sizes(self) -> None:
        """Have ops with sizes that only the data tells end graphs."""
        setattr(_lib._dynamo.config, sizes_of_data.SETTING, self._before.pop(sizes_of_data.SETTING))
        self.follows_sizes = False
        self._void = [
            b for b in _breaks_so_far()[self._known :] if sizes_of_data.GUARDS_DATA in b.reason
        ]

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


class _Watching(threading.local):
    """The watch that is in force on a thread."""

    now: CompileWatch | None = None


_watching = _Watching()

_open: list[CompileWatch] = []
"""The watch of a compilation that has begun and, as far as Dynamo has told, not ended."""


def _on_start(*args: object) -> None:
    while _open:  # a compilation whose end Dynamo has not told us of
        _open.pop().ended()
    if _watching.now is not None:
        _watching.now.started()
        _open.append(_watching.now)


def _on_end(*args: object) -> None:
    if _open:
        _open.pop().ended()


def may_break_at_sizes_of_data() -> bool:
    """Whether a backend that is called now may call `break_at_sizes_of_data`."""
    return bool(_open) and _open[-1].asked_for_sizes


def _judge_of(output: Any) -> Judge | None:
    """Who says of which loops all turns may be traced into a graph; None where of none.

    A program may compile something else inside, by another backend: that looks at nothing.
    """
    if not may_break_at_sizes_of_data():
        return None
    asked = inspect.unwrap(output.compiler_fn)
    backend = getattr(asked, "compiler_fn", asked)  # ``torch.compile`` has a wrapper of its own
    return _open[-1].judge if backend is _open[-1].backend else None


def _gave_up_sizes(error: Exception) -> bool:
    """Whether sizes that only the data tells may have failed the tracing, and are given up."""
    if not may_break_at_sizes_of_data() or not sizes_of_data.stems_from_sizes(error):
        return False
    _open[-1].give_up_sizes()
    return True


def break_at_sizes_of_data(reason: str) -> NoReturn:
    """Have Dynamo forget the graph that it hands to a backend, and trace its frame again.

    Ops whose results have sizes that only the data tells then end graphs. Nothing has run by then
    of what was traced, and Dynamo keeps nothing of it.
    """
    _open[-1].give_up_sizes()
    restart = cast("Any", sizes_of_data.restart())
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
