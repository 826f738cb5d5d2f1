"""Pipelines as text: read, written, and what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from fuseline.errors import UsageError
from fuseline.ir.core import Func
from fuseline.passes.canonicalize import Canonicalize
from fuseline.passes.pipeline import default_pipeline
from fuseline.passes.pipeline_text import format_pipeline, parse_pipeline
from fuseline.passes.rewrite import FuncPass


@dataclass(frozen=True)
class OptionsOfThisTest(FuncPass):
    """Has an option of each type."""

    most: int = 4
    far: float = 0.5
    whole: bool = True
    kind: str = "plain"

    def run(self, func: Func) -> None:
        """Does nothing."""


def test_the_default_pipelines_are_read_as_they_are_written() -> None:
    for passes in (default_pipeline(), default_pipeline(cache_latents=True, on_gpu=True)):
        assert parse_pipeline(format_pipeline(passes)) == passes


def test_options_are_read_by_type_and_written_again() -> None:
    text = "options-of-this-test{most=8, far=2.5, whole=false, kind=odd}"
    assert parse_pipeline(text) == [OptionsOfThisTest(8, 2.5, False, "odd")]
    assert format_pipeline(parse_pipeline(text)) == text
    assert parse_pipeline(f"canonicalize , {text}")[0] == Canonicalize()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "FL0106.*column 1"),
        ("cse,,dce", "FL0106.*column 5"),
        ("cse dce", "FL0106.*column 1"),
        ("cse{", "FL0106"),
        ("canonicalise", "FL0104.*expected canonicalize"),
        ("cse,of-my-own", "FL0104.*Hint: a pass of your own needs --load FILE.py"),
        ("cse{most=1}", "FL0106.*cse.*the option most, expected no options"),
        ("options-of-this-test{mist=1}", "FL0106.*the option mist.*most=..., far=..."),
        ("options-of-this-test{most=many}", "FL0106.*most=many.*a value of type int"),
        ("options-of-this-test{whole=1}", "FL0106.*whole=1.*true or false"),
        ("options-of-this-test{most}", "FL0106.*most="),
    ],
)
def test_what_is_wrong_is_told(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_pipeline(text)
