"""One cache under many compilations of a real model: at once, killed in the middle, read-only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fuseline.runtime.cache import Cache

ROOT = Path(__file__).parents[2]
PROCESSES = 8
KILLS = 100

COMPILE = """
import json, os, random, signal, sys, time, torch, fuseline
from pathlib import Path
from fuseline.compiler import Compiler
from fuseline.frontend.wrap import program_of
from fuseline.runtime.cache import Cache
from tests.e2e.families import FAMILIES, tokens

torch.set_num_threads(1)
family = next(f for f in FAMILIES if f.model_type == "qwen3")
model, ids = family.build(torch.float32), tokens(2, 7)

def compile_and_compare(root):
    compiled = fuseline.compile(model, dynamic=True, cache_dir=Path(root))
    with torch.no_grad():
        found, expected = (m(ids, use_cache=False).logits for m in (compiled, model))
    torch.testing.assert_close(found, expected)
    assert all(k.status == "native" for k in compiled.report().kernels)
    return program_of(compiled).engine.compiler.tools.cache.stats.built
"""

ONCE = """
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps(compile_and_compare(sys.argv[1])))
"""

KILLED = """
root, times, chance = sys.argv[1], int(sys.argv[2]), random.Random(5)
finished = 0
for number in range(times):
    child = os.fork()
    if child == 0:
        compile_and_compare(root)
        os._exit(0)
    time.sleep(chance.random() * 4)
    os.kill(child, signal.SIGKILL)
    finished += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    damages = Cache.open(Path(root)).verify()
    assert damages == [], damages
    if number % 4 == 3:  # begin again, so that there is something to build
        Cache.open(Path(root)).clear()
compile_and_compare(root)
print(json.dumps(finished))
"""


def start(program: str, *arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A process that runs the program, with no cache but the one it is told of."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith("FUSELINE_")}
    return subprocess.Popen(
        [*prefix, sys.executable, "-W", "ignore", "-c", COMPILE + program, *map(str, arguments)],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Any:
    """What a process printed last."""
    said, problem = process.communicate(timeout=1500)
    assert process.returncode == 0, problem
    return json.loads(said.splitlines()[-1])


def go_together(processes: list[subprocess.Popen[str]]) -> list[Any]:
    """Let all begin once all are ready."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [finish(process) for process in processes]


def files_of(folder: Path) -> dict[str, int]:
    """Every file below a folder, with its size."""
    return {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


def without_privileges() -> tuple[str, ...]:
    """A command in front that makes root obey file modes."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("root ignores file modes, and there is no setpriv to change that")
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_eight_compilers_build_each_thing_once_and_a_moved_copy_serves(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    built = go_together([start(ONCE, root) for _ in range(PROCESSES)])
    cache = Cache.open(root)
    assert cache.verify() == []
    assert sum(built) == len(list(cache.entries()))
    kinds = [entry.kind for entry in cache.entries()]
    assert kinds.count("trace") == 1, "one program of one shape was saved several times"

    moved = tmp_path / "elsewhere" / "copy"
    shutil.copytree(root, moved)
    shutil.rmtree(root)
    for item in (moved, *moved.rglob("*")):
        item.chmod(0o500 if item.is_dir() else 0o400)
    before = files_of(moved)
    try:
        (again,) = go_together([start(ONCE, moved, prefix=without_privileges())])
        assert again == 0
        assert files_of(moved) == before
    finally:
        for item in (moved, *moved.rglob("*")):
            item.chmod(0o700)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_killed_compilers_leave_a_cache_that_works(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    process = start(KILLED, root, KILLS)
    assert finish(process) < KILLS // 2, "most were to be killed in the middle"
    assert Cache.open(root).verify() == []
