"""Reads damaged and malicious artifacts, many of them, and counts how that ends.

    python -m tests.artifact.fuzz --files 100000 --jobs 1 --seed 0

Each file is opened, inspected, and loaded up to where its own native code would run: the runner is
that of the good file, and kernels are addresses that nobody calls. That happens in a process of its
own with a limit of memory, which is started anew where it ends or does not go on. A report in JSON
says how many files there were, each distinct outcome, crashes, hangs and the most memory.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import multiprocessing as mp
import platform
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from fuseline import __version__, errors
from tests.artifact.mutate import Good, mutated

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "fuzz.json"
SECONDS = 20.0
"""That one file may take."""

START = 300.0
"""Seconds that a process may take to import torch."""

ROOM = 2 << 30
"""Bytes that reading may take on top of what the process has."""

BATCH = 2000
"""Files after which a process is replaced, so that nothing hides in what it keeps."""

READY, ENDED = -1, -2
"""What a process says in the place of a file's number, before the first and after the last."""

_VARYING = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\[[^]]*\]|\S*[0-9/]\S*")


@dataclass
class Report:
    """How it ended.

    Attributes:
        files: that were tried.
        seed: of the mutations.
        base_bytes: of the file that all were made of.
        kinds: files by what was done to them.
        outcomes: files by outcome: ``loaded``, or the diagnostic without what varies.
        undiagnosed: numbers of the files that ended with another exception, by what it said.
        crashes: numbers of the files that ended the process, with the signal.
        hangs: numbers of the files that took too long.
        peak_bytes: the most memory of a process, of which it had so much before.
        before_bytes: see `peak_bytes`.
        seconds: that all of it took.
        versions: of what took part.
    """

    files: int = 0
    seed: int = 0
    base_bytes: int = 0
    kinds: Counter[str] = field(default_factory=Counter[str])
    outcomes: Counter[str] = field(default_factory=Counter[str])
    undiagnosed: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    crashes: dict[int, str] = field(default_factory=dict[int, str])
    hangs: list[int] = field(default_factory=list[int])
    peak_bytes: int = 0
    before_bytes: int = 0
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def good(self) -> bool:
        """Whether every file was loaded, or gave a diagnostic."""
        return not (self.undiagnosed or self.crashes or self.hangs)

    def to_json(self) -> str:
        """The report, the most frequent outcomes first."""
        data = asdict(self)
        data["outcomes"] = dict(self.outcomes.most_common())
        data["kinds"] = dict(sorted(self.kinds.items()))
        data["distinct_outcomes"] = len(self.outcomes)
        return json.dumps(data, indent=1)


class Reader:
    """Reads files as `fuseline.load` and `fuseline inspect` do, without their native code."""

    def __init__(self, good: Path) -> None:
        from fuseline.artifact import load
        from fuseline.artifact.inspecting import Opened

        self._good = Opened.of(good)
        self._load: Any = load
        self._runner: Any = self._load.load(good)._runner

    def read(self, path: Path) -> None:
        """Do all of it; raises what is raised."""
        from fuseline.artifact.differences import differences
        from fuseline.artifact.inspecting import Opened
        from fuseline.cli.artifact_text import changes, described
        from fuseline.cli.output import finite
        from fuseline.config import Config

        opened = Opened.of(path)
        facts = opened.facts()
        described({**facts, "verified": False, "signed_by_key": False}, full=True)
        json.dumps(finite(facts), allow_nan=False)
        for pair in ((self._good, opened), (opened, self._good)):
            changes(differences(*pair))
        with self._without_code():
            loaded = self._load.load(path, device="cpu", threads=Config().threads or 1)
            for call in loaded.programs.values():
                program, plan = call.program, call.program.plan
                for end in (0, 1):
                    ranges = [plan.ranges.get(name, (0, None)) for name in plan.symbols]
                    program.bind(tuple(r[end] or r[0] for r in ranges))
            str(loaded.report())

    @contextlib.contextmanager
    def _without_code(self) -> Generator[None, None, None]:
        """Digests of native code are checked, and it is not loaded."""
        natives, load = self._load.natives, self._load

        def checked(archive: Any, manifest: Any, member: str) -> Any:
            archive.checked(member, manifest.members[member])
            return _NoLibrary()

        def runner(archive: Any, manifest: Any, native: Any) -> Any:
            for member in (native.runner, *native.bindings.values()):
                archive.checked(member, manifest.members[member])
            return self._runner

        with patch.object(natives, "library", checked), patch.object(load, "_runner", runner):
            yield


class _NoLibrary:
    """Kernels that nobody calls."""

    def address(self, symbol: str) -> int:
        return 1


def outcome(reader: Reader, path: Path) -> tuple[str, bool]:
    """How reading a file ends, without what varies, and whether that is as it should be."""
    try:
        reader.read(path)
    except errors.FuselineError as error:
        said = error.diagnostic
        return f"{said.code} {_VARYING.sub('#', said.found or '')[:100]}", True
    except Exception as error:
        return f"{type(error).__name__}: {_VARYING.sub('#', str(error))[:100]}", False
    return "loaded", True


def _work(base: Path, seed: int, numbers: range, pipe: Any) -> None:
    """In a process of its own: read the files of some numbers, and tell how each ended."""
    torch.set_num_threads(1)
    good, reader = Good(base), Reader(base)
    before = _most_memory()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
    gc.freeze()
    pipe.send((READY, "", "", True, 0, before))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutated.fuse"
        for number in numbers:
            kind, data = mutated(good, seed, number)
            path.unlink(missing_ok=True)  # what is still mapped keeps its bytes
            path.write_bytes(data)
            pipe.send((number, kind, *outcome(reader, path), 0, before))
            if number % 100 == 0:
                gc.collect()
    pipe.send((ENDED, "", "", True, _most_memory(), before))
    pipe.close()


def _most_memory() -> int:
    """The most bytes of memory that this process has had; `getrusage` begins with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


@dataclass
class _Job:
    """A process at work on files, and where it is."""

    numbers: range
    process: Any
    pipe: Any
    done: int
    late: float
    ended: bool = False


def campaign(
    base: Path,
    *,
    files: int,
    jobs: int,
    seed: int,
    batch: int = BATCH,
    work: Callable[[Path, int, range, Any], None] = _work,
    seconds: float = SECONDS,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Try so many files made of a good one, in so many processes at a time.

    Args:
        base: the good one.
        files: how many to try.
        jobs: processes at a time.
        seed: of the mutations.
        batch: files of a process.
        work: what it does; another one tests the campaign itself.
        seconds: that a file may take.
        progress: told how many files are done, as a process ends.

    """
    report = Report(seed=seed, base_bytes=base.stat().st_size)
    report.versions = {
        "fuseline": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
    started = time.monotonic()
    context = mp.get_context("spawn")
    waiting = [range(at, min(at + batch, files)) for at in range(0, files, batch)][::-1]
    running: list[_Job] = []

    def start(numbers: range) -> None:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(base, seed, numbers, theirs), daemon=True)
        process.start()
        theirs.close()
        late = time.monotonic() + START
        running.append(_Job(numbers, process, ours, numbers.start, late))

    while waiting or running:
        while waiting and len(running) < jobs:
            start(waiting.pop())
        wait([job.pipe for job in running], timeout=1)
        for job in list(running):
            _listen(job, report, seconds)
            late = time.monotonic() > job.late
            if not job.ended and not late:
                continue
            if late and not job.ended:
                job.process.kill()
                report.hangs.append(job.done)
            job.process.join()
            job.pipe.close()
            running.remove(job)
            if progress is not None:
                progress(report.files)
            if job.done == job.numbers.stop and job.process.exitcode:
                report.crashes[job.done - 1] = _ending(job.process.exitcode)  # at its very end
            if job.done < job.numbers.stop:
                if job.ended:
                    report.crashes[job.done] = _ending(job.process.exitcode)
                report.files += 1
                waiting.append(range(job.done + 1, job.numbers.stop))
    report.seconds = round(time.monotonic() - started, 1)
    return report


def _listen(job: _Job, report: Report, seconds: float) -> None:
    """Take what a process has said."""
    try:
        while job.pipe.poll():
            number, kind, what, fine, peak, before = job.pipe.recv()
            job.late = time.monotonic() + seconds
            if number < 0:
                report.peak_bytes = max(report.peak_bytes, peak)
                report.before_bytes = max(report.before_bytes, before)
                continue
            job.done = number + 1
            report.files += 1
            report.kinds[kind] += 1
            report.outcomes[what] += 1
            if not fine:
                report.undiagnosed.setdefault(what, []).append(number)
    except (EOFError, OSError):
        job.ended = True


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit status {code}"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--base", type=Path, help="the good file (default: one that is made here)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = arguments.base
        if base is None:
            from tests.artifact.small import make

            base = make(Path(folder) / "small.fuse")
        report = campaign(
            base,
            files=arguments.files,
            jobs=arguments.jobs,
            seed=arguments.seed,
            progress=lambda done: print(f"{done} files ...", file=sys.stderr, flush=True),
        )
    arguments.output.write_text(f"{report.to_json()}\n")
    worst = f"{len(report.crashes)} crashes, {len(report.hangs)} hangs"
    print(f"{report.files} files, {len(report.outcomes)} outcomes, {worst}, "
          f"{sum(map(len, report.undiagnosed.values()))} without a diagnostic, "
          f"{report.peak_bytes >> 20} MB")  # fmt: skip
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
