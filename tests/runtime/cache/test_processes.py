"""Many processes at one cache: each entry is built once, and a killed builder does no harm."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import fuseline
from fuseline.runtime.cache import Cache, key_of
from fuseline.runtime.cache.layer import Layer
from fuseline.runtime.cache.lock import directory_is_held, hold_directory, holding

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(fuseline.__file__).parents[1])}
ENTRIES = 12

WORKER = """
import os, random, sys, time
from pathlib import Path
from fuseline.runtime.cache import Cache

root, log, seed, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
chance = random.Random(seed)

def builder(i):
    def build(folder):
        line = f"{i}\\n".encode()
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line)
        os.close(descriptor)
        for part in range(4):
            with (folder / f"part{part}").open("wb") as file:
                for _ in range(8):
                    file.write(bytes([i]) * 4096)
                    time.sleep(chance.random() * 0.001)
    return build

print("ready", flush=True)
sys.stdin.readline()
order = list(range(count))
chance.shuffle(order)
cache = Cache.open(root)
for i in order:
    entry = cache.get_or_build("kernel", {"number": i}, builder(i))
    for part in range(4):
        assert entry.file(f"part{part}").read_bytes() == bytes([i]) * 4096 * 8
"""


def start(root: Path, log: Path, seed: int) -> subprocess.Popen[str]:
    """A process that builds the entries in an order of its own, once it is told to go."""
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(root), str(log), str(seed), str(ENTRIES)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def go(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def test_eight_processes_build_each_entry_once(tmp_path: Path) -> None:
    root, log = tmp_path / "cache", tmp_path / "log"
    processes = [start(root, log, seed) for seed in range(8)]
    go(processes)
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert sorted(map(int, log.read_text().split())) == list(range(ENTRIES))
    cache = Cache.open(root)
    assert cache.verify() == []
    assert len(list(cache.entries())) == ENTRIES
    assert not list((root / "v1" / "staging").iterdir())
    assert not list((root / "v1" / "locks").iterdir())


def kill_builders(tmp_path: Path, times: int) -> None:
    """Kill builders at random moments; the cache must verify after each, and work at the end."""
    root, log = tmp_path / "cache", tmp_path / "log"
    chance = random.Random(7)
    for number in range(times):
        process = start(root, log, seed=number)
        go([process])
        time.sleep(chance.random() * 0.25)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert Cache.open(root).verify() == []
        if number % 10 == 9:  # begin again, so that there is something to build
            Cache.open(root).clear()
    last = start(root, log, seed=times)
    go([last])
    _, said = last.communicate(timeout=60)
    assert last.returncode == 0, said
    cache = Cache.open(root)
    assert cache.verify() == []
    assert len(list(cache.entries())) == ENTRIES


def test_killed_builders_do_no_harm(tmp_path: Path) -> None:
    kill_builders(tmp_path, 15)


@pytest.mark.slow
def test_a_hundred_killed_builders_do_no_harm(tmp_path: Path) -> None:
    kill_builders(tmp_path, 100)


def test_what_a_killed_builder_left_is_removed_later(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    abandoned, young = (
        root / "v1" / "staging" / "kernel-old",
        root / "v1" / "staging" / "kernel-new",
    )
    held = root / "v1" / "staging" / "kernel-held"
    for folder in (abandoned, young, held):
        folder.mkdir(parents=True)
        (folder / "half").write_bytes(b"x")
    root.chmod(0o700)
    for folder in (abandoned, held):
        os.utime(folder, (1e9, 1e9))
    descriptor = hold_directory(held)
    try:
        Cache.open(root).get_or_build("kernel", {}, lambda folder: (folder / "x").touch())
    finally:
        os.close(descriptor)
    assert (abandoned.exists(), young.exists(), held.exists()) == (False, True, True)
    assert not directory_is_held(held)


def test_a_lock_that_is_never_released_only_costs_time(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    locks = root / "v1" / "locks"
    locks.mkdir(parents=True)
    root.chmod(0o700)
    with holding(locks / f"{key_of('kernel', {})}.lock", 0.0) as held:
        assert held
        started = time.monotonic()
        entry = Cache.open(root).get_or_build(
            "kernel", {}, lambda folder: (folder / "x").touch(), lock_timeout=0.2
        )
        assert 0.2 <= time.monotonic() - started < 5
    assert entry.file("x").exists()


def test_losing_the_race_gives_the_winners_entry(tmp_path: Path) -> None:
    """Two builders at once, as after a lock timed out: the second to publish takes the first's."""
    factors = {"source": "abc"}

    def build(folder: Path) -> None:
        (folder / "x").write_bytes(b"second")
        other = Layer(tmp_path)
        other.build("kernel", key_of("kernel", factors), factors, first, 0.0)

    def first(folder: Path) -> None:
        (folder / "x").write_bytes(b"first")

    cache = Cache.open(tmp_path)
    assert cache.get_or_build("kernel", factors, build).file("x").read_bytes() == b"first"
    assert cache.stats.built == 0
    assert cache.verify() == []


def test_threads_of_one_process_build_once(tmp_path: Path) -> None:
    cache, calls = Cache.open(tmp_path), list[int]()

    def build(folder: Path) -> None:
        calls.append(1)
        time.sleep(0.05)
        (folder / "x").touch()

    with ThreadPoolExecutor(8) as pool:
        tasks = [pool.submit(cache.get_or_build, "kernel", {}, build) for _ in range(8)]
    assert len({task.result().path for task in tasks}) == 1
    assert len(calls) == 1
