"""An option for caches of latents, with a program that has none."""

from pathlib import Path

from fuseline.compiler import Compiler
from fuseline.config import Config
from fuseline.ir.text import parse_func
from fuseline.saved import SavedProgram

STEP = """func @step(%cache: buffer<f32[1, 2, 4, 3]> = buffer "cache", %x: f32[1, 2, 4, 3]) {
  %before = read %cache
  write %cache, %x
  return %before
}"""


def program(tmp: Path) -> None:
    compiler = Compiler(Config(cache_dir=tmp / "cache", cache="latent"))
    compiler.restore(SavedProgram("step", parse_func(STEP), {}, (), ()).to_text())
