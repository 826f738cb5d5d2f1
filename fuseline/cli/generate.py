"""Continue a prompt with a causal language model, and say how fast that was."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from fuseline.cli.arguments import (
    add_json,
    add_model,
    count,
    options,
    positive,
    share,
)
from fuseline.config import Config
from fuseline.errors import BAD_ARGUMENT, NOT_A_TEXT_MODEL, TOO_LONG

if TYPE_CHECKING:
    from fuseline.cli.generation import Sampling, Timing
    from fuseline.cli.models import LoadedModel
    from fuseline.cli.output import Output
    from fuseline.cli.text import Tokenizer

EXAMPLE = """\
  fuseline generate smollm2 --prompt "The sea is" --tokens 64
  echo "Tell me a joke." | fuseline generate smollm2 --chat --temperature 0.8"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model(parser)
    parser.add_argument("--prompt", help="the text to continue (default: standard input)")
    parser.add_argument("--chat", action="store_true", help="ask with the model's chat template")
    parser.add_argument("--tokens", type=count, default=128, help="how many at most (default: 128)")
    parser.add_argument(
        "--temperature", type=positive, default=0.0, help="0 is greedy, which is the default"
    )
    parser.add_argument("--top-k", type=count, help="pick among so many of the likeliest tokens")
    parser.add_argument("--top-p", type=share, default=1.0, help="... that sum up to so much")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    parser.add_argument("--eager", action="store_true", help="do not compile; for comparison")
    add_json(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Generate, stream the text, then print the rates."""
    given = options(arguments)
    config = Config.of(given)
    with out.step(f"loading {arguments.model}"):
        from fuseline.cli import models

        loaded = models.load(arguments.model, config, dtype=arguments.dtype)
    tokenizer = _require_text_model(loaded)
    prompt = _prompt(arguments, loaded.name, tokenizer)
    ids = tokenizer.encode(prompt)
    _check_length(loaded, ids, arguments.tokens)
    return _generate(arguments, loaded, tokenizer, ids, given, out)


def _generate(
    arguments: argparse.Namespace,
    loaded: LoadedModel,
    tokenizer: Tokenizer,
    ids: list[int],
    given: dict[str, str],
    out: Output,
) -> int:
    from fuseline.cli import generation
    from fuseline.cli.compiling import compile_program
    from fuseline.cli.text import Decoder

    plain: Any = loaded.model
    model: Any = plain if arguments.eager else compile_program(plain, given)
    timing = generation.Timing()
    sampling = generation.Sampling(
        arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed
    )
    decoder = Decoder(tokenizer, ids)
    tokens: list[int] = []
    pieces: list[str] = []
    stop = generation.stop_tokens(plain)
    started = time.perf_counter()
    session = generation.Session(model, len(ids) + arguments.tokens, plain=plain)
    stream = generation.generate(session, ids, arguments.tokens, sampling, stop=stop, timing=timing)
    for token in stream:
        tokens.append(token)
        pieces.append(decoder.push(token))
        out.stream(pieces[-1])
    pieces.append(decoder.finish())
    out.stream(f"{pieces[-1]}\n")
    seconds = time.perf_counter() - started
    _say(out, "".join(pieces), ids, tokens, sampling, timing, seconds)
    return 0


def _say(
    out: Output,
    text: str,
    ids: list[int],
    tokens: list[int],
    sampling: Sampling,
    timing: Timing,
    seconds: float,
) -> None:
    rate = timing.tokens_per_second
    if out.json:
        data = {
            "text": text,
            "tokens": tokens,
            "prompt_tokens": len(ids),
            "seed": sampling.seed,
            "prefill_seconds": timing.prefill,
            "first_step_seconds": timing.steps[0] if timing.steps else None,
            "tokens_per_second": rate,
            "seconds": seconds,
        }
        out.result(data, "")
        return
    parts = [f"{len(tokens)} tokens in {seconds:.1f} s", f"prefill {timing.prefill:.2f} s"]
    if timing.steps:
        parts.append(f"first step {timing.steps[0]:.2f} s")
    if rate:
        parts.append(f"then {rate:.1f} tokens/s")
    out.note(", ".join(parts))


def _require_text_model(loaded: LoadedModel) -> Tokenizer:
    if not hasattr(loaded.model, "generation_config"):
        found = f"a {type(loaded.model).__name__}"
        raise NOT_A_TEXT_MODEL.error(loaded.name, found=found)
    if loaded.tokenizer is None:
        raise NOT_A_TEXT_MODEL.error(loaded.name, found="no tokenizer beside the model")
    return loaded.tokenizer


def _prompt(arguments: argparse.Namespace, name: str, tokenizer: Tokenizer) -> str:
    text: str = arguments.prompt if arguments.prompt is not None else sys.stdin.read().rstrip("\n")
    if not text:
        raise BAD_ARGUMENT.error("--prompt", found="an empty text", expected="at least one token")
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
