"""Models by name: `smollm2`, a Hugging Face directory, a file, or `module:function`."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from fuseline.cli.arguments import BATCH, LENGTH
from fuseline.cli.files import TITLES, Kind, kind_of, refusal
from fuseline.errors import BAD_ARGUMENT, BAD_INPUTS, UNKNOWN_MODEL

if TYPE_CHECKING:
    from torch import nn

    from fuseline.cli.text import Tokenizer
    from fuseline.config import Config

Program: TypeAlias = "nn.Module | Callable[..., Any]"

EXPECTED = "smollm2, a directory, a .gguf, .onnx or .pt2 file, or module:function"


@dataclass(frozen=True)
class LoadedModel:
    """A model, the inputs to run it with, and for language models the tokenizer.

    ``whole`` is what is exported in place of the model: a program that knows its inputs.
    """

    name: str
    model: Program
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tokenizer: Tokenizer | None = None
    whole: Any = None

    def run(self) -> Any:
        """What the model gives for its inputs, not compiled.

        Raises:
            LoadError: FL0809, for an error of the model's own.
        """
        try:
            return self.model(*self.args, **self.kwargs)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
            raise BAD_INPUTS.error(self.name, found=found) from error


def load(
    name: str,
    config: Config,
    *,
    dtype: str | None = None,
    batch: int | None = None,
    length: int | None = None,
    inputs: Sequence[str] = (),
    takes: Collection[Kind] = ("gguf", "onnx", "pt2"),
) -> LoadedModel:
    """Load a model and give it inputs; a language model gets seeded token ids [batch, length].

    Args:
        name: what the user typed.
        config: says where converted weights are kept.
        dtype: dtype of the weights; None: float32, or what a model function made.
        batch: sequences in the inputs of a language model; None: `BATCH`.
        length: tokens in each; None: `LENGTH`.
        inputs: those of an ONNX model as ``--input`` has them, narrower than in the file.
        takes: the kinds of files that the command takes.

    Raises:
        LoadError: FL0801 to FL0806, FL0811 and FL0820 to FL0822, for what cannot be read; FL0810,
            for a file that is for other commands.
        UsageError: FL0103, for a dtype or a shape where the model decides.
    """
    shape = (batch or BATCH, length or LENGTH)
    path = Path(os.path.expanduser(name))  # noqa: PTH111 -- leaves an unknown user's home as it is
    if name == "smollm2":
        from fuseline.cli import gguf_model

        return _with_ids(name, gguf_model.load(gguf_model.smollm2(), config, dtype), shape)
    if path.is_dir():
        from fuseline.cli import huggingface

        return _with_ids(name, huggingface.load(path, dtype), shape)
    kind = kind_of(path)
    if kind is not None and kind not in takes:
        raise refusal(name, kind)
    if kind == "gguf":
        from fuseline.cli import gguf_model

        return _with_ids(name, gguf_model.load(path, config, dtype), shape)
    if kind in ("onnx", "pt2") and not path.is_file():
        raise UNKNOWN_MODEL.error(name, found="no such file", hint=_meant(path))
    if kind == "onnx":
        _leave(name, "the file", dtype=dtype)
        from fuseline.cli import onnx_model

        return onnx_model.load(path, inputs, shape)
    if kind == "pt2":
        given = "one" if inputs else None
        _leave(name, "the program", dtype=dtype, batch=batch, length=length, input=given)
        from fuseline.cli import exported_program

        return exported_program.load(path)
    if path.is_file():
        kinds = ", ".join(TITLES[kind] for kind in takes)
        raise UNKNOWN_MODEL.error(name, found="a file of another kind", expected=kinds)
    if ":" not in name:
        raise UNKNOWN_MODEL.error(name, expected=EXPECTED, hint=_meant(path))
    _leave(name, "the function", dtype=dtype, batch=batch, length=length)
    from fuseline.cli import user_function

    return user_function.load(name)


def _leave(name: str, who: str, **given: object) -> None:
    """Refuse arguments about what a model itself decides.

    Raises:
        UsageError: FL0103.
    """
    for what, value in given.items():
        if value is not None:
            found, expected = f"{what} {value} for {name}", f"no {what}: {who} decides"
            raise BAD_ARGUMENT.error(f"--{what}", found=found, expected=expected)


def _meant(path: Path) -> str | None:
    """What may have been meant: `smollm2`, or a model in the folder where the path points to."""
    try:
        beside = [
            str(path.parent / found.name)
            for found in sorted(path.parent.iterdir())
            if found.suffix in (".gguf", ".onnx", ".pt2") or (found / "config.json").is_file()
        ]
    except OSError:
        beside = []
    near = get_close_matches(str(path), ["smollm2", *beside], n=3)
    return f"perhaps {' or '.join(near)} was meant" if near else None


def _with_ids(
    name: str, pair: tuple[nn.Module, Tokenizer | None], shape: tuple[int, int]
) -> LoadedModel:
    import torch

    model, tokenizer = pair
    vocabulary = int(cast("Any", model).get_input_embeddings().weight.shape[0])
    ids = torch.randint(1, vocabulary, shape, generator=torch.Generator().manual_seed(0))
    return LoadedModel(name, model, (), {"input_ids": ids, "use_cache": False}, tokenizer)
