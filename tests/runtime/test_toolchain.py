"""Which compiler is found, and what a key says of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fuseline.errors import BuildError
from fuseline.runtime import toolchain as module
from fuseline.runtime.cache import Cache
from fuseline.runtime.toolchain import CANDIDATES, Toolchain, find_toolchain, python_include

GCC_DRIVER = """Using built-in specs.
 /usr/lib/gcc/cc1plus -quiet -imultiarch x86_64 -dumpdir a- "-march=znver3" -mavx2 -mno-avx512f \
--param "l1-cache-size=32" "-mtune=znver3" -o x.s
 as -v --64 -mfoo -o x.o x.s
"""
CLANG_DRIVER = """clang version 18.1.8
 "/usr/bin/clang-18" "-cc1" "-triple" "x86_64-pc-linux-gnu" "-target-cpu" "skylake" \
"-target-feature" "+avx2" "-target-feature" "-sse4a" "-x" "c++" "/dev/null"
"""


def test_flags_name_features_and_never_the_word_native(toolchain: Toolchain) -> None:
    assert toolchain.cpu
    assert not any("native" in flag for flag in toolchain.cpu)
    assert not any(flag.startswith("--param") for flag in toolchain.cpu)


def test_factors_hold_no_path_and_no_name_of_a_command(toolchain: Toolchain) -> None:
    text = str(toolchain.factors)
    assert "/" not in text
    assert toolchain.identity.split()[0] not in CANDIDATES


def test_features_agree_with_the_processor(toolchain: Toolchain) -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    for feature in ("avx2", "fma", "f16c", "avx512f"):
        assert (feature in toolchain.features) == (feature in flags)


def test_the_probe_is_made_once_for_all_processes(toolchain: Toolchain, built: Cache) -> None:
    again = Cache.open(built.root)
    found = find_toolchain(again)
    assert (again.stats.hits, again.stats.built) == (1, 0)
    assert found == toolchain


def test_every_name_of_one_compiler_gives_one_identity(built: Cache) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    shims = {find_toolchain(built, name).identity for name in ("g++", shutil.which("g++") or "")}
    assert len(shims) == 1


def test_cxx_may_have_arguments(built: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(name for name in CANDIDATES if shutil.which(name))
    monkeypatch.setenv("CXX", f"{name} -Wall")
    assert find_toolchain(built).command[1:] == ("-Wall",)


def test_an_argument_wins_over_the_variable(built: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    name = next(name for name in CANDIDATES if shutil.which(name))
    assert find_toolchain(built, name).command[0] == shutil.which(name)
    with pytest.raises(BuildError, match="FL0702.*no-such-compiler"):
        find_toolchain(built)


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BuildError, match=r"FL0701.*install one"):
        find_toolchain(Cache.open(tmp_path / "cache"))


def test_an_entry_of_others_may_say_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    (tmp_path / "cache").mkdir(mode=0o700)
    cache.get_or_build("toolchain", {"nothing": "of use"}, lambda folder: None)
    assert module.toolchains_of_others(cache) == []


def test_options_of_the_gcc_driver() -> None:
    read = module._gcc_options  # pyright: ignore[reportPrivateUsage]
    assert read(GCC_DRIVER) == ["-march=znver3", "-mavx2", "-mno-avx512f", "-mtune=znver3"]
    assert read("nothing known") == []


def test_options_of_the_clang_driver() -> None:
    read = module._clang_options  # pyright: ignore[reportPrivateUsage]
    feature = ["-Xclang", "-target-feature", "-Xclang"]
    assert read(CLANG_DRIVER) == ["-march=skylake", *feature, "+avx2", *feature, "-sse4a"]
    assert read("nothing known") == []


def test_headers_of_python_are_found_only_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    found = python_include()
    assert found is None or (found / "Python.h").is_file()
    monkeypatch.setattr(module.sys, "base_prefix", "/nowhere")
    assert python_include() == found or found is None
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: "/nowhere")  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    assert python_include() is None


def test_options_in_the_command_are_part_of_the_key(toolchain: Toolchain, built: Cache) -> None:
    """They change what is built; a wrapper in front of the compiler does not."""
    plain = " ".join(toolchain.command)
    other = find_toolchain(built, f"{plain} -Ofast -fno-inline")
    assert other.identity == f"{toolchain.identity} -Ofast -fno-inline"
    wrapped = find_toolchain(built, f"env {plain}")
    assert wrapped.identity == toolchain.identity
