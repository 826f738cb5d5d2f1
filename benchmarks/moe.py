"""A mixture of experts with a shared branch: fuseline against eager's loop and torch.compile.

    OMP_NUM_THREADS=1 python -m benchmarks.moe --threads 1

32 experts of 512, 4 for a token, hidden 1024, a shared expert of 512, softmax router in float32;
compiled for each number of tokens. Each call has another input, which goes to other experts.
torch.compile is given both traceable forms: weights gathered for every token, and the grouped
product over sorted tokens that transformers has for a CPU; the faster one counts. ``fuseline`` is
the compiled model (of the grouped form), ``fuseline op`` the op `moe` on the weights and indices
that eager's router gives it, ``fuseline apart`` the same with the shared branch in ops of its own.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.by_size import BySize
from benchmarks.common import Json, by_turns, load, medians
from benchmarks.micro_experts import Case, apart, random_weight
from benchmarks.models import DTYPES
from benchmarks.tables import SHORT
from fuseline import Config, _torch
from fuseline.build import Tools, build
from fuseline.compiler import Compiler
from fuseline.debug.oracle import relative_error
from fuseline.frontend.backend import Backend
from fuseline.runtime.executor import Program
from fuseline.runtime.kernels import HostKernels
from fuseline.runtime.native import Runner

EXPERTS, TOP, HIDDEN, INNER, SHARED = 32, 4, 1024, 512, 512
TOKENS = (1, 2, 4, 8, 128)
MOST_GATHERED = 8
INPUTS = 16

Run = Callable[[], Tensor]


class Mixture(nn.Module):
    """Router, packed routed experts, a shared branch; ``form`` is how the experts are written."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(random_weight(shape, dtype, g))

        self.router = weight(EXPERTS, HIDDEN)
        self.gate_up = weight(EXPERTS, 2 * INNER, HIDDEN)
        self.down = weight(EXPERTS, HIDDEN, INNER)
        self.shared_gate, self.shared_up = weight(SHARED, HIDDEN), weight(SHARED, HIDDEN)
        self.shared_down = weight(HIDDEN, SHARED)
        self.form = "loop"

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and indices [T, K]."""
        scores = torch.softmax(F.linear(x, self.router).float(), -1)
        weights, indices = scores.topk(TOP, -1)
        return (weights / weights.sum(-1, keepdim=True)).to(x.dtype), indices

    def forward(self, x: Tensor) -> Tensor:
        """x and y are [T, HIDDEN]."""
        weights, indices = self.route(x)
        routed = cast("Tensor", getattr(self, self.form)(x, weights, indices))
        hidden = F.silu(F.linear(x, self.shared_gate)) * F.linear(x, self.shared_up)
        return routed + F.linear(hidden, self.shared_down)

    def loop(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        """Expert by expert, those that have tokens."""
        y = torch.zeros_like(x)
        mask = F.one_hot(indices, EXPERTS).permute(2, 1, 0)
        for e in cast("Any", mask.sum((-1, -2)).nonzero()).flatten().tolist():
            slot, token = torch.where(mask[e])
            gate, up = F.linear(x[token], self.gate_up[e]).chunk(2, -1)
            out = F.linear(F.silu(gate) * up, self.down[e])
            y.index_add_(0, token, out * weights[token, slot, None])
        return y

    def gathered(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        """A batched product over the pairs of a token and an expert."""
        picks = indices.flatten()
        given = x.repeat_interleave(TOP, 0).unsqueeze(-1)
        gate, up = torch.bmm(self.gate_up[picks], given).squeeze(-1).chunk(2, -1)
        out = torch.bmm(self.down[picks], (F.silu(gate) * up).unsqueeze(-1)).squeeze(-1)
        return (out.view(-1, TOP, HIDDEN) * weights.unsqueeze(-1)).sum(1)

    def grouped(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        """A grouped product over the pairs, sorted by expert."""
        product: Any = torch.ops.transformers.grouped_mm_fallback
        picks, order = indices.flatten().sort()
        counts = torch.histc(picks.float(), EXPERTS, 0, EXPERTS - 1)
        ends = counts.cumsum(0).to(torch.int32)
        rows = product(x[order // TOP], self.gate_up.transpose(1, 2), offs=ends)
        gate, up = rows.chunk(2, -1)
        rows = product(F.silu(gate) * up, self.down.transpose(1, 2), offs=ends)
        out = torch.empty_like(rows).index_copy(0, order, rows)
        return (out.view(-1, TOP, HIDDEN) * weights.unsqueeze(-1)).sum(1)


def inputs(tokens: int, dtype: torch.dtype) -> list[Tensor]:
    """Inputs that the router sends to different experts."""
    g = torch.Generator().manual_seed(1)
    return [torch.randn(tokens, HIDDEN, generator=g).to(dtype) for _ in range(INPUTS)]


def moe_op(
    model: Mixture, tokens: int, dtype: str, *, beside: bool = True
) -> Callable[..., Tensor]:
    """A program of the one op, or of the shared branch apart; takes x, weights and indices."""
    func, moe = Case(SHORT[dtype], tokens, EXPERTS, TOP, HIDDEN, INNER, SHARED).op()
    if not beside:
        apart(func, moe)
    config = Config()
    tools = Tools.find(config)
    assert tools.toolchain is not None, "kernels need a compiler"
    built = build(func, {}, tools, strict=True)
    runner = Runner.open(tools.cache, tools.toolchain)
    program = Program(
        built.assembled.plan,
        runner,
        HostKernels(built.addresses),
        threads=torch.get_num_threads(),
    )
    both = torch.cat((model.shared_gate, model.shared_up))
    fixed = [model.gate_up, model.down, *both.chunk(2), model.shared_down]

    def run(x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        (y,) = program([x, indices, weights, *fixed])
        return y

    return run


def contenders(tokens: int, dtype: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """What can be called with an input."""
    model = Mixture(DTYPES[dtype])
    forms = {"grouped": "torch.compile grouped"}
    if tokens <= MOST_GATHERED:  # with more, every token's weights take gigabytes
        forms["gathered"] = "torch.compile gathered"
    found: dict[str, Callable[[Tensor], Tensor]] = {"eager": model}
    for form, name in forms.items():
        found[name] = _in_form(model, form, _torch.optimize(model, "inductor", dynamic=False))
    own = _torch.optimize(model, Backend(Compiler(Config())), dynamic=False)
    found["fuseline"] = _in_form(model, "grouped", own)
    for name, beside in (("fuseline op", True), ("fuseline apart", False)):
        op = moe_op(model, tokens, dtype, beside=beside)
        found[name] = _behind_router(model, op)
    return found


def _behind_router(model: Mixture, op: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: op(x, *model.route(x))


def _in_form(
    model: Mixture, form: str, function: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        before, model.form = model.form, form
        y = function(x)
        model.form = before
        return y

    return run


def measure(tokens: int, dtype: str, seconds: float) -> Json:
    """Samples and figures for one number of tokens."""
    importlib.import_module("transformers.integrations.moe")  # has the grouped product
    torch.compiler.reset()
    given = inputs(tokens, DTYPES[dtype])
    functions = contenders(tokens, dtype)
    want = functions["eager"](given[0])
    differences = {
        name: relative_error([function(given[0])], [want])
        for name, function in functions.items()
        if name != "eager"
    }
    turns = itertools.cycle(given)
    runs = {name: _next(function, turns) for name, function in functions.items()}
    samples = by_turns(runs, seconds=seconds, calls=3, untimed=1)
    middle = medians(samples)
    others = min(middle[name] for name in middle if not name.startswith("fuseline"))
    return {
        "median_s": middle,
        "speedup": {
            "fastest other": others / middle["fuseline"],
            "op, fastest other": others / middle["fuseline op"],
            "op, eager": middle["eager"] / middle["fuseline op"],
            "beside, apart": middle["fuseline apart"] / middle["fuseline op"],
        },
        "difference_to_eager": differences,
        "load": load(),
        "samples_s": samples,
    }


def _next(function: Callable[[Tensor], Tensor], turns: Iterator[Tensor]) -> Run:
    return lambda: function(next(turns))


BENCHMARK = BySize("moe", __doc__, "tokens", TOKENS, 4, measure)


if __name__ == "__main__":
    BENCHMARK.main(sys.argv[1:])
