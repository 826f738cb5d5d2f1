"""What a report says of ops that are done in one form for some sizes, and in another for others."""

from __future__ import annotations

from fuseline.codegen.forms import Form, When, described
from fuseline.ir.types import symbol


def queries(words: str) -> Form:
    return Form("attention", words, "queries")


def test_one_form_for_every_size() -> None:
    assert described([(queries("absorbed"), None)] * 3) == {"attention": "absorbed"}


def test_forms_by_size_in_order_whatever_the_order_of_launches() -> None:
    size = symbol("S")
    launches: list[tuple[Form | None, When]] = [
        (queries("expanded"), (size, 25, None)),
        (queries("absorbed"), (size, 0, 24)),
        (queries("absorbed"), (size, 0, 24)),
        (None, None),
    ]
    assert described(launches) == {"attention": "absorbed up to 24 queries, expanded beyond"}


def test_ranges_of_one_form_are_one() -> None:
    size = symbol("S")
    streamed, blocks = (Form("product", words, "tokens") for words in ("streamed", "in blocks"))
    launches = [(streamed, (size, 0, 1)), (streamed, (size, 2, 16)), (blocks, (size, 17, 64))]
    assert described(launches) == {"product": "streamed up to 16 tokens, in blocks up to 64"}


def test_nothing_where_no_launch_has_a_form() -> None:
    assert described([(None, None)]) == {}
