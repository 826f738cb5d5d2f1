"""Arguments overlap, and the program is from the cache: there is no graph to fall back to."""

from pathlib import Path

import torch

from fuseline.compiler import Compiler
from fuseline.config import Config
from fuseline.ir.text import parse_func
from fuseline.saved import SavedProgram


def program(tmp: Path) -> None:
    func = parse_func(
        """func @f(%a: buffer<f32[4]> = input "a", %b: f32[4] = input "b") {
          %y = add %b, %b
          write %a, %y
          return
        }"""
    )
    saved = SavedProgram("f", func, {}, (), ())
    run = Compiler(Config(cache_dir=tmp / "cache")).restore(saved.to_text())
    memory = torch.ones(6)
    run([memory[:4], memory[2:]])
