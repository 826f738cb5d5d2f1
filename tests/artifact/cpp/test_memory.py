"""The C++ runner under sanitizers, built by the compiler alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.artifact.cpp import models, runner
from tests.artifact.cpp.change import changed, mutated
from tests.artifact.cpp.compare import SHAPES, Case

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SANITIZED = ("-std=c++17", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the examples and ``fuzz``."""
    folder = tmp_path_factory.mktemp("sanitized")
    command = (runner.compiler(), *SANITIZED, f"-I{runner.CPP}")
    runner.checked(*command, "-c", runner.CPP / "fuseline.cpp", "-o", folder / "fuseline.o")
    for name in ("examples/run", "examples/generate", "fuzz"):
        source = runner.EXAMPLES if name.startswith("examples") else runner.HERE
        own = Path(name).name
        runner.checked(
            *(*command, source / f"{own}.cpp", folder / "fuseline.o", *runner.LIBRARIES),
            *("-o", folder / own),
        )
    return folder


def test_no_call_misuses_memory(sanitized: Path, case: Case, store: Path, tmp_path: Path) -> None:
    """Right calls and wrong ones, and a program over state."""
    path, _, dtype = case
    np.save(tmp_path / "scale.npy", models.scale(dtype).float().numpy())
    for shape in SHAPES:
        np.save(tmp_path / "ids.npy", models.ids(*shape).numpy())
        words = (f"ids={tmp_path}/ids.npy", f"scale={tmp_path}/scale.npy", "--threads", "2")
        runner.checked(sanitized / "run", path, *words, "--repeat", "3", "--save", tmp_path)
    np.save(tmp_path / "ids.npy", models.ids(2, 3).numpy() + 1000)
    for given, code in (("scale", "FL0902"), ("ids", "FL0905")):
        words = (f"ids={tmp_path}/{given}.npy", f"scale={tmp_path}/scale.npy")
        command = [sanitized / "run", path, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr[:6]) == (1, code)
    runner.checked(sanitized / "generate", store, "--prompt", "1,2,3", "--new", "5")


def test_no_file_misuses_memory(sanitized: Path, store: Path, tmp_path: Path) -> None:
    """Bytes of the file changed, and values of its JSON, whose digests then are right again."""
    random = np.random.default_rng(0)
    whole = store.read_bytes()
    paths: list[Path] = []
    for number in range(300):
        data = bytearray(whole)
        for place in random.integers(0, len(data), random.integers(1, 4)):
            at = int(len(data) - 1 - place % 4000 if number % 2 else place)  # often the directory
            data[at] = int(random.integers(0, 256))
        if number % 10 == 0:
            del data[int(random.integers(0, len(data))) :]
        paths.append(tmp_path / f"{number}.fuse")
        paths[-1].write_bytes(data)
    for number in range(300):
        paths.append(tmp_path / f"json-{number}.fuse")
        changed(store, paths[-1], lambda members: mutated(members, random))
    told = runner.checked(sanitized / "fuzz", *paths)
    counts = {code: int(count) for code, count in map(str.split, told.splitlines())}
    assert sum(counts.values()) == len(paths)
    assert {"FL1102", "FL1103"} <= set(counts)
