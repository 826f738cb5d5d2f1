"""A causal language model and its tokenizer from a Hugging Face directory; nothing is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from fuseline.errors import MISSING_PACKAGE, NOT_A_MODEL_DIRECTORY

if TYPE_CHECKING:
    from types import ModuleType

    from fuseline.cli.text import Tokenizer


def load(path: Path, dtype: str | None) -> tuple[nn.Module, Tokenizer | None]:
    """The model, in eval mode, and the tokenizer if the directory has one.

    Raises:
        LoadError: FL0802 without transformers, FL0803 for a directory that holds no such model.
    """
    transformers = require_transformers()
    if not (path / "config.json").is_file():
        raise NOT_A_MODEL_DIRECTORY.error(
            where=str(path), found="no config.json", expected="config.json and the weights"
        )
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype or "float32"), local_files_only=True
        )
    except Exception as error:  # whatever transformers trips over in somebody's files
        raise NOT_A_MODEL_DIRECTORY.error(where=str(path), found=first_line(error)) from error
    return cast("nn.Module", model).eval(), _tokenizer(transformers, path)


def require_transformers() -> ModuleType:
    """The transformers package, without its progress bars.

    Raises:
        LoadError: FL0802, where it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise missing("transformers", "transformers") from None
    transformers.utils.logging.disable_progress_bar()
    return transformers


def missing(package: str, requirement: str) -> Exception:
    """The diagnostic for a package that is not installed."""
    return MISSING_PACKAGE.error(package, hint=f"pip install {requirement}")


def first_line(error: BaseException) -> str:
    """What an error says, kept to one line of readable length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    text = text if len(text) <= 200 else f"{text[:197]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _tokenizer(transformers: ModuleType, path: Path) -> Tokenizer | None:
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if not any((path / name).is_file() for name in names):
        return None
    try:
        loaded: Any = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:
        raise NOT_A_MODEL_DIRECTORY.error(
            where=str(path), found=f"a tokenizer that cannot be read: {first_line(error)}"
        ) from error
    return cast("Tokenizer", loaded)
