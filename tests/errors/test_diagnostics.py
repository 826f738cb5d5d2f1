"""Every diagnostic is what its golden file says, and every code has a program that shows it."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from fuseline.compiler import Compiler
from fuseline.config import Config
from fuseline.errors import CATALOGUE, Code, Diagnostic, FuselineError, FuselineWarning, UsageError
from fuseline.ir.text import parse_func
from fuseline.saved import SavedProgram

PROGRAMS = sorted((Path(__file__).parent / "programs").glob("fl*.py"))


def said_by(program: Callable[[Path], Diagnostic | None], tmp: Path) -> list[Diagnostic]:
    """The diagnostics of one program: raised, warned of, or returned."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            answer = program(tmp)
        except FuselineError as error:
            answer = error.diagnostic
    given = [w.message.args[0] for w in caught if isinstance(w.message, FuselineWarning)]
    return given + ([answer] if answer is not None else [])


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_diagnostic_matches_its_golden(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden: Callable[[Path, str], None]
) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)  # Dynamo looks for it there
    spec.loader.exec_module(module)
    said = said_by(module.program, tmp_path)
    assert [d.code.lower() for d in said] == [path.stem.split("_")[0]]
    text = "".join(f"{diagnostic}\n" for diagnostic in said)
    golden(path.with_suffix(".txt"), text.replace(str(tmp_path), "$TMP"))


def test_every_code_has_a_program() -> None:
    shown = {path.stem.split("_")[0].upper() for path in PROGRAMS}
    assert sorted(CATALOGUE) == sorted(shown)


def test_every_golden_has_a_program() -> None:
    texts = {path.stem for path in (Path(__file__).parent / "programs").glob("*.txt")}
    assert texts == {path.stem for path in PROGRAMS}


def test_codes_are_well_formed() -> None:
    for name, code in CATALOGUE.items():
        assert name == code.code
        assert re.fullmatch(r"FL(0[1-9]|1[01])\d\d", name)
        assert code.title == code.title.strip().rstrip(".")
        assert code.meaning.endswith(".")
        assert issubclass(code.kind, FuselineError)


def test_a_code_cannot_be_declared_twice() -> None:
    with pytest.raises(ValueError, match="FL0101 is declared twice"):
        Code("FL0101", "again", "Again.", UsageError)


def test_a_warning_is_shown_at_the_line_of_the_user() -> None:
    compiler = Compiler(Config(cache="latent"))
    text = 'func @f(%c: buffer<f32[1, 2, 4, 3]> = buffer "c", %x: f32[1, 2, 4, 3]) {'
    body = "%y = read %c\n  write %c, %x\n  return %y\n}"
    func = parse_func(f"{text}\n  {body}")
    with pytest.warns(FuselineWarning, match="FL0907") as caught:
        compiler.restore(SavedProgram("f", func, {}, (), ()).to_text())
    assert {w.filename for w in caught} == {__file__}


def test_text_form_of_a_diagnostic() -> None:
    diagnostic = Diagnostic(
        code="FL0203",
        title="unsupported op aten.sort.stable",
        where="layers.3.router (moe.py:41)",
        hint="list the module in Config(eager=...) to run it outside the graph.",
    )
    assert str(diagnostic) == (
        "FL0203 unsupported op aten.sort.stable in layers.3.router (moe.py:41). "
        "Hint: list the module in Config(eager=...) to run it outside the graph."
    )
