"""Kernels become objects, objects a piece; each is built once, and says what it was built from."""

from __future__ import annotations

import ctypes
import getpass
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import fuseline
from fuseline.errors import BuildError, FuselineWarning
from fuseline.runtime.build import (
    CompileError,
    KernelSource,
    Library,
    Progress,
    build_piece,
    compile_kernels,
    load_library,
)
from fuseline.runtime.cache import Cache
from fuseline.runtime.toolchain import Toolchain, find_toolchain


def times(factor: int, name: str | None = None) -> KernelSource:
    name = name or f"times_{factor}"
    return KernelSource(name, f'extern "C" long {name}(long x) {{ return x * {factor}; }}\n')


def call(library: Library, symbol: str, x: int) -> int:
    prototype = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long)
    return prototype(library.address(symbol))(x)


def test_a_piece_holds_all_of_its_kernels(tmp_path: Path, toolchain: Toolchain) -> None:
    cache = Cache.open(tmp_path)
    library = build_piece(cache, toolchain, [times(2), times(3), times(2)])
    assert [call(library, f"times_{n}", 7) for n in (2, 3)] == [14, 21]
    assert library.path.name == "piece.so"
    with pytest.raises(BuildError, match="FL0705.*no symbol times_4"):
        library.address("times_4")


def test_a_second_process_builds_nothing(tmp_path: Path, toolchain: Toolchain) -> None:
    build_piece(Cache.open(tmp_path), toolchain, [times(2), times(3)])
    cache = Cache.open(tmp_path)
    library = build_piece(cache, toolchain, [times(3), times(2)])  # the order does not matter
    assert cache.stats.built == 0
    assert call(library, "times_3", 5) == 15


def test_a_kernel_is_built_once_for_all_pieces(tmp_path: Path, toolchain: Toolchain) -> None:
    cache, said = Cache.open(tmp_path), list[Progress]()
    build_piece(cache, toolchain, [times(2), times(3)], said.append)
    build_piece(cache, toolchain, [times(3), times(5)], said.append)
    built = [progress.name for progress in said if progress.built]
    assert sorted(built) == ["times_2", "times_3", "times_5"]
    assert [(progress.done, progress.total) for progress in said] == [(1, 2), (2, 2)] * 2
    kinds = [entry.kind for entry in cache.entries()]
    assert (kinds.count("kernel"), kinds.count("piece")) == (3, 2)


@pytest.mark.parametrize("change", ["text", "flags", "identity", "headers", "compiler"])
def test_what_changes_the_code_changes_the_key(toolchain: Toolchain, change: str) -> None:
    source = times(2)
    changed = {
        "text": KernelSource(source.symbol, source.text + " "),
        "flags": KernelSource(source.symbol, source.text, flags=("-ffast-math",)),
        "identity": KernelSource(source.symbol, source.text, identity="cpython-311"),
        "headers": KernelSource(source.symbol, source.text, headers={"a.h": ""}),
        "compiler": source,
    }[change]
    other = Toolchain(("g++",), "13.1", toolchain.cpu, toolchain.features)
    tool = other if change == "compiler" else toolchain
    assert changed.factors(tool) != source.factors(toolchain)


def test_headers_are_found_beside_the_source(tmp_path: Path, toolchain: Toolchain) -> None:
    text = '#include "factor.h"\nextern "C" long f(long x) { return x * FACTOR; }\n'
    source = KernelSource("f", text, headers={"factor.h": "#define FACTOR 11\n"})
    assert call(build_piece(Cache.open(tmp_path), toolchain, [source]), "f", 3) == 33


def test_a_kernel_that_does_not_compile_is_named_and_the_others_are_built(
    tmp_path: Path, toolchain: Toolchain
) -> None:
    cache = Cache.open(tmp_path)
    broken = KernelSource("broken", 'extern "C" void broken() { return 1 +; }\n')
    good, bad = compile_kernels(cache, toolchain, [times(2), broken])
    assert not isinstance(good, CompileError)
    assert isinstance(bad, CompileError)
    assert bad.symbol == "broken"
    assert bad.source == broken.text
    assert "kernel.cpp:1" in bad.output
    with pytest.raises(CompileError, match="FL0703 cannot compile broken: found kernel.cpp:1"):
        build_piece(cache, toolchain, [times(2), broken])
    assert [entry.name for entry in cache.entries()] == ["times_2"]


def test_the_same_source_gives_the_same_bytes_anywhere(
    tmp_path: Path, toolchain: Toolchain
) -> None:
    """Of which none name this machine: entries can be shared."""
    digests: list[list[str]] = []
    for name in ("here", "some/where/else"):
        cache = Cache.open(tmp_path / name)
        build_piece(cache, toolchain, [times(2), times(3)])
        entries = sorted(cache.entries(), key=lambda entry: entry.key)
        digests.append([record.digest for e in entries for record in e.files.values()])
        for path in (path for entry in entries for path in entry.path.iterdir()):
            content = path.read_bytes()
            for word in (str(tmp_path), str(Path.home()), platform.node(), getpass.getuser() + "@"):
                assert word.encode() not in content
    assert digests[0] == digests[1]


DENORMALS = """
import sys
from pathlib import Path
import torch
from fuseline.runtime.build import KernelSource, build_piece
from fuseline.runtime.cache import Cache
from fuseline.runtime.toolchain import find_toolchain

cache = Cache.open(Path(sys.argv[1]))
text = 'extern "C" float f(float x) { return x * 0.5f; }'
source = KernelSource("f", text, flags=("-ffast-math",))
build_piece(cache, find_toolchain(cache), [source], flags=("-fopenmp",)).address("f")
tiny = torch.tensor([1e-40])
assert (tiny * 1.0).item() != 0.0
assert (torch.tensor([2e-38]) * 0.25).item() != 0.0
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(Path(fuseline.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, capture_output=True, text=True
    )


def test_loading_a_piece_leaves_denormals_alone(tmp_path: Path, toolchain: Toolchain) -> None:
    """Even one whose kernels were compiled with fast-math: they are linked without."""
    del toolchain
    done = run_python(DENORMALS, str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_objects_pruned_before_the_link_are_built_again(
    tmp_path: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fuseline.runtime import build as module

    cache, pruned = Cache.open(tmp_path), list[int]()
    real = module.compile_kernels

    def compile_then_lose(*arguments: object) -> object:
        result = real(*arguments)  # pyright: ignore[reportArgumentType]
        if not pruned:
            pruned.append(Cache.open(tmp_path).prune(max_bytes=0).entries)
        return result

    monkeypatch.setattr(module, "compile_kernels", compile_then_lose)
    library = build_piece(cache, toolchain, [times(2), times(3)])
    assert pruned == [2]
    assert call(library, "times_2", 4) == 8


def test_a_compiler_without_disk_space_makes_the_cache_go_elsewhere(
    tmp_path: Path, toolchain: Toolchain
) -> None:
    script = tmp_path / "cxx"
    script.write_text(
        f"#!/bin/sh\ncase $PWD in {tmp_path}/cache/*)\n"
        "  echo 'fatal error: error writing to kernel.o: No space left on device' >&2; exit 1\n"
        f'esac\nexec {toolchain.command[0]} "$@"\n'
    )
    script.chmod(0o755)
    tool = Toolchain((str(script),), "full disk", toolchain.cpu, toolchain.features)
    with pytest.warns(FuselineWarning, match="FL0604.*No space left"):
        library = build_piece(Cache.open(tmp_path / "cache"), tool, [times(2)])
    assert not library.path.is_relative_to(tmp_path)
    assert call(library, "times_2", 4) == 8


BUILDER = """
import sys
from pathlib import Path
from fuseline.runtime.build import KernelSource, build_piece
from fuseline.runtime.cache import Cache
from fuseline.runtime.toolchain import find_toolchain

cache = Cache.open(Path(sys.argv[1]))
tool = find_toolchain(cache, sys.argv[2])
names = [f"kernel_{i}" for i in range(8)]
text = 'extern "C" long {0}(long x) {{ return x + 1; }}'
sources = [KernelSource(name, text.format(name)) for name in names]
print("ready", flush=True)
sys.stdin.readline()
for first in range(4):
    assert build_piece(cache, tool, sources[first:first + 5]).address(names[first])
"""


def test_eight_processes_compile_each_kernel_once(tmp_path: Path, toolchain: Toolchain) -> None:
    """By the count of the compiler itself; and each piece is linked once."""
    log, script = tmp_path / "log", tmp_path / "cxx"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *kernel.cpp*) echo compile >> {log} ;; *piece.so*) '
        f'echo link >> {log} ;; esac\nexec {toolchain.command[0]} "$@"\n'
    )
    script.chmod(0o755)
    find_toolchain(Cache.open(tmp_path / "cache"), str(script))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BUILDER, str(tmp_path / "cache"), str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(fuseline.__file__).parents[1])},
        )
        for _ in range(8)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, said = process.communicate(timeout=100)
        assert process.returncode == 0, said
    did = log.read_text().split()
    assert (did.count("compile"), did.count("link")) == (8, 4)
    assert Cache.open(tmp_path / "cache").verify() == []


def test_a_compiler_that_hangs_is_ended(
    tmp_path: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fuseline.runtime import build as module

    script = tmp_path / "cxx"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(module, "COMPILE_SECONDS", 0.2)
    tool = Toolchain((str(script),), "slow", toolchain.cpu, toolchain.features)
    with pytest.raises(CompileError, match="FL0703.*no end after"):
        build_piece(Cache.open(tmp_path / "cache"), tool, [times(2)])


def test_a_compiler_ended_by_a_signal_says_nothing_of_the_source(
    tmp_path: Path, toolchain: Toolchain
) -> None:
    """As the keyboard's interrupt does: the kernel is not one that cannot be compiled."""
    script = tmp_path / "cxx"
    script.write_text("#!/bin/sh\nkill -TERM $$\n")
    script.chmod(0o755)
    tool = Toolchain((str(script),), "ended", toolchain.cpu, toolchain.features)
    with pytest.raises(BuildError, match="FL0702 .* ended by signal 15") as caught:
        compile_kernels(Cache.open(tmp_path / "cache"), tool, [times(2)])
    assert not isinstance(caught.value, CompileError)


def test_without_a_compiler_what_is_in_the_cache_still_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toolchain: Toolchain
) -> None:
    """As in an image that brings a cache, and no compiler."""
    del toolchain
    cache = Cache.open(tmp_path / "cache")
    build_piece(cache, find_toolchain(cache), [times(2), times(3)])
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    later = Cache.open(tmp_path / "cache")
    absent = find_toolchain(later)
    assert absent.command == ()
    assert call(build_piece(later, absent, [times(2), times(3)]), "times_3", 5) == 15
    assert later.stats.built == 0
    good, bad = compile_kernels(later, absent, [times(2), times(5)])
    assert not isinstance(good, CompileError)
    assert isinstance(bad, CompileError)
    assert bad.diagnostic.code == "FL0701"
    with pytest.raises(BuildError, match="FL0701"):
        find_toolchain(Cache.open(tmp_path / "empty"))


def test_a_compiler_that_vanished_is_a_diagnostic(tmp_path: Path, toolchain: Toolchain) -> None:
    gone = Toolchain(("/no/such/g++",), "gone", toolchain.cpu, toolchain.features)
    with pytest.raises(BuildError, match="FL0702"):
        build_piece(Cache.open(tmp_path), gone, [times(2)])


def test_a_file_that_is_no_library_is_a_diagnostic(tmp_path: Path) -> None:
    (tmp_path / "piece.so").write_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(BuildError, match="FL0705"):
        load_library(tmp_path / "piece.so")
