"""The parts of a run: what is started as a process of its own, with which threads and caches."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import ROOT, Json, read_json

LAYERS = (2, 4, 8)
CONTENDERS = ("fuseline", "eager", "torch.compile")

OnLine = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """One part: its name, which is its key in the results, and what is said of it there."""

    kind: str
    model: str
    dtype: str
    threads: int
    options: tuple[str, ...] = ()
    layers: int | None = None

    @property
    def name(self) -> str:
        """Unique, and the same in every run."""
        model = self.model if self.layers is None else f"{self.model}-{self.layers}-layers"
        return f"{self.kind}/{model}/{self.dtype}/{self.threads}"

    def facts(self) -> Json:
        """What the part is about."""
        known: Json = {"kind": self.kind, "model": self.model, "dtype": self.dtype}
        known |= {"threads": self.threads}
        return known if self.layers is None else known | {"layers": self.layers}


def parts(*, quick: bool) -> list[Part]:
    """All parts, the most telling ones first."""
    if quick:
        return [
            Part("speed", "tiny", "float32", 1, ("--seconds", "0.2")),
            Part("compile", "tiny", "float32", 1),
            Part("memory", "tiny", "float32", 1),
            Part("qk_norm", "qwen3", "float32", 1, ("--tokens", "1", "8", "--seconds", "0.1")),
            Part("mla", "latent", "float32", 1, ("--batches", "1", "--seconds", "0.1")),
            Part("adapters", "linear", "float32", 1, ("--active", "2", "--seconds", "0.1")),
        ]
    found = [
        Part("speed", model, dtype, threads)
        for model in ("smollm2", "qwen3", "deepseek_v3")
        for dtype in ("float32", "bfloat16")
        for threads in (1, 2)
    ]
    found += [
        Part(kind, model, dtype, threads)
        for kind, model in (("qk_norm", "qwen3"), ("mla", "latent"), ("adapters", "linear"))
        for dtype in ("float32", "bfloat16")
        for threads in (1, 2)
    ]
    found += [
        Part("moe", "mixture", dtype, threads)
        for dtype in ("float32", "bfloat16")
        for threads in (1, 2)
    ]
    models = ("smollm2", "qwen3", "deepseek_v3")
    found += [Part("compile", model, "float32", 2) for model in models]
    found += [Part("memory", model, "float32", 2) for model in models]
    found += [Part("compile", "smollm2", "float32", 2, layers=n) for n in LAYERS]
    return found


def run(part: Part, caches: Path, on_line: OnLine) -> Json:
    """The results of a part.

    Args:
        part: what to run.
        caches: a directory for compiled code, empty at the beginning of a run.
        on_line: called with every line that is for whoever waits.

    Raises:
        RuntimeError: a process failed; its last lines are the message.
    """
    started = time.monotonic()
    runners = {"speed": _speed, "compile": _compile, "memory": _memory}
    runners |= dict.fromkeys(_SIZES, _by_size)
    result = runners[part.kind](part, caches, on_line)
    return part.facts() | {"took_s": time.monotonic() - started} | result


def _speed(part: Part, caches: Path, on_line: OnLine) -> Json:
    arguments = ("--model", part.model, *_common(part), *part.options)
    return {"cases": _child("speed", arguments, part.threads, caches / part.kind, on_line)}


_SIZES = {"qk_norm": "tokens", "moe": "tokens", "mla": "batches", "adapters": "active"}
"""What the benchmarks of one block are measured at several of."""


def _by_size(part: Part, caches: Path, on_line: OnLine) -> Json:
    arguments = (*_common(part), *part.options)
    found = _child(part.kind, arguments, part.threads, caches / part.kind, on_line)
    return {_SIZES[part.kind]: found}


def _memory(part: Part, caches: Path, on_line: OnLine) -> Json:
    common = ("--model", part.model, "--dtype", part.dtype)
    return {
        name: _child(
            "memory", (*common, "--contender", name), part.threads, caches / part.kind, on_line
        )
        for name in CONTENDERS
    }


def _compile(part: Part, caches: Path, on_line: OnLine) -> Json:
    """Each contender twice, with caches of its own: empty ones first."""
    result: Json = {}
    for name in ("fuseline", "torch.compile"):
        cache = caches / part.name / name
        arguments = ["--model", part.model, "--dtype", part.dtype, "--contender", name]
        arguments += ["--cache", str(cache)]
        if part.layers is not None:
            arguments += ["--layers", str(part.layers)]
        result[name] = {
            state: _child("compile_time", arguments, part.threads, cache, on_line)
            for state in ("cold", "warm")
        }
    return result


def _common(part: Part) -> tuple[str, ...]:
    return ("--dtype", part.dtype, "--threads", str(part.threads))


def _child(
    module: str, arguments: Sequence[str], threads: int, cache: Path, on_line: OnLine
) -> Json:
    """What a module of this package writes, run in a process with so many threads.

    Inductor writes the number of threads into its code, so each number has a cache of its own.
    """
    inductor = cache / f"inductor-{threads}"
    inductor.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_CACHE_DIR": str(inductor),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore:Dynamo detected a call",  # in transformers, once a compilation
    }
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
        command += ["--output", str(output)]
        _watched(command, environment, on_line)
        return read_json(output)


def _watched(command: Sequence[str], environment: dict[str, str], on_line: OnLine) -> None:
    lines: list[str] = []
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stderr is not None, "it is a pipe"
        for line in child.stderr:
            lines.append(line.rstrip())
            on_line(lines[-1])
    if child.returncode:
        raise RuntimeError("\n".join([f"exit code {child.returncode}", *lines[-15:]]))
