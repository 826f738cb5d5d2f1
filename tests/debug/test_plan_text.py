"""What dumps say of a plan."""

from __future__ import annotations

from pathlib import Path

import torch

from fuseline.debug.dump import Dump
from fuseline.runtime.plan import ArgSpec, Buffer, NativeStep, Plan, View

BF16 = torch.bfloat16


def test_a_plan_is_written_in_words(tmp_path: Path) -> None:
    plan = Plan(
        args=(
            ArgSpec("x", "tensor", BF16, ("n", 64), (64, 1), aligned=False),
            ArgSpec("norm.weight", "tensor", BF16, (64,), (1,), fixed=True),
            ArgSpec("cache", "tensor", BF16, (8, 64), (64, 1), written=True),
            ArgSpec("s0", "int", value="n"),
        ),
        buffers=(
            Buffer("arg", arg=0, dtype=BF16, name="x"),
            Buffer("temp", nbytes="128*n"),
            Buffer("scratch"),
            Buffer("output", nbytes="128*n", dtype=BF16),
            Buffer("host"),
        ),
        steps=(
            NativeStep(
                "norm_01", ((0, 0), (3, "64*n")), ("n",), "4*n", "y = rms_norm", ("n", 1, 8)
            ),
        ),
        returns=(View(3, 16, BF16, ("n", 64), (64, 1)),),
        symbols={"n": (0, 0)},
        ranges={"n": (1, 8)},
    )
    Dump(tmp_path, "model").plan(plan)
    assert (tmp_path / "model-00" / "plan.txt").read_text().splitlines() == [
        "arg 0: x bfloat16[n, 64] strides (64, 1), not aligned",
        "arg 1: norm.weight bfloat16[64] strides (1), fixed",
        "arg 2: cache bfloat16[8, 64] strides (64, 1), written",
        "arg 3: s0 int = n",
        "buffer 0: argument 0 (x bfloat16)",
        "buffer 1: temp of 128*n bytes",
        "buffer 2: scratch of the step at hand",
        "buffer 3: output of 128*n bytes",
        "buffer 4: made by a host step",
        "step 0: norm_01 [0, 3+64*n] (n) work 4*n when 1 <= n <= 8  // y = rms_norm",
        "return 0: 3+16 as bfloat16[n, 64] strides (64, 1)",
    ]
