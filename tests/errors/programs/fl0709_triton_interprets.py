"""Kernels for a GPU are wanted in a process where Triton interprets them."""

import importlib
from pathlib import Path
from typing import Any

from fuseline import build
from fuseline.codegen.targets import TARGETS
from fuseline.config import Config
from fuseline.ir.text import parse_func


def program(tmp: Path) -> None:
    tools = build.Tools.find(Config(cache_dir=tmp))
    knobs: Any = importlib.import_module("triton.knobs")
    with knobs.runtime.scope():
        knobs.runtime.interpret = True  # as by TRITON_INTERPRET=1
        func = parse_func("func @f(%x: f32[S, 8]) { %y = rms_norm %x  return %y }")
        build.build(func, {}, tools, TARGETS["sm_90"], strict=True)
