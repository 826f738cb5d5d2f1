"""A model from `module:function`: the user's code makes the model and its inputs."""

from __future__ import annotations

import importlib
import sys
import sysconfig
import traceback
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, cast

import torch

from fuseline.cli.models import LoadedModel
from fuseline.errors import BAD_MODEL_FUNCTION, FuselineError

EXPECTED = "a module or a function, then its inputs: a tuple of arguments, a dict, or both"


def load(name: str) -> LoadedModel:
    """Import the module (the current folder counts) and call the function.

    Raises:
        LoadError: FL0806, for what cannot be imported, called or understood.
    """
    module_name, _, function_name = name.partition(":")
    if not (module_name and function_name):
        raise BAD_MODEL_FUNCTION.error(name, expected="module:function")
    module = _import(name, module_name)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise BAD_MODEL_FUNCTION.error(
            name,
            where=str(module.__file__),
            found=f"no function {function_name}",
            expected=_functions_of(module),
        )
    try:
        made = function()
    except FuselineError:
        raise
    except Exception as error:
        raise _blame(name, error) from error
    return _understand(name, made)


def _functions_of(module: ModuleType) -> str:
    """The functions that a module defines itself, to choose from."""
    names = [
        name
        for name, value in vars(module).items()
        if isinstance(value, FunctionType) and value.__module__ == module.__name__
    ]
    public = sorted(name for name in names if not name.startswith("_"))
    return f"one of {', '.join(public)}" if public else "a function"


def _import(name: str, module_name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except FuselineError:
        raise
    except Exception as error:
        raise _blame(name, error) from error


def _blame(name: str, error: Exception) -> FuselineError:
    """Point at the last line of the user's own code that ran."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_users(f.filename)]
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None
    found = f"{type(error).__name__}: {error}"
    hint = "call it in Python to see the whole traceback"
    return BAD_MODEL_FUNCTION.error(name, where=where, found=found, hint=hint)


def _is_users(filename: str) -> bool:
    installed = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))
    return filename != __file__ and not filename.startswith(("<", *installed))


def _understand(name: str, made: object) -> LoadedModel:
    kind = type(made).__name__
    items: list[Any] = list(cast("tuple[Any, ...]", made)) if isinstance(made, tuple) else []
    inputs = _inputs(items[1:])
    if inputs is None or not callable(items[0]):
        kinds = ", ".join(type(item).__name__ for item in items)
        found = f"({kinds})" if items else kind
        raise BAD_MODEL_FUNCTION.error(name, found=found, expected=EXPECTED)
    return LoadedModel(name, items[0], *inputs)


def _inputs(given: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Positional and named inputs, from what stands after the model; None if they are neither."""
    if len(given) == 2 and isinstance(given[0], tuple) and isinstance(given[1], dict):
        return cast("Any", given[0]), cast("Any", given[1])
    only = cast("object", given[0] if len(given) == 1 else None)
    if isinstance(only, dict):
        return (), cast("dict[str, Any]", only)
    if isinstance(only, tuple | list):
        return tuple(cast("list[Any]", only)), {}
    return ((only,), {}) if isinstance(only, torch.Tensor) else None
