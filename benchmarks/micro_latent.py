"""Kernels of attention in the latent space against the floors of the machine and the expanded form.

    python -m benchmarks.micro_latent --threads 1 2 --output benchmarks/results/micro_latent.json

The floor of a launch is the larger of two times: to read its weights or the cache, and to do its
multiply-adds; the ceilings are measured in the same run. The expanded form (`benchmarks.mla`) runs
eagerly and under torch.compile, by turns with the kernels.
"""

from __future__ import annotations

import argparse
import ctypes
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Json, write_json
from benchmarks.micro_linear import DTYPES, ceilings, machine
from benchmarks.mla import LatentAttention, Widths, random
from fuseline import _torch
from fuseline.codegen.cpu.latent import AbsorbedKernel
from fuseline.ir.types import substitute
from tests.codegen.cpu.harness import Call, build, compile_source

GEOMETRIES = {
    "small": Widths(),
    "16 heads": Widths(key=128, value=128, shared=64),
    "deepseek-v3": Widths(heads=128, key=128, value=128, latent=512, shared=64),
}


class Case:
    """A step of one query a batch over ``context`` latents."""

    def __init__(self, widths: Widths, dtype: str, batch: int, context: int, nth: int) -> None:
        self.widths, self.batch, self.context, self.nth = widths, batch, context, nth
        self.dtype = kind = DTYPES[dtype]
        self.model, w = LatentAttention(widths, kind), widths
        self.q = random(batch, 1, w.heads, w.key + w.shared, dtype=kind, seed=2)
        self.latent = random(batch, 1, context, w.latent, dtype=kind, seed=3)
        self.shared = random(batch, 1, context, w.shared, dtype=kind, seed=4)
        self.y = torch.empty(batch, 1, w.heads, w.value, dtype=kind)
        kernel = AbsorbedKernel(
            dtype,
            group=w.heads,
            width=w.key + w.shared,
            value_width=w.latent,
            scale=(w.key + w.shared) ** -0.5,
            key=w.key,
            value=w.value,
            latent=w.latent,
            shared=w.shared,
        )
        size = substitute(kernel.latent_scratch(batch * w.heads, context, nth), {})
        scratch = torch.empty(size, dtype=torch.uint8)
        tensors = [self.q, self.latent, self.model.weight, self.shared, self.y, scratch]
        q, y = self.q.transpose(1, 2), self.y.transpose(1, 2)
        dims = [batch, 1, 1, context, *q.stride()[:3]]
        dims += [context * w.latent, w.latent, context * w.shared, w.shared, *y.stride()[:3]]
        buf = (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
        dim = (ctypes.c_int64 * len(dims))(*dims)
        ends = ctypes.addressof(buf), ctypes.addressof(dim), None
        self._calls = [Call(*ends, tid, nth) for tid in range(nth)]
        self._table = (ctypes.c_void_p * nth)(*(ctypes.addressof(c) for c in self._calls))
        self._kept = (tensors, buf, dim)
        self.kernels = {k.family: build(k).entry for k in kernel.launches()}

    def launch(self, driver: ctypes.CDLL, family: str) -> float:
        """Seconds of one launch."""
        seconds = ctypes.c_double()
        one, nth = ctypes.c_int64(1), ctypes.c_int64(self.nth)
        driver.time_calls(self.kernels[family], self._table, one, nth, ctypes.byref(seconds))
        return seconds.value

    def floors(self, top: dict[str, float]) -> dict[str, float]:
        """Seconds that a launch takes at least."""
        w, rows = self.widths, self.batch * self.widths.heads
        size, cache = self.dtype.itemsize, self.batch * self.context * (w.latent + w.shared)
        pairs = rows * self.context * (2 * w.latent + w.shared)
        needs = {  # bytes, multiply-adds
            "latent_query": (w.heads * w.key * w.latent * size, rows * w.key * w.latent),
            "latent_attend": (cache * size, pairs),
            "latent_value": (w.heads * w.value * w.latent * size, rows * w.value * w.latent),
        }
        read, fma = top["read_8_bytes_per_s"], top["fma_flops_per_s"]
        return {name: max(n / read, 2 * m / fma) for name, (n, m) in needs.items()}

    def operands(self) -> tuple[Tensor, ...]:
        """What the expanded form takes."""
        q = self.q.view(self.batch, 1, -1)
        return q, self.latent, self.shared, torch.tensor([self.context - 1])


def measure(case: Case, driver: ctypes.CDLL, top: dict[str, float], seconds: float) -> Json:
    """The least seconds of each launch and of the expanded form, over samples by turns."""
    torch.compiler.reset()
    compiled = _torch.optimize(case.model, "inductor", dynamic=False)
    runs: dict[str, Any] = {"eager": case.model, "torch.compile": compiled}
    given = case.operands()
    want = {name: run(*given) for name, run in runs.items()}["eager"].float()
    clock = time.thread_time if case.nth == 1 else time.perf_counter
    best: dict[str, float] = {}
    started, rounds = time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - started < seconds:
        rounds += 1
        for name in case.kernels:
            best[name] = min(best.get(name, 1e9), case.launch(driver, name))
        for name, run in runs.items():
            start = clock()
            run(*given)
            best[name] = min(best.get(name, 1e9), clock() - start)
    floors, total = case.floors(top), sum(best[name] for name in case.kernels)
    got = case.y.view(want.shape).float()
    return {
        "seconds": best,
        "floors": floors,
        "share_of_floor": sum(floors.values()) / total,
        "speedup": {name: best[name] / total for name in runs},
        "relative_difference": float((got - want).norm() / want.norm()),
        "rounds": rounds,
    }


def main(argv: Sequence[str]) -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.micro_latent", description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--dtypes", nargs="+", default=["f32", "bf16"], choices=sorted(DTYPES))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--contexts", type=int, nargs="+", default=[100, 2048])
    parser.add_argument("--geometries", nargs="+", default=["small"], choices=list(GEOMETRIES))
    parser.add_argument("--seconds", type=float, default=2, help="for each case")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    args = parser.parse_args(argv)
    source = Path(__file__).with_name("linear_driver.cpp").read_text()
    driver = compile_source(source, ["-fopenmp"])
    driver.time_read.restype = driver.time_fma.restype = ctypes.c_double
    command = shlex.join(["python", "-m", "benchmarks.micro_latent", *argv])
    report: Json = {"command": command, "machine": machine(), "ceilings": {}, "results": {}}
    with torch.no_grad():
        for nth in args.threads:
            torch.set_num_threads(nth)
            top = report["ceilings"][str(nth)] = ceilings(driver, nth, 128 << 20)
            for name in args.geometries:
                for dtype in args.dtypes:
                    for batch in args.batches:
                        for context in args.contexts:
                            case = Case(GEOMETRIES[name], dtype, batch, context, nth)
                            key = f"{name}/{dtype}/batch {batch}/{context} keys/{nth} threads"
                            found = measure(case, driver, top, args.seconds)
                            report["results"][key] = found
                            show(key, found)
    if args.output:
        write_json(args.output, report)


def show(key: str, found: Json) -> None:
    """One line for a case."""
    times = (f"{name} {1e6 * s:.0f} us" for name, s in found["seconds"].items())
    ratios = (f"{ratio:.1f} x {name}" for name, ratio in found["speedup"].items())
    print(f"{key}: {', '.join(times)}; {', '.join(ratios)}; {found['share_of_floor']:.0%} of floor")


if __name__ == "__main__":
    main(sys.argv[1:])
