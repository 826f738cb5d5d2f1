"""The commands on ``.fuse`` files: they import no compiler, and no transformers."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from fuseline.cli.arguments import BATCH, LENGTH, OF_COMPILING, options, refuse
from fuseline.cli.generate import TOKENS, read_prompt
from fuseline.cli.output import Output, columns
from fuseline.errors import BAD_ARGUMENT, MISSING_PACKAGE, NOT_A_TEXT_MODEL, TOO_LONG

if TYPE_CHECKING:
    from fuseline.artifact.calls import Call
    from fuseline.artifact.load import Loaded


def load(arguments: argparse.Namespace, out: Output) -> tuple[Loaded, float]:
    """The file that was named, and the seconds that loading took.

    Raises:
        UsageError: FL0103, with ``--dtype``: a file has the dtype that it was exported with.
    """
    refuse(arguments, ("--dtype",), arguments.model, "it where the file is exported")
    with out.step(f"loading {arguments.model}"):
        import torch  # its own import is not ours to answer for

        assert torch.__version__
        started = time.perf_counter()
        from fuseline.artifact.load import load as load_file

        given: dict[str, Any] = options(arguments)
        checks = {"verify": arguments.verify, "verify_key": arguments.verify_key}
        loaded = load_file(arguments.model, **checks, **given)
        seconds = time.perf_counter() - started
    out.note(f"{loaded.choice}, loaded in {seconds:.2f} s")
    return loaded, seconds


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Call each program on seeded inputs, and print what it gives and how long it takes."""
    refuse(arguments, OF_COMPILING, arguments.model, "it where the file is exported")
    loaded, seconds = load(arguments, out)
    programs: dict[str, Any] = {}
    rows = [["loaded", f"in {seconds:.2f} s: {loaded.choice}"]]
    _check_sizes(arguments, loaded)
    for name, program in loaded.programs.items():
        args, kwargs = _example(program, arguments.batch, arguments.length)
        loaded.reset()
        results = _leaves(program(*args, **kwargs))
        times: list[float] = []
        for _ in range(arguments.runs):
            loaded.reset()  # a cache that is full takes no more
            times.append(_seconds(program, args, kwargs))
        given = [_described(leaf) for leaf in _leaves((args, kwargs))]
        made = [_described(leaf) for leaf in results]
        median = statistics.median(times)
        programs[name] = {"inputs": given, "outputs": made, "seconds": median, "samples": times}
        rows.append([name, f"{', '.join(given)} -> {', '.join(made)}, {median * 1e3:.2f} ms"])
    report = loaded.report()
    data = {
        "target": loaded.choice.target.title,
        "device": str(loaded.choice.device),
        "load_seconds": seconds,
        "programs": programs,
        "report": report.to_dict(),
    }
    out.result(data, "\n\n".join([columns(rows, indent=""), report.summary()]))
    return 0


def generate(arguments: argparse.Namespace, out: Output) -> int:
    """Continue a prompt, or token ids, with the prefill and the decode step of a file."""
    refuse(arguments, ("--eager", "--kv-cache"), arguments.model, "a model")
    if arguments.ids:
        refuse(arguments, ("--prompt", "--chat"), "--ids", "one of the two")
    started = time.perf_counter()
    loaded, seconds = load(arguments, out)
    text = loaded.manifest.text
    if text is None:
        found = "no prefill and decode step (export it with --decode)"
        raise NOT_A_TEXT_MODEL.error(arguments.model, found=found)
    tokenizer = _tokenizer(loaded, needed=not arguments.ids)
    ids = list(arguments.ids or _encoded(arguments, tokenizer))
    wanted: int = arguments.tokens or max(1, min(TOKENS, text.length - len(ids)))
    if len(ids) + wanted > text.length:
        raise TOO_LONG.error(
            where=arguments.model,
            found=f"{len(ids)} tokens of prompt and {wanted} to make",
            expected=f"at most {text.length} together",
        )
    from fuseline.cli.generation import Sampling, generate
    from fuseline.cli.timing import Timing, process_age

    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    timing = Timing()
    session: Any = _Session(loaded, text.batch)
    tokens: list[int] = []
    shown = ""
    first, age = 0.0, None
    stop = frozenset(text.stop)
    for token in generate(session, ids, wanted, sampling, stop=stop, timing=timing):
        if not tokens:
            first, age = time.perf_counter() - started, process_age()
        tokens.append(token)
        whole = tokenizer.decode(tokens) if tokenizer is not None else " ".join(map(str, tokens))
        if not whole.endswith("\N{REPLACEMENT CHARACTER}"):
            out.stream(whole[len(shown) :])
            shown = whole
    out.stream("\n")
    rate = timing.tokens_per_second
    data = {
        "text": shown,
        "tokens": tokens,
        "prompt_tokens": len(ids),
        "seed": arguments.seed,
        "target": loaded.choice.target.title,
        "load_seconds": seconds,
        "first_token_seconds": first,
        "process_seconds_to_first_token": age,
        "prefill_seconds": timing.prefill,
        "decode_seconds": sum(timing.steps),
        "tokens_per_second": rate,
    }
    if out.json:
        out.result(data, "")
    else:
        then = f", then {rate:.1f} tokens/s" if rate else ""
        whole = "" if age is None else f" ({age:.2f} s after the process began)"
        out.note(f"{len(tokens)} tokens, the first after {first:.2f} s{whole}{then}")
    return 0


class _Session:
    """A text in the making, as `generate` wants it."""

    def __init__(self, loaded: Loaded, batch: int) -> None:
        self._programs, self._batch = loaded.programs, batch
        self._device = loaded.choice.device
        self._least, self._most = _tokens(self._programs["prefill"])

    def advance(self, ids: Sequence[int]) -> Any:
        """Show the model more tokens; logits [vocabulary] of what follows the last of them."""
        shown: Any = None
        while ids:
            count = min(len(ids), self._most)
            if count == 1 or count < self._least:
                count = 1
            shown = self._shown(ids[:count])
            ids = ids[count:]
        return shown

    def _shown(self, ids: Sequence[int]) -> Any:
        import torch

        rows = torch.tensor([list(ids)] * self._batch, device=self._device)
        program = self._programs["prefill" if len(ids) > 1 else "decode"]
        return program(rows)[0]


def _tokens(prefill: Call) -> tuple[int, int]:
    """The fewest and the most tokens that a prefill takes at once."""
    plan = prefill.file.plan
    number = next(i for i, item in enumerate(prefill.file.inputs) if item.kind == "user")
    size = plan.args[number].shape[1]
    if isinstance(size, int):
        return size, size
    least, most = plan.ranges.get(size, (1, None))
    return least, most or sys.maxsize


def _tokenizer(loaded: Loaded, *, needed: bool) -> Any:
    """The tokenizer of the file; None where there is none and none is needed."""
    text = loaded.manifest.text
    if text is None or text.tokenizer is None:
        if needed:
            found = "no tokenizer in the file"
            raise NOT_A_TEXT_MODEL.error(str(loaded.path), found=found, hint="give --ids")
        return None
    try:
        from tokenizers import Tokenizer
    except ImportError:
        if needed:
            hint = "pip install tokenizers, or give --ids"
            raise MISSING_PACKAGE.error("tokenizers", hint=hint) from None
        return None
    return Tokenizer.from_str(loaded.member(text.tokenizer).decode())


def _encoded(arguments: argparse.Namespace, tokenizer: Any) -> list[int]:
    if arguments.chat:
        found = "it with a .fuse file, which has no chat template"
        raise BAD_ARGUMENT.error("--chat", found=found, expected="the text as the model reads it")
    return list(tokenizer.encode(read_prompt(arguments)).ids)


def _check_sizes(arguments: argparse.Namespace, loaded: Loaded) -> None:
    """Refuse a size that no program of a file takes: it would change nothing."""
    for flag, value, first in (
        ("--batch", arguments.batch, True),
        ("--length", arguments.length, False),
    ):
        plans = [program.program.plan for program in loaded.programs.values()]
        ranges = [
            plan.ranges.get(name, (1, None))
            for plan in plans
            for name, (_, axis) in plan.symbols.items()
            if (axis == 0) == first
        ]
        if value is None or any(low <= value <= (high or value) for low, high in ranges):
            continue
        known = [f"{low} or more" if high is None else f"{low} to {high}" for low, high in ranges]
        expected = ", ".join(dict.fromkeys(known)) or "none: that size is fixed"
        raise BAD_ARGUMENT.error(flag, found=f"{value} for {arguments.model}", expected=expected)


def _example(program: Call, batch: int | None, length: int | None) -> tuple[Any, Any]:
    """Seeded arguments of sizes that the program takes: a size that is a first dim is ``batch``,
    any other is ``length``, as far as their ranges go.
    """
    import torch

    from fuseline.artifact import trees

    plan, file = program.program.plan, program.file
    sizes: dict[str, int] = {}
    for name, (_, axis) in plan.symbols.items():
        low, high = plan.ranges.get(name, (1, None))
        wanted = (batch or BATCH) if axis == 0 else (length or LENGTH)
        sizes[name] = max(low, min(wanted, high or wanted))
    value = program.program.numbers(tuple(sizes.values()))
    generator = torch.Generator().manual_seed(0)
    leaves: list[Any] = []
    for number, item in enumerate(file.inputs):
        spec = plan.args[number]
        if item.kind not in ("user", "symbol"):
            continue
        if spec.kind == "int":
            leaves.append(value(spec.value))
            continue
        shape = [value(n) for n in spec.shape]
        if spec.dtype.is_floating_point:
            leaf = torch.randn(shape, generator=generator).to(spec.dtype)
        else:
            leaf = torch.randint(0, 2, shape, generator=generator).to(spec.dtype)
        leaves.append(leaf.to(program.program.device))
    args, kwargs = trees.unflatten(file.takes, iter(leaves))
    return args, kwargs


def _seconds(program: Callable[..., Any], args: Any, kwargs: Any) -> float:
    started = time.perf_counter()
    _wait(program(*args, **kwargs))
    return time.perf_counter() - started


def _wait(result: object) -> None:
    import torch

    for leaf in _leaves(result):
        if isinstance(leaf, torch.Tensor) and leaf.is_cuda:
            torch.cuda.synchronize(leaf.device)
            return


def _leaves(value: Any) -> list[Any]:
    items: list[Any]
    if isinstance(value, dict):
        items = list(cast("dict[str, Any]", value).values())
    elif isinstance(value, tuple | list):
        items = list(cast("Sequence[Any]", value))
    else:
        return [value]
    return [leaf for item in items for leaf in _leaves(item)]


def _described(leaf: Any) -> str:
    if not hasattr(leaf, "dtype"):
        return repr(leaf)
    return f"{str(leaf.dtype).removeprefix('torch.')}{list(leaf.shape)}"


__all__ = ["generate", "load", "run"]
