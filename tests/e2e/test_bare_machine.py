"""One file for a CPU and four GPUs, used on a bare machine: only Python, torch, numpy and fuseline.

The machine: a copy of the interpreter whose site-packages have links to torch and numpy, and the
wheel of fuseline. No compiler, no Triton, no transformers, no sympy, no network; a user id that no
passwd entry has, without a home; nothing that can be written to.
"""

from __future__ import annotations

import compileall
import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import torch

from fuseline.cli import models
from fuseline.config import Config
from tests.artifact.cpp import runner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
NOBODY = 54321
"""A user and a group that no machine has."""

PACKAGES = ("torch", "numpy", "typing_extensions")
"""What torch's import needs, and no more: no sympy, no jinja2."""

TARGETS = ("cpu", "sm_80", "sm_90", "sm_100", "sm_120")
IDS = (504, 3365, 314)
"""The sea is"""

TOKENS, LENGTH = 64, 128

CHECK = """
import importlib.util, os, pwd, shutil, socket, sys

absent = ("triton", "transformers", "sympy", "jinja2", "tokenizers", "gguf", "cuda")
print("found:", *[name for name in absent if importlib.util.find_spec(name)])
print("compilers:", *[name for name in ("cc", "c++", "g++", "nvcc", "ld") if shutil.which(name)])
print("home:", os.environ.get("HOME"))
try:
    print("user:", pwd.getpwuid(os.getuid()).pw_name)
except KeyError:
    print("user: none")
try:
    socket.create_connection(("198.51.100.1", 80), timeout=5)
except OSError as error:
    print("network:", type(error).__name__)
import fuseline, torch

beside, package = os.path.dirname(sys.argv[1]), os.path.dirname(fuseline.__file__)
places = (os.getcwd(), beside, sys.argv[1], package)
print("writable:", *[place for place in places if os.access(place, os.W_OK)])
model = fuseline.load(sys.argv[1])
prefill = model.programs["prefill"]
print("token:", int(prefill(torch.tensor([list(map(int, sys.argv[2:]))])).argmax()))
heavy = ("torch._dynamo", "torch._inductor", "fuseline.ir", "fuseline.compiler", "fuseline.codegen")
print("imported:", *[name for name in heavy if name in sys.modules])
"""


@cache
def isolation() -> tuple[str, ...]:
    """What a command is run by, so that it has no network and is a user that nobody knows.

    The test is skipped where neither root nor a namespace of users can give that.
    """
    unshare, setpriv = shutil.which("unshare"), shutil.which("setpriv")
    true = shutil.which("true")
    ways: list[tuple[str, ...]] = []
    if unshare and setpriv and os.getuid() == 0:
        ids = (f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs")
        ways.append((unshare, "--net", setpriv, *ids))
    if unshare:
        ids = (f"--map-user={NOBODY}", f"--map-group={NOBODY}")
        ways.append((unshare, "--user", "--net", *ids))
    for way in ways:
        done = subprocess.run([*way, str(true)], capture_output=True, check=False)
        if done.returncode == 0:
            return way
    pytest.skip("NOT SHOWN: neither root nor user namespaces, which take away network and user")


@dataclass(frozen=True)
class Bare:
    """The bare machine."""

    folder: Path
    python: Path
    file: Path

    def run(self, *words: str | Path) -> str:
        """What a command prints there; it must succeed."""
        home = self.python.parents[1]
        environment = {
            "PATH": str(self.python.parent),
            "LD_LIBRARY_PATH": str(home / "lib"),  # of the interpreter
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [*isolation(), *map(str, words)],
            env=environment,
            capture_output=True,
            cwd=self.folder,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def fuseline(self, *words: str | Path) -> Any:
        """The JSON that a command of fuseline prints there."""
        return json.loads(self.run(self.python, "-m", "fuseline.cli", *words, "--json"))


@pytest.fixture(scope="module")
def bare(session_cache: Path) -> Iterator[Bare]:
    isolation()
    folder = Path(tempfile.mkdtemp(prefix="fuseline-bare-"))  # pytest's own folders are private
    try:
        python, site = interpreter(folder / "python")
        packages(site, folder)
        file = folder / "smollm2.fuse"
        exported(file, session_cache)
        for item in (folder, *folder.rglob("*")):
            if not item.is_symlink():
                item.chmod(item.stat().st_mode & ~0o222 | 0o444 | 0o111 * item.is_dir())
        yield Bare(folder, python, file)
    finally:
        for item in (folder, *folder.rglob("*")):
            if item.is_dir() and not item.is_symlink():
                item.chmod(0o755)
        shutil.rmtree(folder)


def interpreter(folder: Path) -> tuple[Path, Path]:
    """A copy of the interpreter with its standard library; it and its site-packages."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = folder / "lib" / name
    left_out = shutil.ignore_patterns("site-packages", "test", "idlelib", "ensurepip", "config-*")
    shutil.copytree(sysconfig.get_path("stdlib"), library, ignore=left_out)
    for shared in Path(sys.base_prefix, "lib").glob("libpython*.so*"):
        shutil.copy2(shared, folder / "lib")
    (folder / "bin").mkdir()
    python = folder / "bin" / name
    shutil.copy2(os.path.realpath(sys.executable), python)
    (library / "site-packages").mkdir()
    return python, library / "site-packages"


def packages(site: Path, folder: Path) -> None:
    """Links to what torch needs, and fuseline as a wheel installs it."""
    for name in PACKAGES:
        package = distribution(name)
        tops = {Path(str(file)).parts[0] for file in package.files or ()}
        for top in tops - {"..", "__pycache__"}:
            (site / top).symlink_to(Path(str(package.locate_file(top))))
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("fuseline-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    wheel.unlink()
    assert compileall.compile_dir(site / "fuseline", quiet=1)  # as an installer does


def exported(file: Path, cache_dir: Path) -> None:
    """The one command."""
    targets = [word for target in TARGETS for word in ("--target", target)]
    words = ["export", "smollm2", "--decode", f"static:{LENGTH}", *targets, "-o", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "fuseline.cli", *words],
        env={**os.environ, "FUSELINE_CACHE_DIR": str(cache_dir), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def eager() -> list[int]:
    """The tokens of the model itself."""
    model: Any = models.load("smollm2", Config()).model
    ids = torch.tensor([IDS])
    with torch.no_grad():
        found = model.generate(ids, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
    return found[0, len(IDS) :].tolist()


def words_of(numbers: Sequence[int]) -> list[str]:
    return [str(number) for number in numbers]


def owned() -> list[Path]:
    """What the unknown user has left behind where everybody may write."""
    places = [Path(place) for place in ("/tmp", "/var/tmp", "/dev/shm")]
    inside = (item for place in places if place.is_dir() for item in place.iterdir())
    return [item for item in inside if item.lstat().st_uid == NOBODY]


def test_the_machine_is_bare_and_the_file_runs_on_it(bare: Bare, eager: list[int]) -> None:
    printed = bare.run(bare.python, "-c", CHECK, bare.file, *words_of(IDS))
    said = {
        key: value.strip() for key, _, value in (s.partition(":") for s in printed.splitlines())
    }
    assert said["network"] == "OSError"  # the network is unreachable: there is none
    assert (said["user"], said["home"]) == ("none", "None")
    for nothing in ("found", "compilers", "writable", "imported"):
        assert said[nothing] == "", f"{nothing}: {said[nothing]}"
    assert int(said["token"]) == eager[0]
    assert not stat.S_IMODE(bare.file.stat().st_mode) & 0o222


def test_generate_gives_eagers_tokens(
    bare: Bare, eager: list[int], record_property: Callable[[str, object], None]
) -> None:
    words = ["generate", bare.file, "--tokens", str(TOKENS), "--ids", *words_of(IDS)]
    answer = bare.fuseline(*words)
    assert answer["tokens"] == eager
    assert len(eager) == TOKENS
    assert answer["target"] == "cpu:native"
    own, whole = answer["first_token_seconds"], answer["process_seconds_to_first_token"]
    assert 0 < answer["load_seconds"] < own <= whole + 0.02
    for name in ("load_seconds", "first_token_seconds", "process_seconds_to_first_token"):
        record_property(name, answer[name])
        print(name, answer[name])
    record_property("tokens_per_second", answer["tokens_per_second"])
    assert owned() == []


def test_run_and_inspect_work_there(bare: Bare) -> None:
    ran = bare.fuseline("run", bare.file, "--length", "5", "--runs", "1", "--verify")
    assert set(ran["programs"]) == {"prefill", "decode"}
    assert ran["programs"]["prefill"]["inputs"] == ["int64[1, 5]"]
    facts = bare.fuseline("inspect", bare.file, "--at", "tokens=5")
    assert [target["name"] for target in facts["targets"]] == list(TARGETS)
    for target in facts["targets"]:
        sizes = {name: program["sizes"] for name, program in target["programs"].items()}
        assert sizes == {"prefill": {"tokens": {"least": 1, "most": LENGTH}}, "decode": {}}
    assert owned() == []


def test_the_runner_from_cpp_gives_the_same_tokens(bare: Bare, eager: list[int]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="fuseline-cpp-"))
    try:
        built = runner.build(folder / "build")
        folder.chmod(0o755)
        prompt = ",".join(words_of(IDS))
        words = (built.generate, bare.file, "--prompt", prompt, "--new", str(TOKENS))
        assert list(map(int, bare.run(*words).split())) == eager
    finally:
        shutil.rmtree(folder)
