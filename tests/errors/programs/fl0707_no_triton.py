"""Kernels for a GPU are wanted, and nothing can build them."""

from pathlib import Path
from unittest import mock

from fuseline import build, errors
from fuseline.codegen.targets import TARGETS
from fuseline.config import Config
from fuseline.ir.text import parse_func


def program(tmp: Path) -> None:
    tools = build.Tools.find(Config(cache_dir=tmp))
    with mock.patch.object(build, "problem", return_value=errors.NO_TRITON):
        func = parse_func("func @f(%x: f32[S, 8]) { %y = rms_norm %x  return %y }")
        build.build(func, {}, tools, TARGETS["sm_90"], strict=True)
