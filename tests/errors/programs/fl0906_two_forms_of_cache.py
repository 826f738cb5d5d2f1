"""One program keeps the latents of a cache, and another one writes keys to it."""

import warnings
from pathlib import Path

import torch

from fuseline.compiler import Compiler
from fuseline.config import Config
from fuseline.ir.text import parse_func
from fuseline.saved import SavedProgram

LATENT = """func @step(%cache: buffer<f32[1, 2, 4, 3]> = buffer "cache", %x: f32[1, 1, 4, 2],
    %s: buffer<f32[1, 1, 4, 2]> = state "cache") {
  write %s, %x
  return
}"""
KEYS = """func @prefill(%cache: buffer<f32[1, 2, 4, 3]> = buffer "cache", %x: f32[1, 2, 4, 3]) {
  write %cache, %x
  return
}"""


def program(tmp: Path) -> None:
    compiler = Compiler(Config(cache_dir=tmp / "cache", cache="latent"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the second has no latents, which FL0907 says
        programs = [
            compiler.restore(SavedProgram("f", parse_func(text), {}, (), ()).to_text())
            for text in (LATENT, KEYS)
        ]
    cache = torch.zeros(1, 2, 4, 3)
    programs[0]([cache, torch.ones(1, 1, 4, 2)])
    programs[1]([cache, torch.ones(1, 2, 4, 3)])
