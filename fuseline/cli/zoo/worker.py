"""One architecture in a process of its own: what hangs, crashes or eats memory ends that alone.

The processes are forked from one that has imported torch and transformers, which takes longer than
many an examination. A worker writes what it knows before each stage, so that of one that is ended
there remains what it was at.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fuseline.cli.zoo.results import Result

if TYPE_CHECKING:
    from fuseline.config import Config

Keep: TypeAlias = Callable[[Result], None]
Examine: TypeAlias = "Callable[[str, str, Config, Keep], Result]"

GIB = 2**30


@dataclass(frozen=True)
class Limits:
    """What a worker may use: seconds, and bytes of memory."""

    seconds: float = 600.0
    memory: int = 8 * GIB


class Worker:
    """A running examination.

    Args:
        examine: does the work; a function of a module, because another process imports it.
        name: of the architecture.
        dtype: of the weights.
        config: the options of the compilation.
        limits: what it may use.
    """

    def __init__(
        self, examine: Examine, name: str, dtype: str, config: Config, limits: Limits
    ) -> None:
        self._begun = Result(name, dtype)
        self._limits = limits
        self._folder = tempfile.TemporaryDirectory(prefix="fuseline-zoo-")
        self._path = Path(self._folder.name) / "result.json"
        self._started = time.monotonic()
        arguments = (examine, name, dtype, config, limits.memory, self._path)
        start = _context(examine).Process
        self._process: BaseProcess = start(target=_work, args=arguments, daemon=True)
        self._process.start()

    @property
    def sentinel(self) -> int:
        """What `multiprocessing.connection.wait` waits for."""
        return self._process.sentinel

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.monotonic() - self._started

    def result(self) -> Result | None:
        """The result, where it has ended or is over its time; None while it runs."""
        late = self.seconds > self._limits.seconds
        if self._process.is_alive() and not late:
            return None
        self._process.join(0.1)
        code = self._process.exitcode
        self.end()
        known = self._known()
        cause = known.cause or ("" if code == 0 and known.stage == "done" else self._ended_by(code))
        self._folder.cleanup()
        return replace(known, cause=cause, seconds=round(self.seconds, 1))

    def end(self) -> None:
        """End the process and what it has started."""
        if self._process.is_alive() and self._process.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
        self._process.join()

    def _known(self) -> Result:
        try:
            return Result.of_dict(json.loads(self._path.read_text()))
        except (OSError, ValueError):
            return self._begun

    def _ended_by(self, code: int | None) -> str:
        if code is None:
            return f"not done after {self._limits.seconds:g} s"
        if code < 0:
            return f"ended by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"


def _context(examine: Examine) -> Any:
    """Where workers come from: a process that has imported what they need, where that exists."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([examine.__module__])
    return context


def _work(examine: Examine, name: str, dtype: str, config: Config, memory: int, path: Path) -> None:
    """The life of a worker."""
    with suppress(OSError):
        os.setsid()
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _be_quiet()
    kept = Result(name, dtype)

    def keep(result: Result) -> None:
        nonlocal kept
        kept = result
        staged = path.with_suffix(".part")
        staged.write_text(json.dumps(asdict(result)))
        staged.replace(path)

    try:
        keep(examine(name, dtype, config, keep))
    except MemoryError:
        keep(replace(kept, cause=f"out of memory: {memory / GIB:g} GiB is the limit"))
    except Exception as error:
        keep(replace(kept, cause=one_line(error)))


def one_line(error: BaseException) -> str:
    """The type of an error and the first line of what it says, kept to a readable length.

    Where it only wraps another, that one's; torch's own say in a later line what was raised.
    """
    error = getattr(error, "inner_exception", None) or error.__cause__ or error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    raised = next((line for line in lines[1:] if re.search(r"\b[A-Z]\w*Error\b", line)), "")
    text = f"{text}: {raised}" if raised else text
    text = text if len(text) <= 300 else f"{text[:297]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _be_quiet() -> None:
    """Nobody reads what libraries say in a worker; what matters is in the result."""
    warnings.simplefilter("ignore")
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError, OSError):
            os.dup2(null, stream.fileno())
