"""Pipelines as text: ``canonicalize,raise-norms,fuse-pointwise{limit=8}``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, get_type_hints

from fuseline import errors
from fuseline.config import Config
from fuseline.passes import pipeline
from fuseline.passes.gate import NAME, NONE
from fuseline.passes.rewrite import PASSES, Pass

_PASS = re.compile(r"\s*([A-Za-z0-9_-]+)\s*(?:\{([^{}]*)\})?\s*(?:,|$)")
_BOOLS = {"true": True, "false": False}
_OWN = "a pass of your own needs --load FILE.py, which defines it"


def parse_pipeline(text: str) -> list[Pass]:
    """The passes that a text names, in order; options in braces, ``name=value``.

    Raises:
        UsageError: FL0104, for a name that is no pass; FL0106, for what is no pipeline, and for
            an option that its pass does not have, or a value that this cannot take.

    """
    found: list[Pass] = []
    at = 0
    while at < len(text) or not found:
        match = _PASS.match(text, at)
        if match is None:
            raise errors.BAD_PIPELINE.error(
                found=f"{text[at : at + 20]!r} at column {at + 1}",
                expected="names of passes between commas, each with {option=value, ...} if need be",
            )
        found.append(_made(pass_named(match[1], "a pipeline", hint=_OWN), match[2] or ""))
        at = match.end()
    return found


def format_pipeline(passes: Iterable[Pass]) -> str:
    """What `parse_pipeline` reads."""
    return ",".join(map(str, passes))


def pass_named(name: str, where: str, *, hint: str | None = None) -> type[Pass]:
    """The pass of a name; ``hint`` says what to do where there is none.

    Raises:
        UsageError: FL0104, if there is none.

    """
    assert pipeline.default_pipeline, "importing the pipeline registers its passes"
    if name not in PASSES:
        near = get_close_matches(name, PASSES, n=1)
        expected = near[0] if near else f"one of {', '.join(sorted(PASSES))}"
        raise errors.UNKNOWN_PASS.error(name, where=where, expected=expected, hint=hint)
    return PASSES[name]


def check_chosen(config: Config) -> None:
    """Hold what the options say of passes and of single rewrites to passes that there are.

    Raises:
        UsageError: FL0101, for a name that can be no rewrite's; FL0104, for an unknown pass.

    """
    for name in config.disable:
        pass_named(name, "the option disable")
    _check_names("skip_rewrites", config.skip_rewrites)
    _check_names("only_rewrites", config.only_rewrites)


def _check_names(option: str, names: Iterable[str]) -> None:
    """Hold the names of rewrites that an option has to their form, and to passes that there are.

    Raises:
        UsageError: FL0101, for one that can be no rewrite's; FL0104, for a pass that there is not.

    """
    for name in names:
        if name == NONE:
            continue
        found = NAME.fullmatch(name)
        if found is None:
            expected = "names such as fuse-qk-norm@layers.3.attn#1, as bisect prints them"
            raise errors.INVALID_OPTION.error(option, found=repr(name), expected=expected)
        pass_named(found[1], f"the option {option}")


def _made(cls: type[Pass], text: str) -> Pass:
    types = _option_types(cls)
    options: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        word, equals, value = (part.strip() for part in item.partition("="))
        name = word.replace("-", "_")
        if name not in types:
            has = ", ".join(f"{n.replace('_', '-')}=..." for n in types) or "no options"
            raise errors.BAD_PIPELINE.error(cls.name, found=f"the option {word}", expected=has)
        options[name] = _value(cls, word, types[name], value if equals else "")
    return cls(**options)


def _option_types(cls: type[Pass]) -> Mapping[str, Any]:
    if not dataclasses.is_dataclass(cls):
        return {}
    types = get_type_hints(cls)
    return {field.name: types[field.name] for field in dataclasses.fields(cls)}


def _value(cls: type[Pass], word: str, kind: Any, text: str) -> Any:
    try:
        return _BOOLS[text] if kind is bool else kind(text)
    except (KeyError, ValueError, TypeError):
        expected = "true or false" if kind is bool else f"a value of type {kind.__name__}"
        found = f"{word}={text}"
        raise errors.BAD_PIPELINE.error(cls.name, found=found, expected=expected) from None


__all__ = ["check_chosen", "format_pipeline", "parse_pipeline", "pass_named"]
