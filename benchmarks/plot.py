"""The plot of the page: speed beside torch.compile and eager, and compile time by layers."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from benchmarks.common import Json
from benchmarks.tables import CASES, SHORT, TITLES, of_kind

COLORS = {"fuseline": "#1b7f5c", "torch.compile": "#d98032", "eager": "#8a8f98"}


def draw(results: Json, path: Path) -> None:
    """Write the plot; the same results give the same bytes."""
    mpl: Any = importlib.import_module("matplotlib")
    mpl.use("svg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    settings: Json = {"svg.hashsalt": "fuseline", "font.size": 8}
    settings |= {"axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(settings):
        figure, (left, right) = pyplot.subplots(
            1, 2, figsize=(11, 5.5), width_ratios=(3, 2), layout="constrained"
        )
        _rates(left, results)
        _compilation(right, results)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def _rates(axes: Any, results: Json) -> None:
    """Speed relative to eager, a group of bars for each case with the most threads."""
    labels: list[str] = []
    heights: dict[str, list[float]] = {name: [] for name in COLORS}
    most = max((part["threads"] for part in of_kind(results, "speed")), default=1)
    for part in of_kind(results, "speed"):
        if part["threads"] != most:
            continue
        for case, found in part["cases"].items():
            what = f"{TITLES[part['model']]}, {SHORT[part['dtype']]}"
            labels.append(f"{what}, {CASES.get(case, case)}")
            eager = found["median_s"]["eager"]
            for name, values in heights.items():
                middle = found["median_s"].get(name)
                values.append(eager / middle if middle else 0.0)
    width = 0.27
    for number, (name, values) in enumerate(heights.items()):
        places = [i + (number - 1) * width for i in range(len(values))]
        bars = axes.barh(places, values, width, label=name, color=COLORS[name])
        axes.bar_label(bars, [f"{v:.1f}" if v else "" for v in values], padding=2, fontsize=6)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_title(f"calls a second, eager = 1, {most} threads")
    axes.legend(loc="lower right", frameon=False)


def _compilation(axes: Any, results: Json) -> None:
    """Seconds of compilation by the number of layers."""
    found = [part for part in of_kind(results, "compile") if part["model"] in ("smollm2", "tiny")]
    points = sorted(((part.get("layers", 30), part) for part in found), key=lambda p: p[0])
    for name in ("fuseline", "torch.compile"):
        for state, style in (("cold", "-o"), ("warm", "--s")):
            places = [layers for layers, _ in points]
            seconds = [part[name][state]["seconds"] for _, part in points]
            axes.plot(places, seconds, style, label=f"{name}, {state}", color=COLORS[name])
    axes.set_xlabel("layers")
    axes.set_title("seconds to compile a decode step of SmolLM2-135M")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
