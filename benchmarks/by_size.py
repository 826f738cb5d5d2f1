"""The command line of the benchmarks of one block: the same measurement at several sizes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.common import Json, say, write_json
from benchmarks.models import DTYPES


@dataclass(frozen=True)
class BySize:
    """A benchmark that is run for each of some numbers of tokens, or of sequences.

    Attributes:
        module: the name behind ``benchmarks.``.
        about: what ``--help`` says.
        what: what the sizes are numbers of, ``tokens`` for one.
        sizes: those measured where none are given.
        seconds: of sampling for each, where none are given.
        measure: the samples and figures of a size, for a dtype and seconds.
        unit: the seconds of the unit that medians are shown in, and its name.
    """

    module: str
    about: str | None
    what: str
    sizes: Sequence[int]
    seconds: float
    measure: Callable[[int, str, float], Json]
    unit: tuple[float, str] = (1e-3, "ms")

    def main(self, argv: Sequence[str]) -> None:
        """Measure all sizes, print a line for each, and write the figures."""
        parser = argparse.ArgumentParser(
            prog=f"python -m benchmarks.{self.module}", description=self.about
        )
        parser.add_argument("--threads", type=int, default=1)
        parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
        parser.add_argument(f"--{self.what}", dest="sizes", type=int, nargs="+", default=self.sizes)
        parser.add_argument(
            "--seconds", type=float, default=self.seconds, help="of sampling for each case"
        )
        parser.add_argument("--output", type=Path)
        args = parser.parse_args(argv)
        torch.set_num_threads(args.threads)
        result: Json = {}
        with torch.no_grad():
            for size in args.sizes:
                found = self.measure(size, args.dtype, args.seconds)
                result[str(size)] = found
                self._show(size, found)
                if args.output:
                    write_json(args.output, result)

    def _show(self, size: int, found: Json) -> None:
        each, name = self.unit
        parts = [f"{n} {value / each:.2f} {name}" for n, value in found["median_s"].items()]
        parts += [f"{n} {value:.2f} x" for n, value in found["speedup"].items()]
        say(f"{size} {self.what}: {', '.join(parts)}")
