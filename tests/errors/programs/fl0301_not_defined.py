"""A value that nothing defines."""

from __future__ import annotations

from pathlib import Path

from fuseline.cli.opt import optimised
from fuseline.config import Config
from fuseline.passes.known_sizes import KnownSizes
from fuseline.passes.manager import PassManager

TEXT = """\
func @f(%x: f32[B, 4]) {
  %y = exp %x
  %z = add %y, %w
  return %z
}
"""


def program(tmp: Path) -> None:
    optimised(PassManager([KnownSizes()]), TEXT, "model.fl", Config(dump_dir=tmp))
