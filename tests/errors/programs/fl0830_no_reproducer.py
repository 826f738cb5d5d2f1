"""A file of IR in which an op is misspelt."""

from pathlib import Path

from fuseline.debug.case import Case

TEXT = """\
// fuseline reproducer 1
// pipeline: cse
func @f(%x: f32[4]) {
  %y = negg %x
  return %y
}
"""


def program(tmp: Path) -> None:
    path = tmp / "wrong.fl"
    path.write_text(TEXT)
    Case.read(path)
