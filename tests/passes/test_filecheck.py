"""The files in `filecheck`: `fuseline opt` on each, and its output by the lines that say CHECK.

A file says how it is run, in lines such as

    // RUN: fuseline opt -p cse %s | filecheck %s

where ``%s`` is the file itself, ``2>&1`` takes what goes to standard error too, and ``not`` before
the command means that it must fail. Both parts run in this process: importing torch takes seconds.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from filecheck.main import main as filecheck

from fuseline.cli import main as fuseline

FILES = sorted((Path(__file__).parent / "filecheck").glob("*.fl"))
RUN = re.compile(r"^// RUN: (not )?fuseline (.*?)( 2>&1)? \| filecheck (.*)$", re.MULTILINE)

Capture = pytest.CaptureFixture[str]


def check(file: Path, tmp_path: Path, capsys: Capture) -> None:
    """Do what the RUN lines of a file say."""
    text = file.read_text()
    runs = RUN.findall(text)
    assert runs, f"{file.name} has no RUN line"
    assert len(runs) == text.count("RUN:"), f"{file.name} has a RUN line that is none"
    for fails, words, both, checks in runs:
        code = fuseline(_words(words, file))
        printed = capsys.readouterr()
        assert bool(code) == bool(fails), (
            f"{words}: {code}, must fail: {bool(fails)}\n{printed.err}"
        )
        output = tmp_path / "output"
        output.write_text(printed.err + printed.out if both else printed.out)
        with pytest.raises(SystemExit) as ended:
            filecheck(["filecheck", *_words(checks, file), "--input-file", str(output)])
        said = capsys.readouterr()
        assert not ended.value.code, f"{said.out}{said.err}\n{output.read_text()}"


def _words(text: str, file: Path) -> list[str]:
    return [str(file) if word == "%s" else word for word in shlex.split(text)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_file(file: Path, tmp_path: Path, capsys: Capture) -> None:
    check(file, tmp_path, capsys)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("CHECK-NEXT:    write", "CHECK-NEXT:    writes", "Couldn't match"),
        ("// RUN: fuseline", "// RUN: not fuseline", "must fail"),
        ("// RUN: fuseline", "// RUN: cat | fuseline", "RUN line"),
        ("-p cse", "-p no-such-pass", "FL0104"),
    ],
)
def test_a_file_that_is_wrong_fails(
    old: str, new: str, why: str, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "f.fl"
    file.write_text(FILES[0].read_text().replace(old, new))
    with pytest.raises(AssertionError, match=why):
        check(file, tmp_path, capsys)
