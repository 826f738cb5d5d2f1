"""JSON that comes from files: what is taken, and what is not."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch

from fuseline.artifact.codec import GREATEST, MOST_NAME, MalformedError, decode, encode, parse
from fuseline.artifact.program import Constant
from fuseline.artifact.trees import Tree


@dataclass(frozen=True)
class Item:
    number: int
    pair: tuple[int, str]
    several: tuple[int | str, ...]
    named: Mapping[str, bool]
    dtype: torch.dtype
    inner: Item | None


ITEM = Item(3, (1, "a"), (1, "x", 2), {"k": True}, torch.bfloat16, None)


def test_what_is_written_is_read() -> None:
    item = Item(1, (0, ""), (), {}, torch.int8, ITEM)
    assert decode(Item, encode(item)) == item


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e308, -0.0, 2**62, True, None])
def test_numbers_that_json_has_no_word_for(value: float | None) -> None:
    text = json.dumps(encode(Constant(value)), allow_nan=False)
    found = decode(Constant, parse(text.encode())).value
    assert repr(found) == repr(value)
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"a":1,"a":2}', "an object with one name twice"),
        (b"[NaN]", "NaN is no number"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b"\xff\xfe[\0]\0", "can't decode byte"),
        (b"9" * 5000, "integer string conversion"),
        (b"[" * 100_000, "recursion"),
        (b'{"a":' * 100_000, "recursion"),
        (b"[1", "Expecting"),
        (b"", "Expecting"),
        (b"[" + b"0," * 5_000_000 + b"0]", "5000001 values"),
        (b" " * ((64 << 20) + 1), "bytes of JSON"),
    ],
    ids=["twice", "nan", "inf", "utf16", "digits", "deep", "deeper", "cut", "none", "many", "long"],
)
def test_texts_that_are_refused(text: bytes, said: str) -> None:
    with pytest.raises(MalformedError, match=said):
        parse(text)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("number", True, r"it\.number is True, not an integer"),
        ("number", 1.0, "not an integer"),
        ("number", GREATEST + 1, "not an integer of 64 bits"),
        ("number", -GREATEST - 1, "not an integer of 64 bits"),
        ("pair", [1], r"it\.pair is \[1\], not 2 items"),
        ("pair", ["a", 1], r"it\.pair\[0\] is 'a'"),
        ("several", [1, "x", None], r"it\.several\[2\] is None, not int or str"),
        ("several", {"0": 1}, "not a list"),
        ("named", {"k": 1}, r"it\.named\['k'\] is 1, not true or false"),
        ("named", {"\ud800": True}, "a text of at most"),
        ("named", {"x" * (MOST_NAME + 1): True}, "a text of at most"),
        ("named", [], "not an object"),
        ("dtype", "float8", "not an element type"),
        ("dtype", ["float32"], "not an element type"),
        ("inner", {"is": "Other"}, "not Item or NoneType"),
        ("inner", {"is": ["Item"]}, "not Item or NoneType"),
        ("inner", {}, "not Item or NoneType"),
    ],
)
def test_values_that_are_refused(field: str, value: object, said: str) -> None:
    with pytest.raises(MalformedError, match=said):
        decode(Item, {**encode(ITEM), field: value})


def test_no_field_may_lack_or_be_added() -> None:
    given = encode(ITEM)
    with pytest.raises(MalformedError, match="'more'"):
        decode(Item, {**given, "more": 1})
    del given["pair"]
    with pytest.raises(MalformedError, match="'pair'"):
        decode(Item, given)
    with pytest.raises(MalformedError, match="'other', 'pair'"):
        decode(Item, {**given, "other": 1})


def test_a_message_is_short_and_has_no_secrets_for_a_terminal() -> None:
    with pytest.raises(MalformedError) as caught:
        decode(Item, {**encode(ITEM), "number": "\x1b[2J" + "x" * 1_000_000})
    assert len(str(caught.value)) < 200
    assert "\x1b" not in str(caught.value)


def test_a_type_that_holds_itself() -> None:
    tree = Tree("tuple", (), (Tree(), Tree("list", (), (Tree(),))))
    assert decode(Tree, encode(tree)) == tree
    broken = encode(tree)
    broken["children"][1]["children"][0]["kind"] = "x"
    with pytest.raises(MalformedError, match=r"it\.children\[1\]\.children\[0\]\.kind is 'x'"):
        decode(Tree, broken)
