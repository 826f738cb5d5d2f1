"""From C++ text to loaded code: each kernel an object of its own, each piece one shared object.

    objects = compile_kernels(cache, toolchain, sources)         # Entry or CompileError, each
    library = build_piece(cache, toolchain, sources)
    address = library.address("rms_norm_0123abcd")

A kernel is compiled once, however many pieces use it; a piece is linked once, however many layers
it serves. Both are cache entries. Objects are compiled with value-changing options at most where a
kernel asks, and always linked without: ``-ffast-math`` at link time makes GCC add start-up code
that flushes denormals to zero in the whole process.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from fuseline import errors
from fuseline.runtime.cache import Cache, Entry, Factors, Json, key_of
from fuseline.runtime.toolchain import Toolchain, no_compiler

COMPILE_FLAGS = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-semantic-interposition",
    "-fopenmp-simd",
    "-ffp-contract=fast",
)
LINK_FLAGS = ("-shared", "-Wl,--as-needed", "-Wl,--build-id=none")
COMPILE_SECONDS = 300.0
LIBRARY = "piece.so"

_LINK_TRIES = 3
_NOEXEC_HINT = "name a directory that programs may run from with FUSELINE_CACHE_DIR"


@dataclass(frozen=True)
class KernelSource:
    """One translation unit that defines ``symbol``.

    Attributes:
        symbol: the function to call; names the kernel in messages and in the cache.
        text: the source. It may include what is in `headers`, and the compiler's own headers.
        headers: further files of the unit, by the name that it includes them under.
        flags: options on top of `COMPILE_FLAGS`.
        include: directories to search; not part of the key, so `identity` must stand for them.
        identity: what the result depends on besides all this.
    """

    symbol: str
    text: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    flags: tuple[str, ...] = ()
    include: tuple[Path, ...] = ()
    identity: str = ""

    def factors(self, toolchain: Toolchain) -> dict[str, Json]:
        """The key of the object: all that can change its bytes."""
        factors: dict[str, Json] = {
            "name": self.symbol,
            "source": _digest(self.text),
            "flags": [*COMPILE_FLAGS, *self.flags],
            **toolchain.factors,
        }
        if self.headers:
            factors["headers"] = {name: _digest(text) for name, text in self.headers.items()}
        if self.identity:
            factors["identity"] = self.identity
        return factors


@dataclass(frozen=True)
class Progress:
    """One more kernel or piece is there: `done` of `total`; `built` if it was not in the cache."""

    done: int
    total: int
    name: str
    built: bool


Report = Callable[[Progress], None]


class CompileError(errors.BuildError):
    """The compiler refused a kernel; keeps what it was given and what it said."""

    def __init__(
        self, diagnostic: errors.Diagnostic, *, symbol: str, source: str, output: str
    ) -> None:
        super().__init__(diagnostic)
        self.symbol = symbol
        self.source = source
        self.output = output


@dataclass(frozen=True)
class Library:
    """A shared object that is loaded for as long as the process lives."""

    path: Path
    handle: ctypes.CDLL

    def address(self, symbol: str) -> int:
        """The address of a function.

        Raises:
            BuildError: FL0705, if the library does not define it.
        """
        try:
            function = getattr(self.handle, symbol)
        except AttributeError as error:
            raise errors.LIBRARY_UNLOADABLE.error(
                self.path.name, found=f"no symbol {symbol}"
            ) from error
        return ctypes.cast(function, ctypes.c_void_p).value or 0


def compile_kernels(
    cache: Cache,
    toolchain: Toolchain,
    sources: Sequence[KernelSource],
    report: Report | None = None,
) -> list[Entry | CompileError]:
    """The object of each source, in order, or why there is none; what is missing is built at once
    on as many cores as this process may use.

    Raises:
        CacheError: where nothing can be stored.
    """

    jobs = {key_of("kernel", source.factors(toolchain)): source for source in sources}
    # Processes that start together begin at different kernels, and meet fewer locks.
    turn = os.getpid() % len(jobs) if jobs else 0
    order = [*list(jobs)[turn:], *list(jobs)[:turn]]
    results: dict[str, Entry | CompileError] = {}
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "fuseline-build")
    try:
        tasks = {pool.submit(_compiled, cache, toolchain, jobs[key]): key for key in order}
        for task in as_completed(tasks):
            key = tasks[task]
            results[key], built = task.result()
            if report is not None:
                report(Progress(len(results), len(jobs), jobs[key].symbol, built))
    finally:
        pool.shutdown(cancel_futures=True)
    return [results[key_of("kernel", source.factors(toolchain))] for source in sources]


def build_piece(
    cache: Cache,
    toolchain: Toolchain,
    sources: Sequence[KernelSource],
    report: Report | None = None,
    *,
    flags: Sequence[str] = (),
) -> Library:
    """The loaded shared object that defines all of `sources`; `flags` are for the linker.

    Raises:
        BuildError: FL0703 with the first kernel that does not compile (a `CompileError`), FL0704,
            FL0705.
        CacheError: where nothing can be stored.
    """
    ordered = _in_order(sources)
    factors = _piece_factors(toolchain, ordered, flags)

    def build(folder: Path) -> None:
        for last in range(_LINK_TRIES):
            compiled = compile_kernels(cache, toolchain, ordered, report)
            objects = [_unless_failed(result).file("kernel.o") for result in compiled]
            done = _link(toolchain, folder, objects, flags)
            if done.returncode == 0:
                return
            if last < _LINK_TRIES - 1 and not all(path.exists() for path in objects):
                continue  # another process has pruned the cache meanwhile
            said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise errors.LINK_FAILED.error(str(factors["name"]), found=said[-1])

    return load_library(cache.get_or_build("piece", factors, build).file(LIBRARY))


def find_piece(
    cache: Cache,
    toolchain: Toolchain,
    sources: Sequence[KernelSource],
    *,
    flags: Sequence[str] = (),
) -> Library | None:
    """What `build_piece` would load, if it is in the cache.

    Raises:
        BuildError: FL0705.
    """
    entry = cache.get("piece", _piece_factors(toolchain, _in_order(sources), flags))
    return None if entry is None else load_library(entry.file(LIBRARY))


def _in_order(sources: Sequence[KernelSource]) -> list[KernelSource]:
    units = {source.symbol: source for source in sources}
    return [units[symbol] for symbol in sorted(units)]


def _piece_factors(
    toolchain: Toolchain, sources: Sequence[KernelSource], flags: Sequence[str]
) -> Factors:
    return {
        "name": sources[0].symbol if len(sources) == 1 else f"{len(sources)} kernels",
        "symbols": [source.symbol for source in sources],
        "objects": [key_of("kernel", source.factors(toolchain)) for source in sources],
        "flags": [*LINK_FLAGS, *flags],
        "compiler": toolchain.identity,
    }


@lru_cache(maxsize=4096)
def load_library(path: Path) -> Library:
    """Load a shared object; nothing that it defines is visible to other libraries.

    Raises:
        BuildError: FL0705, if the system refuses it.
    """
    try:
        return Library(path, ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL))
    except OSError as error:
        said = str(error).removeprefix(f"{path}: ")
        hint = _NOEXEC_HINT if "failed to map" in said else None
        raise errors.LIBRARY_UNLOADABLE.error(
            path.name, where=str(path.parent), found=said, hint=hint
        ) from error


def _compiled(
    cache: Cache, toolchain: Toolchain, source: KernelSource
) -> tuple[Entry | CompileError, bool]:
    """The object or the refusal, and whether the compiler was run for it."""
    ran: list[Path] = []

    def build(folder: Path) -> None:
        ran.append(folder)
        _compile(toolchain, source, folder)

    try:
        return cache.get_or_build("kernel", source.factors(toolchain), build), bool(ran)
    except CompileError as error:
        return error, True


def _compile(toolchain: Toolchain, source: KernelSource, folder: Path) -> None:
    """Compile inside `folder`, by names relative to it: no path gets into the object."""
    if not toolchain.command:
        raise CompileError(
            no_compiler().diagnostic, symbol=source.symbol, source=source.text, output=""
        )
    for name, text in {**source.headers, "kernel.cpp": source.text}.items():
        (folder / name).write_text(text)
    includes = [f"-I{path}" for path in source.include]
    options = [*COMPILE_FLAGS, *toolchain.cpu, *source.flags, *includes]
    done = _run([*toolchain.command, *options, "-c", "kernel.cpp", "-o", "kernel.o"], folder)
    if done.returncode == 0:
        return
    said = [line for line in done.stderr.splitlines() if "error" in line] or [
        f"exit status {done.returncode}"
    ]
    diagnostic = errors.COMPILE_FAILED.diagnostic(source.symbol, found=said[0].strip())
    raise CompileError(
        diagnostic, symbol=source.symbol, source=source.text, output=done.stdout + done.stderr
    )


def _link(
    toolchain: Toolchain, folder: Path, objects: Sequence[Path], flags: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    paths = [str(path) for path in objects]
    return _run([*toolchain.command, *LINK_FLAGS, *paths, *flags, "-o", LIBRARY], folder)


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the compiler in `folder`, its temporary files there too.

    Raises:
        OSError: ENOSPC, if it failed for a full disk: then the cache goes on elsewhere; ENOENT, if
            the folder was deleted meanwhile: then it begins again.
        BuildError: FL0702, if it does not run, or was ended by a signal.
    """
    scratch = folder / "tmp"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch), "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=COMPILE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        done = subprocess.CompletedProcess(
            command, 1, "", f"error: no end after {COMPILE_SECONDS:.0f} s"
        )
    except OSError as error:
        if not folder.is_dir():
            raise
        raise errors.COMPILER_UNUSABLE.error(command[0], found=str(error)) from error
    shutil.rmtree(scratch, ignore_errors=True)
    if done.returncode < 0:  # by the keyboard, say: that tells nothing about the source
        found = f"it was ended by signal {-done.returncode}"
        raise errors.COMPILER_UNUSABLE.error(command[0], found=found)
    if done.returncode != 0 and not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    if done.returncode != 0 and os.strerror(errno.ENOSPC) in done.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return done


def _unless_failed(result: Entry | CompileError) -> Entry:
    if isinstance(result, CompileError):
        raise result
    return result


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
