"""Another process has the file: here it is another object, as locks are of what was opened."""

from pathlib import Path

from fuseline.debug.page.file import OwnFile


def program(tmp: Path) -> None:
    first, second = OwnFile(tmp / "report.html"), OwnFile(tmp / "report.html")
    first.write("<!doctype html>")
    second.write("<!doctype html>")
