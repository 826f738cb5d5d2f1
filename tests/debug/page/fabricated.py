"""Pages of programs that nobody compiled, of any size, with everything that a page can show."""

from __future__ import annotations

from dataclasses import replace

from fuseline.debug.page.data import (
    BufferView,
    GraphView,
    Group,
    Hunk,
    KernelView,
    LayerView,
    MemoryView,
    NodeView,
    PageView,
    PassView,
    ProgramView,
    StepView,
)
from fuseline.report import Choice, KernelRecord, Option, Site

HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"><!--<script>\u2028&lt;b&gt;"
"""What a model may be called, and a page must show as text."""

KINDS = ("add_rms_norm", "attention", "gated_mlp", "merged_linear", "rope")
OPS = (
    "merged_linear",
    "reshape",
    "qk_norm_rope",
    "attention",
    "linear",
    "add_rms_norm",
    "gated_linear",
)

_CPP = """#include <stdint.h>
/* the rows
   of a product */
extern "C" void {symbol}(const fl_call *call) {{
  const float *x = (const float *)call->buf[0];  // of the model
  for (int64_t i = 0; i < 4; ++i) store(x[i] * 1.5f, "text");
}}
"""
_PTX = ".version 8.4\n.visible .entry {symbol}()\n{{\n  ld.global.v4.b32 {{%r1}}, [%rd1];\n}}\n"


def page(ops: int = 70, passes: int = 8, *, name: str = "Tiny", programs: int = 1) -> PageView:
    """A page whose programs have some number of ops before all passes."""
    return PageView(
        title=name,
        versions={"fuseline": "0.1.0", "torch": "2.13.0"},
        notes=("The second program is like the first.",) if programs > 1 else (),
        programs=tuple(program(ops, passes, f"{name}{n or ''}") for n in range(programs)),
    )


def program(ops: int, passes: int, name: str) -> ProgramView:
    """A program of layers that are all alike; each pass but every third changes a line of each."""
    layers = max(1, ops // len(OPS))
    texts, runs, lines = _pipeline(layers, passes, name)
    final = texts[-1]
    return ProgramView(
        name=name,
        target="cpu",
        options={"verify": "True"},
        lines=lines,
        imported=texts[0],
        final=final,
        passes=runs,
        graphs=(
            _graph("before all passes", layers, texts[0], piece=-1),
            _graph("after all passes", layers, final, piece=0),
        ),
        groups=tuple(Group(kind, _where(layer, name)) for layer in range(layers) for kind in KINDS),
        sites=_sites(layers, name),
        kernels=_kernels(name),
        layers=tuple(
            LayerView(f"layers.{layer}", (50, 4000, 9000), (8, 3000, 9000), 2e-5, 4e-6)
            for layer in range(layers)
        ),
        steps=_steps(layers, name),
        memory=_memory(layers),
        sizes={"s0": 64},
        seconds={"import": 0.05, "optimise": 0.4, "build": 2.0},
        calls={"eager": (0.02, 0.03, 0.025), "compiled": (0.01, 0.011, 0.012)},
        machine="a machine of this test: 20 GB/s",
        floor=4e-6 * layers,
    )


def bare() -> PageView:
    """A page of a program of which nothing is known."""
    full = program(7, 1, "Bare")
    nothing = replace(
        full,
        lines=(),
        imported=(),
        final=(),
        passes=(),
        graphs=(),
        groups=(),
        sites=(),
        kernels=(),
        layers=(),
        steps=(),
        memory=None,
        sizes={},
        seconds={},
        calls={},
    )
    return PageView("Bare", {}, (), (nothing,))


def _where(layer: int, name: str) -> str:
    return f"layers.{layer}.{name} (model.py:1)"


def _line(op: int, version: int, name: str) -> str:
    layer, kind = divmod(op, len(OPS))
    return (
        f"  %v{op} = {OPS[kind]} %v{max(op - 1, 0)} {{version = {version}}} : f32[1, 64]"
        f' @ "layers.{layer}.{name}" "model.py:1"'
    )


def _pipeline(
    layers: int, passes: int, name: str
) -> tuple[list[tuple[int, ...]], tuple[PassView, ...], tuple[str, ...]]:
    ops = layers * len(OPS)
    lines = [f"func @f(%v0: f32[1, 64]) {{  // {name}", "}"]
    lines += [_line(op, 0, name) for op in range(ops)]
    texts: list[tuple[int, ...]] = [(0, *range(2, ops + 2), 1)]
    runs: list[PassView] = []
    for number in range(passes):
        before = texts[-1]
        touched = range(number % len(OPS), ops, len(OPS)) if number % 3 != 2 else range(0)
        after = list(before)
        for op in touched:
            after[op + 1] = len(lines)
            lines.append(_line(op, number + 1, name))
        hunks = tuple(
            Hunk(op + 1, op + 1, ((before[op], after[op]), (before[op + 1], after[op + 1])))
            for op in touched
        )
        rewrites = tuple(f"#{op} pass-{number} at {_where(op // len(OPS), name)}" for op in touched)
        runs.append(
            PassView(
                name=f"pass-{number}",
                about="Fold a residual add into the norm that reads it.",
                start=number * 0.01,
                seconds=0.001 * (1 + number % 5),
                before=ops,
                after=ops,
                rewrites=rewrites,
                hunks=hunks,
            )
        )
        texts.append(tuple(after))
    return texts, tuple(runs), tuple(lines)


def _graph(title: str, layers: int, text: tuple[int, ...], piece: int) -> GraphView:
    ops = layers * len(OPS)
    nodes = tuple(
        NodeView(
            op=OPS[op % len(OPS)],
            text=text[op + 1],
            module=f"layers.{op // len(OPS)}.self_attn",
            source=("model.py:1",),
            bytes=1000 + op,
            flops=2000 + op,
            group=op // len(OPS) * len(KINDS) + op % len(OPS) if op % len(OPS) < len(KINDS) else -1,
            piece=piece if piece < 0 else op * 2 // ops,
            kernels=(f"rows_{op % 3}",),
            x=op % 2,
            y=op,
        )
        for op in range(ops)
    )
    edges = tuple((op - back, op) for op in range(1, ops) for back in (1, 6) if op >= back)
    return GraphView(title, nodes, edges)


def _sites(layers: int, name: str) -> tuple[Site, ...]:
    fused = [
        Site(
            "attention",
            _where(layer, name),
            "fused",
            kernel="rows_0",
            details={"heads": "4 over 2"},
        )
        for layer in range(layers)
    ]
    missed = Site("rope", f"model.{name} (model.py:9)", "missed", f"x is not rotated: {name}")
    return (*fused, missed)


def _kernels(name: str) -> tuple[KernelView, ...]:
    choice = Choice(
        "all", "warps 8", "measurement", (Option("warps 8", 3.5), Option("warps 4", 5.0))
    )
    records = [
        KernelRecord(f"rows_{n}", "rows", "linear", 2, f"{name} (model.py:1)", target="sm_90")
        for n in range(3)
    ]
    records[1] = replace(
        records[1],
        resources={"registers": 64, "shared_memory": 49152, "spills": 8},
        choices=(choice,),
    )
    library = KernelRecord("mm", "library", "linear", 1, "", "library", reason="large products")
    views = [
        KernelView(
            r, "cpp", _CPP.format(symbol=r.symbol), _PTX.format(symbol=r.symbol) if n else ""
        )
        for n, r in enumerate(records)
    ]
    return (*views, KernelView(library, "", ""))


def _steps(layers: int, name: str) -> tuple[StepView, ...]:
    return tuple(
        StepView(
            label=OPS[step % len(OPS)],
            symbol=f"rows_{step % 3}",
            where=_where(step // len(OPS), name),
            kind="native",
            seconds=(1e-5 * (1 + step % 4), 1.2e-5 * (1 + step % 4)),
            floor=4e-6 if step % 4 else None,
        )
        for step in range(layers * len(OPS))
    )


def _memory(layers: int) -> MemoryView:
    steps = layers * len(OPS)
    temps = tuple(
        BufferView(f"v{s}", "f32[1, 64]", "temp", s % 4 * 256, 256, (s, min(s + 3, steps - 1)))
        for s in range(steps)
    )
    output = BufferView("y", "f32[1, 64]", "output", 0, 256, (steps - 1, steps - 1))
    return MemoryView((*temps, output), arena=1024, weights=1 << 20, outputs=256)
