"""Models by name: `smollm2`, a Hugging Face directory, a GGUF file, or `module:function`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from fuseline.cli.arguments import BATCH, LENGTH
from fuseline.errors import BAD_ARGUMENT, BAD_INPUTS, UNKNOWN_MODEL

if TYPE_CHECKING:
    from torch import nn

    from fuseline.cli.text import Tokenizer
    from fuseline.config import Config

Program: TypeAlias = "nn.Module | Callable[..., Any]"

EXPECTED = "smollm2, a directory, a .gguf file, or module:function"


@dataclass(frozen=True)
class LoadedModel:
    """A model, the inputs to run it with, and for language models the tokenizer."""

    name: str
    model: Program
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tokenizer: Tokenizer | None = None

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
) -> LoadedModel:
    """Load a model and give it inputs; a language model gets seeded token ids [batch, length].

    Args:
        name: what the user typed.
        config: says where converted weights are kept.
        dtype: dtype of the weights; None: float32, or what a model function made.
        batch: sequences in the inputs of a language model; None: `BATCH`.
        length: tokens in each; None: `LENGTH`.

    Raises:
        LoadError: FL0801 to FL0806, for what cannot be read.
        UsageError: FL0103, for a dtype or a shape where the model function decides.
    """
    shape = (batch or BATCH, length or LENGTH)
    path = Path(os.path.expanduser(name))  # noqa: PTH111 -- leaves an unknown user's home as it is
    if name == "smollm2":
        from fuseline.cli import gguf_model

        return _with_ids(name, gguf_model.load(gguf_model.smollm2(), config, dtype), shape)
    if path.is_dir():
        from fuseline.cli import huggingface

        return _with_ids(name, huggingface.load(path, dtype), shape)
    if path.is_file() or path.suffix == ".gguf":
        from fuseline.cli import gguf_model

        return _with_ids(name, gguf_model.load(path, config, dtype), shape)
    if ":" not in name:
        near = _near(path)
        hint = f"perhaps {' or '.join(near)} was meant" if near else None
        raise UNKNOWN_MODEL.error(name, expected=EXPECTED, hint=hint)
    for what, value in {"dtype": dtype, "batch": batch, "length": length}.items():
        if value is not None:
            found, expected = f"{what} {value} for {name}", f"no {what}: the function decides"
            raise BAD_ARGUMENT.error(f"--{what}", found=found, expected=expected)
    from fuseline.cli import user_function

    return user_function.load(name)


def _near(path: Path) -> list[str]:
    """What may have been meant: `smollm2`, or a model in the folder where the path points to."""
    try:
        beside = [
            str(path.parent / found.name)
            for found in sorted(path.parent.iterdir())
            if found.suffix == ".gguf" or (found / "config.json").is_file()
        ]
    except OSError:
        beside = []
    return get_close_matches(str(path), ["smollm2", *beside], n=3)


def _with_ids(
    name: str, pair: tuple[nn.Module, Tokenizer | None], shape: tuple[int, int]
) -> LoadedModel:
    import torch

    model, tokenizer = pair
    vocabulary = int(cast("Any", model).get_input_embeddings().weight.shape[0])
    ids = torch.randint(1, vocabulary, shape, generator=torch.Generator().manual_seed(0))
    return LoadedModel(name, model, (), {"input_ids": ids, "use_cache": False}, tokenizer)
