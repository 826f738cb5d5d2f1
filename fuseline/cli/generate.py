"""Continue a prompt with a causal language model, and say how fast that was."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from fuseline.cli.arguments import (
    add_file_checks,
    add_json,
    add_model,
    count,
    options,
    positive,
    refuse,
    seed,
    share,
)
from fuseline.cli.compiling import Tally
from fuseline.cli.files import kind_of
from fuseline.cli.timing import Timing
from fuseline.config import Cache, Config
from fuseline.errors import BAD_ARGUMENT, NOT_A_TEXT_MODEL, TOO_LONG

if TYPE_CHECKING:
    from fuseline.cli.generation import Session
    from fuseline.cli.models import LoadedModel
    from fuseline.cli.output import Output
    from fuseline.cli.text import Tokenizer

TOKENS = 128
"""How many are made where the command line does not say; fewer where a file has less room."""

EXAMPLE = """\
  fuseline generate smollm2 --prompt "The sea is" --tokens 64
  fuseline generate smollm2.fuse --prompt "The sea is"
  echo "Tell me a joke." | fuseline generate smollm2 --chat --temperature 0.8"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model(parser)
    parser.add_argument("--prompt", help="the text to continue (default: standard input)")
    parser.add_argument(
        "--ids", type=seed, nargs="+", metavar="ID", help="token ids instead of a text (.fuse only)"
    )
    parser.add_argument("--chat", action="store_true", help="ask with the model's chat template")
    parser.add_argument("--tokens", type=count, help=f"how many at most (default: {TOKENS})")
    parser.add_argument(
        "--temperature", type=positive, default=0.0, help="0 is greedy, which is the default"
    )
    parser.add_argument("--top-k", type=count, help="pick among so many of the likeliest tokens")
    parser.add_argument("--top-p", type=share, default=1.0, help="... that sum up to so much")
    parser.add_argument("--seed", type=seed, default=0, help="of the random numbers (default: 0)")
    parser.add_argument("--eager", action="store_true", help="do not compile; for comparison")
    parser.add_argument(
        "--kv-cache",
        choices=get_args(Cache),
        help="what the caches hold: what the model writes, or the latents that its keys and values "
        "are expanded from; as --set cache=... (default: as FUSELINE_KV_CACHE has it, or model)",
    )
    add_file_checks(parser)
    add_json(parser)


@dataclass
class Answer:
    """What was generated, and how long it took."""

    prompt_tokens: int
    seed: int
    compile_seconds: float = 0.0
    kernels: Tally = field(default_factory=Tally)
    text: str = ""
    tokens: list[int] = field(default_factory=list[int])
    timing: Timing = field(default_factory=Timing)

    def to_dict(self) -> dict[str, object]:
        """The answer as JSON has it."""
        return {
            "text": self.text,
            "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "seed": self.seed,
            "compile_seconds": self.compile_seconds,
            "kernels_built": len(self.kernels.built),
            "kernels_found": len(self.kernels.found),
            "prefill_seconds": self.timing.prefill,
            "decode_seconds": sum(self.timing.steps),
            "tokens_per_second": self.timing.tokens_per_second,
        }

    def summary(self) -> str:
        """The times in one line."""
        parts = [f"{len(self.tokens)} tokens", f"prefill {self.timing.prefill:.2f} s"]
        if self.compile_seconds:
            parts.insert(0, f"compiled in {self.compile_seconds:.1f} s ({self.kernels})")
        if rate := self.timing.tokens_per_second:
            parts.append(f"then {rate:.1f} tokens/s")
        return ", ".join(parts)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Generate, stream the text, then print the rates."""
    if kind_of(Path(arguments.model)) == "fuse":
        from fuseline.cli import artifacts

        return artifacts.generate(arguments, out)
    refuse(arguments, ("--ids", "--verify", "--verify-key"), arguments.model, "a .fuse file")
    arguments.tokens = arguments.tokens or TOKENS
    config = Config.of(_options(arguments))
    with out.step(f"loading {arguments.model}"):
        from fuseline.cli import models

        loaded = models.load(arguments.model, config, dtype=arguments.dtype, takes=("gguf",))
    tokenizer = _require_text_model(loaded)
    ids = tokenizer.encode(_prompt(arguments, loaded.name, tokenizer))
    _check_length(loaded, ids, arguments.tokens)
    answer = Answer(len(ids), arguments.seed)
    session = _session(arguments, loaded, ids, config, answer, out)
    _stream(arguments, session, loaded, ids, answer, out)
    if out.json:
        out.result(answer.to_dict(), "")
    else:
        out.note(answer.summary())
    return 0


def _options(arguments: argparse.Namespace) -> dict[str, object]:
    """The options of the compilation, those with a flag of their own among them."""
    if arguments.kv_cache is None:
        return options(arguments)
    if arguments.eager:
        found, expected = (
            f"{arguments.kv_cache} with --eager",
            "one of the two: eager code is as is",
        )
        raise BAD_ARGUMENT.error("--kv-cache", found=found, expected=expected)
    return options(arguments) | {"cache": arguments.kv_cache}


def _session(
    arguments: argparse.Namespace,
    loaded: LoadedModel,
    ids: list[int],
    config: Config,
    answer: Answer,
    out: Output,
) -> Session:
    """The model ready to go: prefill and step are compiled here, and not while the text runs."""
    from fuseline.cli import compiling
    from fuseline.cli.generation import Session

    plain: Any = loaded.model
    length = len(ids) + arguments.tokens
    if arguments.eager:
        return Session(plain, length)
    with compiling.step(out) as show:
        started = time.perf_counter()
        compiled = compiling.compile_program(plain, config, show, answer.kernels)
        session = Session(compiled, length, plain=plain)
        session.warm_up(ids)
        answer.compile_seconds = time.perf_counter() - started
    return session


def _stream(
    arguments: argparse.Namespace,
    session: Session,
    loaded: LoadedModel,
    ids: list[int],
    answer: Answer,
    out: Output,
) -> None:
    from fuseline.cli.generation import Sampling, generate, stop_tokens
    from fuseline.cli.text import Decoder

    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    decoder = Decoder(_require_text_model(loaded), ids)
    pieces: list[str] = []
    stop = stop_tokens(loaded.model)
    stream = generate(session, ids, arguments.tokens, sampling, stop=stop, timing=answer.timing)
    for token in stream:
        answer.tokens.append(token)
        pieces.append(decoder.push(token))
        out.stream(pieces[-1])
    pieces.append(decoder.finish())
    out.stream(f"{pieces[-1]}\n")
    answer.text = "".join(pieces)


def _require_text_model(loaded: LoadedModel) -> Tokenizer:
    if not hasattr(loaded.model, "generation_config"):
        found = f"a {type(loaded.model).__name__}"
        raise NOT_A_TEXT_MODEL.error(loaded.name, found=found)
    if loaded.tokenizer is None:
        raise NOT_A_TEXT_MODEL.error(loaded.name, found="no tokenizer beside the model")
    return loaded.tokenizer


def _standard_input() -> str:
    try:
        return sys.stdin.read().rstrip("\n")
    except UnicodeDecodeError as error:
        found = f"bytes on standard input that are not {error.encoding}"
        raise BAD_ARGUMENT.error("--prompt", found=found, expected="text") from error


def read_prompt(arguments: argparse.Namespace) -> str:
    """The text to continue.

    Raises:
        UsageError: FL0103, for an empty one.
    """
    text: str = arguments.prompt if arguments.prompt is not None else _standard_input()
    if not text:
        raise BAD_ARGUMENT.error("--prompt", found="an empty text", expected="at least one token")
    return text


def _prompt(arguments: argparse.Namespace, name: str, tokenizer: Tokenizer) -> str:
    text = read_prompt(arguments)
    if not arguments.chat:
        return text
    if not tokenizer.chat_template:
        found = f"{name}, which has no chat template"
        raise BAD_ARGUMENT.error("--chat", found=found, expected="a chat model")
    turns = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


def _check_length(loaded: LoadedModel, ids: list[int], tokens: int) -> None:
    config: Any = getattr(loaded.model, "config", None)
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is not None and len(ids) + tokens > positions:
        raise TOO_LONG.error(
            where=loaded.name,
            found=f"{len(ids)} tokens of prompt and {tokens} to make",
            expected=f"at most {positions} together",
        )
