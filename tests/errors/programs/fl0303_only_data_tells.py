"""The indices of what is not zero: how many there are, only the data tells."""

from __future__ import annotations

from pathlib import Path

from fuseline.cli.opt import optimised
from fuseline.config import Config
from fuseline.passes.known_sizes import KnownSizes
from fuseline.passes.manager import PassManager

TEXT = """\
func @f(%x: i64[4]) where u in 0.. {
  %y = aten.call [%x] {target = "aten.nonzero.default", args = ($0,), types = (i64[u, 1],)}
  return %y
}
"""


def program(tmp: Path) -> None:
    optimised(PassManager([KnownSizes()]), TEXT, "model.fl", Config(dump_dir=tmp))
