"""Product kernels against eager `F.linear` and against the machine's ceilings.

    python -m benchmarks.micro_linear --threads 1 --output benchmarks/results/micro_linear.json

Each case goes through several copies of its weights, together larger than the caches, by turns
with fuseline and with eager, so that a ratio is one of neighbours in time. One thread is timed by
its own clock, which stands while other processes have the core; several by the wall's. Ceilings are
measured in the same run: reading with one and with eight streams, multiply-adds in registers.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from fuseline.codegen.cpu.linear import LinearKernel
from fuseline.codegen.cpu.linear_choice import choose_linear
from tests.codegen.cpu.harness import Call, Host, build, compile_source, sgemm_address

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SHAPES = {  # name: (columns, K, gated)
    "smollm2-135m qkv": (960, 576, False),
    "smollm2-135m down": (576, 1536, False),
    "1024 qkv": (4096, 1024, False),
    "1024 gate and up": (3072, 1024, True),
    "1024 down": (1024, 3072, False),
}


@dataclass(frozen=True)
class Case:
    """One product: ``[tokens, k]`` by ``[columns (gated: twice), k]``."""

    name: str
    columns: int
    k: int
    gated: bool
    dtype: str
    tokens: int

    @property
    def rows(self) -> int:
        """Rows of the weight."""
        return self.columns * (2 if self.gated else 1)

    @property
    def nbytes(self) -> int:
        """Bytes of the weight."""
        return self.rows * self.k * DTYPES[self.dtype].itemsize

    @property
    def flops(self) -> int:
        """Floating-point operations of the product."""
        return 2 * self.tokens * self.rows * self.k

    def kernel(self) -> LinearKernel:
        """What the compiler would use."""
        (choice,) = choose_linear(
            k=self.k,
            outputs=(self.columns,),
            dtype=self.dtype,
            activation="silu" if self.gated else None,
            gated=self.gated,
            min_tokens=self.tokens,
            max_tokens=self.tokens,
        )
        return choice.kernel


class Timer:
    """Fuseline's kernel and eager on copies of the same weights."""

    def __init__(self, case: Case, driver: ctypes.CDLL, nth: int, cold_bytes: int) -> None:
        dtype = DTYPES[case.dtype]
        copies = min(64, max(2, cold_bytes // case.nbytes))
        g = torch.Generator().manual_seed(0)
        self._x = torch.randn(case.tokens, case.k, generator=g).to(dtype)
        one = (torch.randn(case.rows, case.k, generator=g) * case.k**-0.5).to(dtype)
        self._weights = [one.clone() for _ in range(copies)]
        self._y = torch.empty(case.tokens, case.columns, dtype=dtype)
        kernel = case.kernel()
        self.kernel = kernel.family
        self._scratch = torch.empty(int(kernel.scratch_bytes(case.tokens, nth)) // 4 + 1)
        self._kernel = build(kernel).entry
        self._case, self._driver, self._nth = case, driver, nth
        self._host = Host(sgemm_address() or None)
        self._calls = [self._workers(weight) for weight in self._weights]

    def _workers(self, weight: torch.Tensor) -> Any:
        bufs = (self._x, weight, self._y, self._scratch)
        buf = (ctypes.c_void_p * 4)(*(t.data_ptr() for t in bufs))
        dim = (ctypes.c_int64 * 3)(len(self._x), self._x.stride(0), self._y.stride(0))
        host = ctypes.addressof(self._host)
        ends = ctypes.addressof(buf), ctypes.addressof(dim), host
        calls = [Call(*ends, tid, self._nth) for tid in range(self._nth)]
        table = (ctypes.c_void_p * self._nth)(*(ctypes.addressof(call) for call in calls))
        table.keep = (buf, dim, calls)  # pyright: ignore[reportAttributeAccessIssue]
        return table

    def ours(self, copy: int) -> float:
        """Seconds of one call."""
        seconds = ctypes.c_double()
        self._driver.time_calls(
            self._kernel,
            self._calls[copy],
            ctypes.c_int64(1),
            ctypes.c_int64(self._nth),
            ctypes.byref(seconds),
        )
        return seconds.value

    def eager(self, copy: int) -> float:
        """Seconds of one call."""
        clock = time.thread_time if self._nth == 1 else time.perf_counter
        start = clock()
        self._eager(self._weights[copy])
        return clock() - start

    def _eager(self, weight: torch.Tensor) -> torch.Tensor:
        if not self._case.gated:
            return F.linear(self._x, weight)
        gate, up = weight[: self._case.columns], weight[self._case.columns :]
        return F.silu(F.linear(self._x, gate)) * F.linear(self._x, up)

    def error(self) -> float:
        """The norm of the difference to eager over eager's norm."""
        self.ours(0)
        want = self._eager(self._weights[0]).float()
        difference = self._y.float() - want
        return float((difference.square().sum() / want.square().sum()).sqrt())

    def samples(self, seconds: float) -> dict[str, list[float]]:
        """Seconds of both, by turns, 5 to 200 times each, for about so many seconds.

        Neither meets a copy that the other has just read.
        """
        times: dict[str, list[float]] = {"fuseline": [], "eager": []}
        copies = len(self._weights)
        once = self.ours(0) + self.eager(1)
        for i in range(max(5, min(200, int(seconds / once)))):
            times["fuseline"].append(self.ours(i % copies))
            times["eager"].append(self.eager((i + copies // 2) % copies))
        return times


def ceilings(driver: ctypes.CDLL, nth: int, nbytes: int) -> dict[str, float]:
    """Bytes a second of reading, multiply-adds (as two operations) a second.

    The best of many short spans of a large array: a busy machine disturbs some, not all.
    """
    data, span = torch.ones(nbytes // 4), (8 << 20) * nth
    sink = (ctypes.c_float * nth)()
    n, workers = ctypes.c_int64(span // 4), ctypes.c_int64(nth)
    starts = range(data.data_ptr(), data.data_ptr() + nbytes - span + 1, span)
    rounds = 200_000
    found: dict[str, float] = {}
    for streams in (1, 8):
        count = ctypes.c_int64(streams)
        times = [
            driver.time_read(ctypes.c_void_p(start), n, count, workers, sink)
            for _ in range(3)
            for start in starts
        ]
        found[f"read_{streams}_bytes_per_s"] = span / min(times)
    times = [driver.time_fma(ctypes.c_int64(rounds), workers, sink) for _ in range(50)]
    found["fma_flops_per_s"] = 160 * rounds * nth / min(times)
    return found


def measure(case: Case, driver: ctypes.CDLL, nth: int, cold_bytes: int, seconds: float) -> Any:
    """One case's samples and figures."""
    timer = Timer(case, driver, nth, cold_bytes)
    samples = timer.samples(seconds)
    ours, eager = (statistics.median(samples[name]) for name in ("fuseline", "eager"))
    return {
        **asdict(case),
        "threads": nth,
        "kernel": timer.kernel,
        "fuseline_s": ours,
        "eager_s": eager,
        "speedup": eager / ours,
        "bytes_per_s": case.nbytes / ours,
        "flops_per_s": case.flops / ours,
        "relative_difference": timer.error(),
        "samples": {name: [round(s, 8) for s in times] for name, times in samples.items()},
    }


def machine() -> dict[str, str | int]:
    """What the figures depend on."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((ln.split(":")[1].strip() for ln in lines if ln.startswith("model name")), cpu)
    gxx = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "cpu": cpu,
        "cores": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "compiler": gxx.splitlines()[0],
    }


def show(result: dict[str, Any], top: dict[str, float]) -> None:
    """One line for a case."""
    read = result["bytes_per_s"] / top["read_8_bytes_per_s"]
    arithmetic = result["flops_per_s"] / top["fma_flops_per_s"]
    print(
        f"{result['name']:18} {result['dtype']:5} T={result['tokens']:<4}"
        f"{result['threads']} threads {result['fuseline_s'] * 1e6:9.1f} us  "
        f"{result['speedup']:5.2f} x eager  {result['bytes_per_s'] * 1e-9:5.1f} GB/s ({read:4.0%})"
        f"  {result['flops_per_s'] * 1e-9:6.1f} GF/s ({arithmetic:4.0%})",
        flush=True,
    )


def as_text(report: dict[str, Any]) -> str:
    """JSON with one line for each result."""
    rest = json.dumps({key: value for key, value in report.items() if key != "results"}, indent=1)
    lines = ",\n".join(f"  {json.dumps(result)}" for result in report["results"])
    return f'{rest[:-2]},\n "results": [\n{lines}\n ]\n}}\n'


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--dtypes", nargs="+", default=["f32", "bf16"], choices=sorted(DTYPES))
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--seconds", type=float, default=0.4, help="for each case")
    parser.add_argument("--cold-mib", type=int, default=96, help="weights that one case reads")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Measure, print, and write the figures."""
    args = arguments(argv)
    source = Path(__file__).with_name("linear_driver.cpp").read_text()
    driver = compile_source(source, ["-fopenmp"])
    driver.time_read.restype = driver.time_fma.restype = ctypes.c_double
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.micro_linear", *argv]),
        "machine": machine(),
        "ceilings": {},
        "results": [],
    }
    for nth in args.threads:
        torch.set_num_threads(nth)
        top = ceilings(driver, nth, 256 << 20)
        report["ceilings"][str(nth)] = top
        print({name: f"{value * 1e-9:.1f} G" for name, value in top.items()})
        for name in args.shapes:
            columns, k, gated = SHAPES[name]
            for dtype in args.dtypes:
                for tokens in args.tokens:
                    case = Case(name, columns, k, gated, dtype, tokens)
                    result = measure(case, driver, nth, args.cold_mib << 20, args.seconds)
                    report["results"].append(result)
                    show(result, top)
    if args.output:
        args.output.write_text(as_text(report))


if __name__ == "__main__":
    main(sys.argv[1:])
