"""The program itself: help, exit codes, and what is printed when something goes wrong."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from fuseline.cli import doctor, main
from fuseline.cli.arguments import options
from fuseline.cli.output import Output
from fuseline.cli.program import COMMANDS, parser
from fuseline.config import Config
from fuseline.errors import CACHE_FALLBACK, INVALID_OPTION, UNKNOWN_MODEL, InternalError

Print = pytest.CaptureFixture[str]


def make_doctor(monkeypatch: pytest.MonkeyPatch, act: Callable[[], int]) -> None:
    def run(arguments: object, out: object) -> int:
        del arguments, out
        return act()

    monkeypatch.setattr(doctor, "run", run)


def raising(error: BaseException) -> Callable[[], int]:
    def act() -> int:
        raise error

    return act


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys\n"
        "from fuseline.cli import main\n"
        "try: main([*sys.argv[1:], '--help'])\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'sympy', 'numpy', 'rich'} & set(sys.modules)\n"
        "    assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=True
    )
    assert "usage: fuseline" in done.stdout
    if command:
        assert f"example:\n  fuseline {command[0]}" in done.stdout


def test_a_command_imports_no_other() -> None:
    code = (
        "import sys\n"
        "from fuseline.cli.program import parser\n"
        "parser('run')\n"
        "others = {'fuseline.cli.explain', 'fuseline.cli.export', 'fuseline.cli.cache'}\n"
        "assert not others & set(sys.modules), others & set(sys.modules)\n"
        "parser()\n"
        "assert others <= set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_example_is_understood() -> None:
    """Only parsed: the commands themselves have tests of their own."""
    import importlib
    import shlex

    for name in COMMANDS:
        for line in importlib.import_module(f"fuseline.cli.{name}").EXAMPLE.splitlines():
            words = shlex.split(line.split("|")[-1])
            words = words[words.index("fuseline") + 1 :]
            assert parser().parse_args(words).module.__name__ == f"fuseline.cli.{name}"


@pytest.mark.parametrize("argv", [[], ["frobnicate"], ["cache"], ["generate"], ["run", "x", "-q"]])
def test_wrong_usage_is_2(argv: list[str], capsys: Print) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert "usage: fuseline" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["generate", "x", "--tokens", "0"],
        ["generate", "x", "--temperature", "-1"],
        ["generate", "x", "--top-p", "1.5"],
        ["run", "x", "--batch", "two"],
        ["cache", "prune", "--older-than", "soon"],
        ["cache", "prune", "--max-size", "-5"],
    ],
)
def test_arguments_that_make_no_sense_are_2(argv: list[str], capsys: Print) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert f"{argv[-1]!r} is not" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("verify", "FL0103 wrong argument --set: found 'verify', expected NAME=VALUE"),
        ("fast=1", "FL0102 unknown option fast in --set fast=...: expected one of target, "),
        ("graphs=fast", "FL0101 invalid value for the option graphs in --set graphs=...: found "),
        ("fuse-limit=-1", "FL0101 invalid value for the option fuse_limit in --set fuse-limit=..."),
    ],
)
def test_options_on_the_command_line_are_checked(text: str, said: str, capsys: Print) -> None:
    assert main(["doctor", "--set", text]) == 2
    assert said in capsys.readouterr().err


def test_a_wrong_variable_is_2(monkeypatch: pytest.MonkeyPatch, capsys: Print) -> None:
    monkeypatch.setenv("FUSELINE_THREADS", "none")
    assert main(["cache", "path"]) == 2
    said = capsys.readouterr().err
    assert "FL0101 invalid value for the option threads in the variable FUSELINE_THREADS:" in said


def test_an_option_on_the_command_line_means_what_it_means_in_python() -> None:
    """It is read once before `Config` reads it, and must come through that unchanged."""
    texts = {"dynamic": "auto", "disable": "cse, dce", "verify": "on", "cache-dir": "~/somewhere"}
    given = [word for name, text in texts.items() for word in ("--set", f"{name}={text}")]
    config = Config.of(options(parser().parse_args(["doctor", *given])))
    assert config == Config.of({name.replace("-", "_"): text for name, text in texts.items()})


def test_a_diagnostic_is_printed_and_1(monkeypatch: pytest.MonkeyPatch, capsys: Print) -> None:
    make_doctor(monkeypatch, raising(UNKNOWN_MODEL.error("gpt-9")))
    assert main(["doctor"]) == 1
    printed = capsys.readouterr()
    assert printed.err == "FL0801 no such model gpt-9.\n"
    assert printed.out == ""


def test_a_program_gets_the_diagnostic_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: Print
) -> None:
    make_doctor(monkeypatch, raising(INVALID_OPTION.error("x", found="1")))
    assert main(["doctor", "--json"]) == 2
    error: Any = json.loads(capsys.readouterr().out)["error"]
    assert error == {"code": "FL0101", "title": "invalid value for the option x", "found": "1"}


def test_a_bug_is_one_line_and_1(monkeypatch: pytest.MonkeyPatch, capsys: Print) -> None:
    make_doctor(monkeypatch, raising(ZeroDivisionError("oh")))
    assert main(["doctor"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("internal error: ZeroDivisionError: oh\n")
    assert "Traceback" not in error
    assert "FUSELINE_LOG=debug" in error


def test_a_bug_shows_its_traceback_to_those_who_ask(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_doctor(monkeypatch, raising(ZeroDivisionError("oh")))
    with caplog.at_level(logging.DEBUG, "fuseline"):
        main(["doctor"])
    assert "Traceback" in caplog.text


def test_an_internal_error_names_stage_and_replay(
    monkeypatch: pytest.MonkeyPatch, capsys: Print
) -> None:
    error = InternalError("bad use", stage="cse", command="fuseline opt -p cse a.fl")
    make_doctor(monkeypatch, raising(error))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err.startswith(
        "internal error in cse: bad use\n  replay: fuseline opt -p cse a.fl\n"
    )


def test_an_interruption_is_130(monkeypatch: pytest.MonkeyPatch, capsys: Print) -> None:
    make_doctor(monkeypatch, raising(KeyboardInterrupt()))
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_warnings_of_ours_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Print) -> None:
    def act() -> int:
        CACHE_FALLBACK.warn(where="/cache", found="disk full", hint="free some space")
        return 0

    make_doctor(monkeypatch, act)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().err.startswith("warning: FL0604 ")


def test_other_warnings_keep_their_form() -> None:
    """In a process of its own: pytest has a form of its own for warnings."""
    code = (
        "import warnings\n"
        "from fuseline.cli import doctor, main\n"
        "doctor.run = lambda *_: warnings.warn('theirs') or 0\n"
        "main(['doctor'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "UserWarning: theirs" in done.stderr


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_reader_that_leaves_is_no_failure(size: int) -> None:
    """Whether it leaves before the answer is written or amid it."""
    code = (
        "import sys, time; from fuseline.cli import doctor, main;"
        f"doctor.run = lambda *_: time.sleep(0.5) or print('x' * {size}) or 0;"
        "sys.exit(main(['doctor']))"
    )
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "{code}" | true; echo ${{PIPESTATUS[0]}}'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stderr, done.stdout.strip()) == ("", "0")


def test_json_has_no_infinities(capsys: Print) -> None:
    """Parsers refuse them; an error is infinite where a NaN came out."""
    Output(json=True).result({"error": float("inf"), "times": [1.5, float("nan")]}, "")
    assert json.loads(capsys.readouterr().out) == {"error": "inf", "times": [1.5, "nan"]}
