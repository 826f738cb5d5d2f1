"""Writes docs/gpu-kernels.md: what the kernels of released models need on every target.

    python -m tests.codegen.gpu.table            # minutes; what is in the cache is not built again
    python -m tests.codegen.gpu.table --list     # the cases
    python -m tests.codegen.gpu.table --only norms heads        # these groups; the others stay

The cases are those of the tests of binaries. No GPU is needed. The exit code is 1 where a case has
a kernel for which no configuration does without spills.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from fuseline.build_gpu import Candidate, choose, needs_building
from fuseline.codegen.forms import When
from fuseline.codegen.gpu.cuda import CudaKernel
from fuseline.codegen.lower import Launch, emit
from fuseline.codegen.targets import GPU_TARGETS
from fuseline.config import Config
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu import cuda_build
from fuseline.runtime.gpu.triton_build import identity
from tests.codegen import adapter_cases
from tests.codegen.gpu import (
    head_models,
    test_attention,
    test_experts,
    test_latent,
    test_linear,
    test_route,
)

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "gpu-kernels.md"
RESULTS = ROOT / "benchmarks" / "results" / "gpu_binaries.json"

HEAD = """\
# Kernels for GPUs

What the generated kernels need at the sizes of released models, for each target: registers of a
thread, kilobytes of shared memory of a block, warps of a block, and the widest load and store in
bits. A kernel that spills (see [the choice](gpu.md)) is not in the table, as it is never run: the
next configuration is taken.
Sizes are the range of tokens (or rows) that the kernel runs for, where several share an op. Kernels
whose names end in `_cuda` are in CUDA C++, the others in Triton; of two for the same sizes the
likelier stands first. Nothing of this was run on a GPU; it is read from the machine code.

Made by `python -m tests.codegen.gpu.table`; the figures, and the versions of Triton, of its
assemblers and of NVRTC, are in `benchmarks/results/gpu_binaries.json`.
"""

NORMS = {
    "Qwen3-8B, residual and norm": """func @f(%x: bf16[S, 4096], %r: bf16[S, 4096],
        %w: bf16[4096]) {
      %s, %y = add_rms_norm %x, %r, %w
      return %s, %y
    }""",
    "DeepSeek-V3, residual and norm": """func @f(%x: bf16[S, 7168], %r: bf16[S, 7168],
        %w: bf16[7168]) {
      %s, %y = add_rms_norm %x, %r, %w
      return %s, %y
    }""",
    "rows of 5120, residual and norm": """func @f(%x: bf16[S, 5120], %r: bf16[S, 5120],
        %w: bf16[5120]) {
      %s, %y = add_rms_norm %x, %r, %w
      return %s, %y
    }""",
    "heads of 128": """func @f(%x: bf16[S, 32, 128], %w: bf16[128]) {
      %y = rms_norm %x, %w
      return %y
    }""",
}
POINTS = {
    "silu(gate) * up of 14336": """func @f(%x: bf16[S, 28672]) {
      %g = slice %x {axis = 1, start = 0, stop = 14336}
      %u = slice %x {axis = 1, start = 14336, stop = 28672}
      %y = pointwise [%g, %u] {body = func @b(%g: bf16[S, 14336], %u: bf16[S, 14336]) {
        %s = silu %g
        %y = mul %s, %u
        return %y
      }}
      return %y
    }""",
    "embedding of 4096": """func @f(%t: bf16[151936, 4096], %i: i64[S]) {
      %y = embedding %t, %i
      return %y
    }""",
    "argmax of 151936": """func @f(%x: f32[S, 151936]) {
      %y = argmax %x {axis = 1}
      return %y
    }""",
    "softmax of 4096": """func @f(%x: f32[S, 4096]) {
      %y = softmax %x {axis = 1}
      return %y
    }""",
}


@dataclass(frozen=True)
class Row:
    """A kernel of a case, and what it needs on each target; a string where it cannot run."""

    case: str
    family: str
    when: When
    found: dict[str, Candidate | str]


def cases() -> dict[str, list[Launch]]:
    """The launches of every case."""
    texts = {f"norms: {name}": text for name, text in NORMS.items()}
    texts |= {f"element-wise and selection: {name}": text for name, text in POINTS.items()}
    texts |= {f"heads: {name}": text for name, text in head_models.RELEASED.items()}
    texts |= {
        f"products: {name}": test_linear.released(*sizes)
        for name, sizes in test_linear.RELEASED.items()
    }
    texts |= {
        f"attention: {name}": test_attention.released(name) for name in test_attention.RELEASED
    }
    texts |= {"latent attention: DeepSeek-V3": test_latent.released()}
    texts |= {
        f"router: {name}": test_route.released(name, experts, dtype)
        for name, (experts, dtype) in test_route.SIZES.items()
    }
    texts |= {
        f"adapters: 8 of rank {rank}, 4096 by 4096": adapter_cases.Case(
            count=8, depth=4096, width=4096, rank=rank, dtype="bf16", scale=0.5
        ).text()
        for rank in (16, 64)
    }
    found = {case: lowered(text) for case, text in texts.items()}
    for name in test_experts.RELEASED:
        for tokens in (1, 8, 8192):
            case = f"experts: {name}, {tokens} token{'s' if tokens > 1 else ''}"
            found[case] = list(test_experts.launches_of(name, tokens))
    return found


def lowered(text: str) -> list[Launch]:
    """What the ops of a func are lowered to."""
    func = parse_func(text)
    return [launch for step in emit(func, LayoutMap(func), "cuda") for launch in step.launches]


def rows(cache: Cache, chosen: dict[str, list[Launch]]) -> Iterator[Row]:
    """A row for every kernel of every case, built for every target."""
    for case, launches in chosen.items():
        print(case, file=sys.stderr, flush=True)
        for launch in filter(needs_building, launches):
            for road in by_language(launch):
                found = {target.name: choose(cache, road, target) for target in GPU_TARGETS}
                yield Row(case, road.kernel.family, launch.when, found)


def by_language(launch: Launch) -> Iterator[Launch]:
    """The configurations of a launch in Triton, and those in CUDA C++, as a launch each; what is
    first in the launch is first.
    """
    every = (launch, *launch.others)
    for kind in dict.fromkeys(isinstance(each.kernel, CudaKernel) for each in every):
        first, *others = (e for e in every if isinstance(e.kernel, CudaKernel) is kind)
        yield dataclasses.replace(first, others=tuple(others))


Entry: TypeAlias = "dict[str, Any]"
"""A row in the file of results."""


def as_json(row: Row) -> Entry:
    """A row for the file of results."""
    targets = {
        name: found
        if isinstance(found, str)
        else {
            **found.binary.resources,
            "warps": found.binary.warps,
            "dynamic_shared_memory": found.binary.shared_memory,
        }
        for name, found in row.found.items()
    }
    sizes = None if row.when is None else [row.when[1], row.when[2]]
    return {"case": row.case, "family": row.family, "sizes": sizes, "targets": targets}


def group_of(case: str) -> str:
    """The table that a case is in."""
    return case.partition(": ")[0]


def page(entries: Sequence[Entry]) -> str:
    """The page: a table for each group of cases."""
    parts = [HEAD]
    group = ""
    names = [target.name for target in GPU_TARGETS]
    for entry in entries:
        head, rest = group_of(entry["case"]), entry["case"].partition(": ")[2]
        if head != group:
            group = head
            columns = ["case", "kernel", "sizes", *names]
            parts.append(f"\n## {head[0].upper()}{head[1:]}\n\n| {' | '.join(columns)} |")
            parts.append(f"|{' --- |' * len(columns)}")
        needs = (_cell(entry["targets"][name]) for name in names)
        parts.append(f"| {' | '.join([rest, entry['family'], _sizes(entry['sizes']), *needs])} |")
    return "\n".join(parts) + "\n"


def _sizes(sizes: tuple[int, int | None] | None) -> str:
    if sizes is None:
        return "all"
    low, high = sizes
    return f"{low} and up" if high is None else str(low) if low == high else f"{low} to {high}"


def _cell(found: dict[str, int] | str) -> str:
    if isinstance(found, str):
        return "none fits"
    memory = (found["dynamic_shared_memory"] + found["static_shared_memory"]) / 1024
    widths = f"{found['widest_load']}/{found['widest_store']}"
    shared = f"{memory:.0f}" if memory >= 1 or not memory else f"{memory:.1f}"
    return f"{found['registers']} regs, {shared} KB, {found['warps']} warps, {widths}"


def main(argv: Sequence[str] | None = None) -> int:
    """Build, and write the page and the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = cases()
    groups = list(dict.fromkeys(map(group_of, every)))
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--only", nargs="+", choices=groups, default=groups, help="these groups")
    arguments = parser.parse_args(argv)
    if arguments.list:
        print("\n".join(every))
        return 0
    chosen = {case: made for case, made in every.items() if group_of(case) in arguments.only}
    found = [as_json(row) for row in rows(Cache.open(Config().cache_dir), chosen)]
    if len(arguments.only) < len(groups):
        before = json.loads(RESULTS.read_text())["kernels"]
        found += [entry for entry in before if group_of(entry["case"]) not in arguments.only]
    found.sort(key=lambda entry: groups.index(group_of(entry["case"])))
    compilers = f"{identity()}, {cuda_build.identity()}"
    RESULTS.write_text(json.dumps({"compiler": compilers, "kernels": found}, indent=1) + "\n")
    PAGE.write_text(page(found))
    bad = [(e, name) for e in found for name, n in e["targets"].items() if isinstance(n, str)]
    for entry, target in bad:
        what = f"no configuration of {entry['family']} for {target}"
        print(f"{entry['case']}: {what}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
