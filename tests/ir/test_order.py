"""The order of ops: the same as a list's under any edits, with places and snapshots that hold."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fuseline.ir.order import Order

EDITS = st.lists(st.tuples(st.sampled_from(["insert", "remove", "append"]), st.integers(0, 99)))


@given(EDITS)
@settings(max_examples=200, derandomize=True, deadline=None)
def test_edits_do_what_they_do_to_a_list(edits: list[tuple[str, int]]) -> None:
    items = list(range(5))
    order = Order(items)
    fresh = 100
    for kind, number in edits:
        if kind == "append" or not items:
            order.append(fresh)
            items.append(fresh)
        elif kind == "insert":
            place = number % len(items)
            order.insert(items[place], [fresh, fresh + 1, fresh + 2])
            items[place:place] = [fresh, fresh + 1, fresh + 2]
        else:
            order.remove(items.pop(number % len(items)))
        fresh += 3
    assert list(order) == items
    assert [order[item] for item in items] == list(range(len(items)))
    assert len(order) == len(items)
    assert -1 not in order


def test_insertions_at_one_place_run_out_of_floats_and_go_on() -> None:
    order = Order(["first", "last"])
    for number in range(2000):
        order.insert("last", [str(number)])
    assert list(order) == ["first", *map(str, range(2000)), "last"]
    for number in range(2000):
        order.insert("first", [f"a{number}"])
    assert order["last"] == 4001


def test_snapshots_stay_as_they_were() -> None:
    order = Order([1, 2, 3])
    before = order.items_in_order
    order.remove(2)
    order.insert(3, [4])
    assert list(before) == [1, 2, 3]
    assert list(order.items_in_order) == [1, 4, 3]
