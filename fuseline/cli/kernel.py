"""What the script beside a kernel of a dump does: build, run, check and time that kernel alone.

The source is read from the file beside the script. The inputs are seeded, and lie in memory as in
the program that the kernel was dumped from. Each result, and each buffer that is written, is held
to the op's reference in float64 by the numbers rule; the times are a median, beside the least that
the op's bytes and operations take on this machine. The exit status is 0 where the numbers are
right, 1 where they differ or the kernel cannot be built or run, 2 for wrong usage.

A kernel for a CPU runs here. One in Triton runs on a GPU, and where there is none Triton interprets
it, which shows its numbers; one in CUDA C++ is then compiled, which shows what it needs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from fuseline import errors
from fuseline.build import Tools
from fuseline.cli.costs import time_text
from fuseline.cli.output import Output, columns
from fuseline.cli.units import bytes_text
from fuseline.codegen.gpu.cuda import CudaKernel
from fuseline.codegen.targets import GPU_TARGETS, TARGETS, Target
from fuseline.config import Config
from fuseline.debug.machine import Machine, machine_of
from fuseline.header import without_head
from fuseline.one_kernel.script import op_of
from fuseline.one_kernel.trial import Alone, Checked, NotTheKernelError, Work, binaries
from fuseline.report import CostRecord
from fuseline.report_tables import digits, large

BLOCKS = 512
"""Blocks that are interpreted unless more are asked for: each takes milliseconds."""

_FLUSH = 1 << 26
"""Bytes that are written before each call of a CPU's kernel that is timed with cold caches."""

_SUFFIXES = ("cpp", "py", "cu")


@dataclass(frozen=True)
class Times:
    """Seconds of single calls, in order."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The one in the middle."""
        return statistics.median(self.samples)

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {"median_s": self.median, "least_s": min(self.samples), "runs": len(self.samples)}


Timed = Callable[[Callable[[], None], int], dict[str, Times]]
"""Times a call so many times; the times by what they are of."""


def main(
    script: str,
    *,
    symbol: str,
    target: str,
    op: str,
    memory: Mapping[str, object],
    argv: Sequence[str] | None = None,
) -> int:
    """Do what the script's arguments say; the exit status.

    Args:
        script: its path; sources lie beside it.
        symbol: of the kernel.
        target: that it is for.
        op: that it does, as text of IR.
        memory: how the arguments and results of that lie in memory.
        argv: the arguments, if not those of the process.

    """
    parser = _parser(Path(script), symbol, target)
    given = parser.parse_args(argv)
    out = Output(json=given.json)
    sources = _sources(Path(script).parent)
    try:
        if symbol not in sources:
            raise NotTheKernelError(f"the source of {symbol} does not lie beside the script")
        alone = Alone.of(symbol, TARGETS[target], *op_of(op, memory), sources)
        known = alone.layouts.func.symbols
        if unknown := [name for name, _ in given.size if name not in known]:
            names = ", ".join(known) or "none"
            parser.error(f"no size is called {unknown[0]}; there are: {names}")
        return _run(alone, given, out, Path(script))
    except NotTheKernelError as error:
        out.note(f"error: {error}")
        return 1
    except errors.FuselineError as error:
        out.error(error.diagnostic)
        return 1


def _parser(script: Path, symbol: str, target: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=script.name,
        description=f"Build {symbol} for {target} from the source beside this script, run it, "
        "check its numbers and time it.",
        epilog=f"example: python {script.name} --runs 100 --json",
    )
    parser.add_argument(
        "--size",
        metavar="NAME=N",
        type=_size,
        action="append",
        default=[],
        help="the value of a size (default: some with which this kernel runs)",
    )
    parser.add_argument("--runs", type=_count, default=50, help="calls to time (default: 50)")
    parser.add_argument("--threads", type=_count, default=1, help="of a CPU (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs (default: 0)")
    parser.add_argument(
        "--blocks",
        type=_count,
        default=BLOCKS,
        help=f"most blocks to interpret, where there is no GPU (default: {BLOCKS})",
    )
    parser.add_argument("--no-time", action="store_true", help="only check the numbers")
    parser.add_argument("--json", action="store_true", help="the answer as JSON")
    return parser


def _size(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    if not name or not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as S=128")
    return name, int(value)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a count")
    return int(text)


def _sources(folder: Path) -> dict[str, str]:
    """The sources in a folder by symbol, as they are to be compiled: what a compiler of C++ says of
    them is about the lines of the files.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        name, _, suffix = path.name.partition(".")
        if suffix in _SUFFIXES:
            text = path.read_text()
            body = without_head(text)
            first = text.count("\n") - body.count("\n") + 1
            found[name] = body if suffix == "py" else f'#line {first} "{path.name}"\n{body}'
    return found


def _run(alone: Alone, given: argparse.Namespace, out: Output, script: Path) -> int:
    sizes: dict[str, int] = dict(given.size)
    if alone.target.backend == "cpu":
        work = alone.on(alone.sizes(sizes), torch.device("cpu"), given.seed)
        tools = Tools.find(Config())
        with out.step("building"):
            run = work.native(tools, given.threads)
            other = alone.on(work.values, torch.device("cpu")).native(tools, given.threads)
        return _answer(work, run, given, out, _timed_on_cpu(other))
    if torch.cuda.is_available():
        alone = replace(alone, target=_target_here(alone.target, out))
        work = alone.on(alone.sizes(sizes), torch.device("cuda", 0), given.seed)
        with out.step("building"):
            run = work.on_gpu(Tools.find(Config()))
        return _answer(work, run, given, out, _timed_on_gpu)
    if isinstance(alone.kernels[alone.symbol], CudaKernel):
        return _compiled(alone, out)
    if os.environ.get("TRITON_INTERPRET") != "1":
        return _again_interpreted(script)
    return _interpreted(alone, given, out)


def _target_here(target: Target, out: Output) -> Target:
    """The target of the GPU at hand: what the kernel was dumped for, or the nearest."""
    major, minor = torch.cuda.get_device_capability()
    fits = [t for t in GPU_TARGETS if t.capability // 10 == major and t.capability % 10 <= minor]
    here = max(fits, key=lambda t: t.capability, default=target)
    if here is not target:
        out.note(f"the GPU is of capability {major}.{minor}: built for {here.name}")
    return here


def _compiled(alone: Alone, out: Output) -> int:
    """What a compiler says, where nothing more can be known."""
    with out.step("building"):
        made = binaries(alone, Tools.find(Config()).cache)
    rows = [
        [symbol, each.needs, f"{each.resources['spills']} spills"] for symbol, each in made.items()
    ]
    data = {
        "symbol": alone.symbol,
        "target": alone.target.name,
        "ran": False,
        "kernels": {symbol: dict(each.resources) for symbol, each in made.items()},
    }
    verdict = f"verdict  it compiles for {alone.target.name}, and cannot run here: there is no GPU"
    out.result(data, "\n".join([columns(rows, indent=""), verdict]))
    return 0


def _again_interpreted(script: Path) -> int:
    """The same in a process in which Triton interprets."""
    command = [sys.executable, str(script), *sys.argv[1:]]
    return subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}).returncode


def _interpreted(alone: Alone, given: argparse.Namespace, out: Output) -> int:
    from fuseline.debug import interpreted

    interpreted.mend()
    values = alone.sizes(dict(given.size), few=True)
    others = [n for n in alone.running(values) if isinstance(alone.kernels[n], CudaKernel)]
    if others:
        out.note(f"error: with it runs {others[0]}, which is in CUDA C++ and needs a GPU")
        return 1
    work = alone.on(values, torch.device("cpu"), given.seed)
    run, blocks = work.interpreted()
    if blocks > given.blocks:
        out.note(
            f"error: {blocks} blocks to interpret are more than {given.blocks}; smaller sizes need "
            "fewer, and --blocks allows more"
        )
        return 1
    out.note(f"no GPU: Triton interprets {blocks} blocks, which shows numbers and no times")
    return _answer(work, run, given, out, None)


def _answer(
    work: Work,
    run: Callable[[], None],
    given: argparse.Namespace,
    out: Output,
    timed: Timed | None,
) -> int:
    """Check and time, and say what came of it."""
    with out.step("checking"):
        work.expect()
        run()
        answer = Answer(work, work.check(Config().tolerance))
    if answer.good and timed is not None and not given.no_time:
        with out.step("timing"):
            answer.times = timed(run, given.runs)
            answer.machine = machine_of(work.alone.target.name)
    out.result(answer.to_dict(), answer.text())
    return 0 if answer.good else 1


@dataclass
class Answer:
    """What came of a run: numbers, and where they are right, times."""

    work: Work
    found: Sequence[Checked]
    times: Mapping[str, Times] = field(default_factory=dict[str, Times])
    machine: Machine | None = None

    @property
    def good(self) -> bool:
        """Whether all numbers are right."""
        return all(each.good for each in self.found)

    @property
    def least(self) -> CostRecord:
        """The least that the op moves and computes."""
        op, cost = self.work.alone.op, self.work.alone.cost(self.work.values)
        dtype = op.operands[0].dtype.value if op.operands else ""
        return CostRecord("compiled", "", "", op.name, dtype, int(cost.bytes), int(cost.flops))

    @property
    def floor(self) -> float | None:
        """The seconds that this takes; None where nothing was timed."""
        return None if self.machine is None else self.machine.seconds(self.least)

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        alone, least = self.work.alone, self.least
        return {
            "symbol": alone.symbol,
            "op": alone.op.name,
            "target": alone.target.name,
            "sizes": self.work.values,
            "kernels": alone.running(self.work.values),
            "good": self.good,
            "results": [_result(each) for each in self.found],
            "bytes": least.bytes,
            "flops": least.flops,
            "times": {name: each.to_dict() for name, each in self.times.items()},
            "floor_s": self.floor,
            "machine": None if self.machine is None else str(self.machine),
        }

    def text(self) -> str:
        """For people."""
        alone, values = self.work.alone, self.work.values
        sizes = "".join(f", {name}={value}" for name, value in values.items())
        others = ", ".join(name for name in alone.running(values) if name != alone.symbol)
        rows = [["kernel", f"{alone.symbol} for {alone.target.name}"]]
        rows += [["", f"with {others}"]] if others else []
        rows.append(["op", f"{alone.op.name}{sizes}"])
        rows += [["numbers", _numbers(each)] for each in self.found]
        rows += [["time", f"{time_text(t.median)}, {name}"] for name, t in self.times.items()]
        if self.floor is not None:
            moved = f"{bytes_text(self.least.bytes)} and {large(self.least.flops)} operations"
            rows.append(["floor", f"{time_text(self.floor)} for {moved}"])
            rows.append(["", f"by {self.machine}"])
        rows.append(["verdict", self.verdict()])
        return columns(rows, indent="")

    def verdict(self) -> str:
        """The outcome in a line."""
        bad = [f"%{each.name}" for each in self.found if not each.good]
        if bad:
            return f"the numbers differ: {', '.join(bad)}"
        if not self.times or not self.floor:
            return "the numbers are right"
        first = next(iter(self.times.values())).median
        return f"the numbers are right; {digits(first / self.floor)} times the floor"


def _result(each: Checked) -> dict[str, object]:
    return {
        "name": each.name,
        "type": each.type,
        "good": each.good,
        "ulp": each.gap.ulp,
        "eager_ulp": each.gap.eager_ulp,
        "share": each.gap.share(each.tolerance),
        "same": each.gap.same,
    }


def _numbers(each: Checked) -> str:
    if each.gap.same:
        return f"%{each.name} {each.type}: the bits of the reference"
    share = each.gap.share(each.tolerance)
    return (
        f"%{each.name} {each.type}: off by {each.gap.ulp:.3g} ulp, the reference by "
        f"{each.gap.eager_ulp:.3g}; {share:.2g} of what is allowed"
    )


def _timed_on_cpu(other: Callable[[], None]) -> Timed:
    """Times calls on a CPU, with the operands in memory and in its caches.

    Args:
        other: the same on other memory: it brings the code back before a call with cold caches.

    """

    def timed(run: Callable[[], None], runs: int) -> dict[str, Times]:
        flush = torch.zeros(_FLUSH // 4)
        found: dict[str, Times] = {}
        for name, cold in (("from memory", True), ("from caches", False)):
            samples: list[float] = []
            for _ in range(runs):
                if cold:
                    flush.add_(1.0)
                    other()
                started = time.perf_counter()
                run()
                samples.append(time.perf_counter() - started)
            found[f"median of {runs}, {name}"] = Times(tuple(samples))
        return found

    return timed


def _timed_on_gpu(run: Callable[[], None], runs: int) -> dict[str, Times]:
    from fuseline.choose.cuda_timer import CudaTimer

    sample = CudaTimer(torch.device("cuda", 0)).prepare(run)
    return {
        f"median of {runs}, from memory, by a graph": Times(tuple(sample() for _ in range(runs)))
    }


__all__ = ["main"]
