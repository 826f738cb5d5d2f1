"""Kernels of routed experts, with a shared branch, against eager's loop and reading as many bytes.

    python -m benchmarks.micro_experts --threads 1 --output benchmarks/results/micro_experts.json

Every call has other experts and another copy of the shared branch: weights come from memory.
Kernels, the loop and the read (the bytes of the weights in use, in eight streams) take turns: a
ratio is one of neighbours in time. One thread is timed by its own clock, which stands while other
processes have the core; several by the wall's.
"""

from __future__ import annotations

import argparse
import ctypes
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.micro_linear import DTYPES, as_text, machine
from fuseline.codegen import lowerings
from fuseline.codegen.lower import WORKERS, Launch, Scratch, lower
from fuseline.ir.core import Func, Value
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.experts import Experts, Moe
from fuseline.ir.ops.fused import GatedLinear, LinearAdd
from fuseline.ir.ops.pointwise import Mul, Silu
from fuseline.ir.types import DType, TensorType, substitute
from tests.codegen.cpu.harness import Call, Host, build, compile_source, sgemm_address

assert lowerings.__all__, "importing them registers them"
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
ROUTES = 16


@dataclass(frozen=True)
class Case:
    """A mixture, an element type, a number of tokens."""

    dtype: str
    tokens: int
    experts: int = 32
    top: int = 4
    hidden: int = 1024
    inner: int = 512
    shared: int = 512
    transposed: bool = False

    def op(self) -> tuple[Func, Moe]:
        """The op over arguments, for a lowering."""
        func, kind = Func("f"), DType(self.dtype)

        def arg(dtype: DType, *shape: int) -> Value:
            return func.add_arg(TensorType(dtype, shape), f"a{len(func.args)}")

        up, down = (2 * self.inner, self.hidden), (self.hidden, self.inner)
        if self.transposed:
            up, down = up[::-1], down[::-1]
        op = Moe(
            x=arg(kind, self.tokens, self.hidden),
            indices=arg(DType.I64, self.tokens, self.top),
            weights=arg(kind, self.tokens, self.top),
            up=(arg(kind, self.experts, *up),),
            down=(arg(kind, self.experts, *down),),
            up_bias=None,
            down_bias=None,
            shared_up=tuple(arg(kind, self.shared, self.hidden) for _ in range(2)),
            shared_down=arg(kind, self.hidden, self.shared),
            shared_gate=None,
            experts=self.experts,
            body=swiglu(kind, self.inner),
            shared_body=swiglu(kind, self.shared),
            transposed=self.transposed,
            dtype=kind,
        )
        func.append(op)
        func.set_returns([op.y])
        return func, op


def apart(func: Func, op: Moe) -> None:
    """Put the shared branch of a func of one op behind the routed experts, in ops of its own."""
    taken = {spec.name for spec in Experts.fields if spec.kind == "attribute"}
    routed = {name: value for name, value in op.attributes.items() if name in taken}
    given = (op.x, op.indices, op.weights, op.up, op.down, op.up_bias, op.down_bias)
    assert op.shared_down is not None, "there is a shared branch"
    experts = func.append(Experts(*given, **routed))
    hidden = func.append(GatedLinear(op.x, *op.shared_up))
    func.set_returns([func.append(LinearAdd(hidden.y, op.shared_down, experts.y, None)).y])
    func.edit(erase=[op])


def swiglu(dtype: DType, width: int) -> Func:
    """``silu(gate) * up``."""
    body = Func("body")
    gate, up = (body.add_arg(TensorType(dtype, (width,)), n) for n in ("gate", "up"))
    body.set_returns([body.append(Mul(body.append(Silu(gate)).y, up)).y])
    return body


def random_weight(shape: Sequence[int], dtype: torch.dtype, g: torch.Generator) -> Tensor:
    """Seeded values that keep the size of what they are multiplied by; made in small parts."""
    out = torch.empty(*shape, dtype=dtype)
    flat, size = out.view(-1), 1 << 20
    for start in range(0, len(flat), size):
        part = flat[start : start + size]
        part.copy_(torch.randn(len(part), generator=g) * shape[-1] ** -0.5)
    return out


class Timer:
    """The kernels, the loop over experts, and a read, on the same weights."""

    def __init__(self, case: Case, driver: ctypes.CDLL, nth: int, flags: Sequence[str]) -> None:
        self._case, self._driver, self._nth = case, driver, nth
        g = torch.Generator().manual_seed(0)
        dtype = DTYPES[case.dtype]

        def randn(*shape: int) -> Tensor:
            return random_weight(shape, dtype, g)

        self._x = randn(case.tokens, case.hidden) * case.hidden**0.5
        up = randn(case.experts, 2 * case.inner, case.hidden)
        down = randn(case.experts, case.hidden, case.inner)
        self._up: Tensor = torch.transpose(up, 1, 2).contiguous() if case.transposed else up
        self._down: Tensor = torch.transpose(down, 1, 2).contiguous() if case.transposed else down
        self._shared = [
            (randn(2 * case.shared, case.hidden), randn(case.hidden, case.shared))
            for _ in range(ROUTES)
        ]
        # Each route takes up where the one before it ended, so that all experts have their turn.
        order = torch.stack([torch.randperm(case.experts, generator=g) for _ in range(4096)])
        picks = order.view(-1)[: ROUTES * case.tokens * case.top]
        picks = picks.view(ROUTES, case.tokens, case.top)
        self._indices = [p.contiguous() for p in picks]
        self._weights = torch.full((case.tokens, case.top), 1 / case.top, dtype=dtype)
        self._y = torch.empty(case.tokens, case.hidden, dtype=dtype)
        self._host = Host(sgemm_address() or None)
        func, op = case.op()
        launches = lower(op, LayoutMap(func))
        assert isinstance(launches, list), launches
        self._launches = [(build(x.kernel, flags).entry, x) for x in launches if _runs(x)]
        self.kernels = [x.kernel.family for _, x in self._launches]
        size = max(_scratch_bytes(x, nth) for _, x in self._launches)
        self._scratch = torch.zeros(size, dtype=torch.uint8)
        self._fault = ctypes.c_int32()
        self._calls = [
            [self._workers(op, x, route) for _, x in self._launches] for route in range(ROUTES)
        ]
        self._cold = torch.ones((256 << 20) // 4)

    def nbytes(self, route: int) -> int:
        """Bytes of the weights that a call reads."""
        used = len(set(_list(self._indices[route])))
        each = 3 * self._case.inner * self._case.hidden
        shared = 3 * self._case.shared * self._case.hidden
        return (used * each + shared) * DTYPES[self._case.dtype].itemsize

    @property
    def flops(self) -> int:
        """Floating-point operations of a call."""
        case = self._case
        return 6 * case.tokens * case.hidden * (case.top * case.inner + case.shared)

    def _workers(self, op: Moe, launch: Launch, route: int) -> Any:
        shared_up, shared_down = self._shared[route]
        memory = {op.x: self._x, op.indices: self._indices[route], op.weights: self._weights}
        memory |= {op.up[0]: self._up, op.down[0]: self._down, op.y: self._y}
        assert op.shared_down is not None
        memory |= {op.shared_up[0]: shared_up, op.shared_down: shared_down}
        buffers = [
            self._scratch if isinstance(b, Scratch) else memory[b] for b in launch.buffers if b
        ]
        buf = (ctypes.c_void_p * len(buffers))(*(t.data_ptr() for t in buffers))
        dims = [substitute(d, {}) for d in launch.dims]
        dim = (ctypes.c_int64 * len(dims))(*dims)
        ends = ctypes.addressof(buf), ctypes.addressof(dim), ctypes.addressof(self._host)
        calls = [
            Call(*ends, tid, self._nth, ctypes.addressof(self._fault)) for tid in range(self._nth)
        ]
        table = (ctypes.c_void_p * self._nth)(*(ctypes.addressof(call) for call in calls))
        table.keep = (buf, dim, calls)  # pyright: ignore[reportAttributeAccessIssue]
        return table

    def ours(self, route: int) -> list[float]:
        """Seconds of each launch of a call."""
        found: list[float] = []
        for (entry, _), calls in zip(self._launches, self._calls[route], strict=True):
            seconds = ctypes.c_double()
            counts = ctypes.c_int64(1), ctypes.c_int64(self._nth)
            self._driver.time_calls(entry, calls, *counts, ctypes.byref(seconds))
            found.append(seconds.value)
        return found

    def read(self, route: int, i: int) -> float:
        """Seconds to read as many bytes as a call, from memory; scaled up where they are many."""
        nbytes = self.nbytes(route)
        span = min(nbytes, 32 << 20)
        places = len(self._cold) * 4 // span
        start = self._cold.data_ptr() + i % places * span
        sink = (ctypes.c_float * self._nth)()
        numbers = (ctypes.c_int64(n) for n in (span // 4, 8, self._nth))
        return self._driver.time_read(ctypes.c_void_p(start), *numbers, sink) * nbytes / span

    def eager(self, route: int) -> float:
        """Seconds of the loop."""
        clock = time.thread_time if self._nth == 1 else time.perf_counter
        start = clock()
        self.loop(route)
        return clock() - start

    def loop(self, route: int) -> Tensor:
        """Expert by expert, as modelling code has it."""
        x, case, y = self._x, self._case, torch.zeros_like(self._y)
        mask = F.one_hot(self._indices[route], case.experts).permute(2, 1, 0)
        for e in _list(mask.sum((-1, -2)).nonzero()):
            slot, token = torch.where(mask[e])
            up, down = self._up[e], self._down[e]
            if case.transposed:
                up, down = up.transpose(0, 1), down.transpose(0, 1)
            gate, up = F.linear(x[token], up).chunk(2, -1)
            out = F.linear(F.silu(gate) * up, down) * self._weights[token, slot, None]
            y.index_add_(0, token, out)
        shared_up, shared_down = self._shared[route]
        gate, up = shared_up.chunk(2)
        return y + F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), shared_down)

    def error(self) -> float:
        """The norm of the difference to eager over eager's norm."""
        self.ours(0)
        want = self.loop(0).float()
        difference = self._y.float() - want
        return float((difference.square().sum() / want.square().sum()).sqrt())

    def samples(self, seconds: float) -> dict[str, list[float]]:
        """Seconds by turns, 5 to 100 times each, for about so many seconds."""
        names = ("up", "down", "eager", "read")
        times: dict[str, list[float]] = {name: [] for name in names}
        once = sum(self.ours(0)) + self.eager(1) + self.read(2, 0)
        for i in range(max(6, min(100, int(seconds / once)))):
            route = i % ROUTES
            first, *rest = self.ours(route)
            times["up"].append(first)
            times["down"].append(sum(rest))
            times["read"].append(self.read(route, i))
            times["eager"].append(self.eager((i + ROUTES // 2) % ROUTES))
        return times


def _list(x: Tensor) -> list[int]:
    return cast("Any", x).flatten().tolist()


def _runs(launch: Launch) -> bool:
    if launch.when is None:
        return True
    value, first, last = launch.when
    return isinstance(value, int) and first <= value and (last is None or value <= last)


def _scratch_bytes(launch: Launch, nth: int) -> int:
    scratch = next(b for b in launch.buffers if isinstance(b, Scratch))
    return substitute(scratch.nbytes, {str(WORKERS): nth})


def measure(case: Case, driver: ctypes.CDLL, nth: int, seconds: float, flags: Sequence[str]) -> Any:
    """One case's samples and figures."""
    timer = Timer(case, driver, nth, flags)
    samples = timer.samples(seconds)
    both = [a + b for a, b in zip(samples["up"], samples["down"], strict=True)]
    ratios = {
        "eager": statistics.median(samples["eager"]) / statistics.median(both),
        "eager_of_minima": min(samples["eager"]) / min(both),
        "read": statistics.median(r / b for r, b in zip(samples["read"], both, strict=True)),
        "read_of_minima": min(samples["read"]) / min(both),
    }
    return {
        **asdict(case),
        "threads": nth,
        "kernels": timer.kernels,
        "fuseline_s": statistics.median(both),
        "best_s": min(both),
        "best_up_s": min(samples["up"]),
        "best_down_s": min(samples["down"]),
        "ratios": ratios,
        "flops_per_s": timer.flops / min(both),
        "relative_difference": timer.error(),
        "samples": {name: [round(s, 8) for s in times] for name, times in samples.items()},
    }


def show(result: dict[str, Any]) -> None:
    """One line for a case."""
    ratios = result["ratios"]
    print(
        f"{result['dtype']:5} T={result['tokens']:<4}{result['threads']} threads "
        f"{result['fuseline_s'] * 1e6:9.1f} us (best {result['best_up_s'] * 1e6:.0f} + "
        f"{result['best_down_s'] * 1e6:.0f})  {ratios['eager']:5.2f} x the loop (best "
        f"{ratios['eager_of_minima']:.2f})  {ratios['read']:4.0%} of read (best "
        f"{ratios['read_of_minima']:4.0%})  {result['flops_per_s'] * 1e-9:.1f} GF/s",
        flush=True,
    )


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--dtypes", nargs="+", default=["f32", "bf16"], choices=sorted(DTYPES))
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--transposed", action="store_true", help="matrices lie [K, N]")
    parser.add_argument("--seconds", type=float, default=1, help="for each case")
    parser.add_argument("--flags", nargs="*", default=[], help="more options of the compiler")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Measure, print, and write the figures."""
    args = arguments(argv)
    source = Path(__file__).with_name("linear_driver.cpp").read_text()
    driver = compile_source(source, ["-fopenmp"])
    driver.time_read.restype = ctypes.c_double
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.micro_experts", *argv]),
        "machine": machine(),
        "results": [],
    }
    for nth in args.threads:
        torch.set_num_threads(nth)
        for dtype in args.dtypes:
            for tokens in args.tokens:
                case = Case(dtype, tokens, transposed=args.transposed)
                result = measure(case, driver, nth, args.seconds, args.flags)
                report["results"].append(result)
                show(result)
                if args.output:
                    args.output.write_text(as_text(report))


if __name__ == "__main__":
    main(sys.argv[1:])
