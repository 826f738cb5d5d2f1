"""Triton in several threads at once, and under settings of the process. No GPU is needed."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from fuseline import errors
from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu import triton_build
from fuseline.runtime.gpu.triton_build import TritonError, TritonSource, build_triton, problem
from fuseline.runtime.gpu.triton_process import compiling, module, settings

pytest.importorskip("triton", reason="Triton is not installed")

TEXT = """
import triton
import triton.language as tl


@triton.jit
def {name}(x, y, n):
    at = tl.program_id(0) * 256 + tl.arange(0, 256)
    there = at < n
    tl.store(y + at, tl.load(x + at, there) * {factor}.0, there)
"""
BROKEN = "print('a word of its own')\n" + TEXT.replace("tl.load(x", "tl.lead(x")


def source(number: int, text: str = TEXT) -> TritonSource:
    name = f"times_{number}"
    kinds = {"x": "*fp32", "y": "*fp32", "n": "i32"}
    return TritonSource(name, text.format(name=name, factor=number), kinds, {"x": 16, "y": 16})


@contextlib.contextmanager
def knobs(group: str, **values: object) -> Generator[None]:
    """Settings of Triton, put back behind."""
    found: Any = getattr(module("triton.knobs"), group)
    with found.scope():
        for name, value in values.items():
            setattr(found, name, value)
        yield


def test_threads_give_the_same_bytes_as_one(tmp_path: Path) -> None:
    sources = [source(n) for n in range(1, 5)]
    caches = [Cache(tmp_path / name) for name in ("one", "many")]
    alone = [build_triton(caches[0], each, 90) for each in sources]
    with ThreadPoolExecutor(4) as pool:
        tasks = [pool.submit(build_triton, caches[1], each, 90) for each in sources]
        together = [task.result() for task in tasks]
    for one, other in zip(alone, together, strict=True):
        assert one.key == other.key
        assert one.files == other.files, "they hold the same bytes"


SUM = """
import triton
import triton.language as tl


@triton.jit
def {name}(x, y, n):
    at = tl.arange(0, 256)
    tl.store(y, tl.sum(tl.load(x + at, at < n, 0.0), 0) * {factor}.0)
"""


def test_no_binary_names_the_folder_of_triton(tmp_path: Path) -> None:
    """What is inlined from Triton's own files is said to be from there, and where that is, not."""
    entry = build_triton(Cache(tmp_path / "cache"), source(3, SUM), 90)
    home = str(Path(module("triton").__file__).parent.parent)
    code, text = (entry.file(n).read_bytes() for n in ("kernel.cubin", "kernel.ptx"))
    assert home.encode() not in code + text
    assert b"triton/language" in code
    assert b"triton/language/standard.py" in text


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """Neither folders, nor settings, nor a stand-in for standard output."""
    out, found = sys.stdout, module("triton.knobs")
    before = found.cache.dir, found.compilation.always_compile
    with mock.patch.object(tempfile, "tempdir", str(tmp_path)):
        build_triton(Cache(tmp_path / "cache"), source(3), 80)
    assert (found.cache.dir, found.compilation.always_compile) == before
    assert sys.stdout is out
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_what_other_threads_print_is_not_swallowed(capsys: pytest.CaptureFixture[str]) -> None:
    with compiling() as said:
        print("the compiler's words")
        other = threading.Thread(target=print, args=("a user's words",))
        other.start()
        other.join()
        assert said.getvalue() == "the compiler's words\n"
    assert capsys.readouterr().out == "a user's words\n"


def test_a_refused_kernel_keeps_what_was_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TritonError) as caught:
        build_triton(Cache(tmp_path), source(2, BROKEN), 90)
    assert "a word of its own" in caught.value.output
    assert "lead" in str(caught.value)
    assert capsys.readouterr().out == ""


def test_threads_that_parse_at_the_same_time_refuse_no_kernel(tmp_path: Path) -> None:
    """The first try ends as CPython's parser does then."""
    clash = SystemError("AST constructor recursion depth mismatch (before=72, after=121)")
    compile_it = triton_build._made  # pyright: ignore[reportPrivateUsage]
    tries = mock.Mock(side_effect=[clash, mock.DEFAULT], wraps=compile_it)
    with mock.patch.object(triton_build, "_made", tries):
        entry = build_triton(Cache(tmp_path), source(6), 90)
    assert entry.file("kernel.cubin").exists()
    assert tries.call_count == 2


def test_a_compiler_that_was_interrupted_says_nothing_about_the_kernel(tmp_path: Path) -> None:
    """As by Ctrl-C, which goes to the assembler too; nothing half-written is left."""
    cache = Cache(tmp_path)
    killed = RuntimeError("Internal Triton PTX codegen error\n`ptxas` failed with error code -2")
    with (
        mock.patch.object(triton_build, "_made", side_effect=killed),
        pytest.raises(errors.BuildError, match="FL0702.*signal 2") as caught,
    ):
        build_triton(cache, source(5), 90)
    assert not isinstance(caught.value, TritonError)
    assert list(cache.entries()) == []
    assert not [*(tmp_path).glob("**/staging/*")]
    assert build_triton(cache, source(5), 90).file("kernel.cubin").exists()


def test_want_of_the_machine_says_nothing_about_the_kernel(tmp_path: Path) -> None:
    """Another configuration would silently be taken."""
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        mock.patch.object(triton_build, "_made", side_effect=full),
        pytest.raises(errors.BuildError, match="FL0702.*No space.*try again") as caught,
    ):
        build_triton(Cache(tmp_path), source(5), 90)
    assert not isinstance(caught.value, TritonError)


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("nvidia", "disable_ptxas_opt", True),
        ("nvidia", "ptxas_options", "--opt-level 1"),
        ("language", "fp32_default", "tf32"),
        ("language", "default_fp_fusion", False),
        ("compilation", "disable_line_info", True),
    ],
)
def test_what_is_set_for_triton_is_part_of_the_key(group: str, name: str, value: object) -> None:
    plain = source(1).factors(90)
    with knobs(group, **{name: value}):
        assert source(1).factors(90) != plain
    assert source(1).factors(90) == plain


def test_a_path_in_a_setting_does_not_tie_the_key_to_a_machine(tmp_path: Path) -> None:
    found: list[dict[str, str]] = []
    for folder in ("here", "there"):
        file = tmp_path / folder / "libdevice.bc"
        file.parent.mkdir()
        file.write_bytes(b"the same")
        with knobs("nvidia", libdevice_path=str(file)):
            found.append(settings())
    assert found[0]["nvidia.libdevice_path"] == found[1]["nvidia.libdevice_path"]
    assert "/" not in found[0]["nvidia.libdevice_path"]


def test_variables_are_seen(tmp_path: Path) -> None:
    """Those that only Triton's C++ parts read, too."""
    program = "from fuseline.runtime.gpu.triton_process import settings; print(settings())"
    variables = {"DISABLE_LLVM_OPT": "1", "PTXAS_OPTIONS": "-v", "TRITON_DEFAULT_FP_FUSION": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    for word in ("DISABLE_LLVM_OPT", "nvidia.ptxas_options", "language.default_fp_fusion"):
        assert word in done.stdout


def test_an_interpreting_process_builds_nothing() -> None:
    assert problem() is None
    with knobs("runtime", interpret=True):
        assert problem() is errors.TRITON_INTERPRETS
    with mock.patch.object(module("triton.language"), "sum", print):
        assert problem() is errors.TRITON_INTERPRETS, "it was interpreting at the import"


def test_ears_answer_as_standard_output_does() -> None:
    with contextlib.redirect_stdout(io.StringIO()), compiling():
        assert sys.stdout.writable()
        assert not sys.stdout.isatty()
