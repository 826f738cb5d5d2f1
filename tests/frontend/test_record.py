from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fuseline.frontend.record import NotSimple, Recorder, Recording, Result, Slot
from tests.frontend.helpers import one

aten: Any = torch.ops.aten


class Session:
    """A recorder, and fake tensors for it."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode()
        self.recorder = Recorder(self.mode)

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        with self.mode:
            return torch.empty(shape, dtype=dtype)

    def record(self, target: Any, *args: Any, **kwargs: Any) -> Recording:
        tensors = {id(a): a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)}
        return self.recorder.record(target, args, kwargs, list(tensors.values()))


@pytest.fixture
def session() -> Session:
    return Session()


def targets(recording: Recording) -> list[Any]:
    return [call.target for call in recording.calls]


def test_linear_and_attention_stay_whole(session: Session) -> None:
    x, w = session.tensor(2, 3, 4), session.tensor(5, 4)
    assert targets(session.record(F.linear, x, w)) == [aten.linear.default]
    q = session.tensor(1, 2, 3, 4)
    attention = F.scaled_dot_product_attention
    assert targets(session.record(attention, q, q, q)) == [
        aten.scaled_dot_product_attention.default
    ]


def test_composites_that_the_importer_does_not_name_are_taken_apart(session: Session) -> None:
    x, w = session.tensor(2, 3, 4), session.tensor(5, 4)
    einsum = session.record(torch.einsum, "bsd,ed->bse", x, w)
    assert aten.einsum.default not in targets(einsum)
    assert aten.bmm.default in targets(einsum)


def test_reshape_is_a_view_or_a_copy_by_the_strides(session: Session) -> None:
    x = session.tensor(2, 3, 4)
    assert targets(session.record("reshape", x, 6, 4)) == [aten.view.default]
    turned = x.transpose(0, 1)
    copied = targets(session.record("reshape", turned, 6, 4))
    assert copied == [aten.clone.default, aten._unsafe_view.default]


def test_a_call_that_does_nothing_gives_its_argument(session: Session) -> None:
    x = session.tensor(2, 3)
    recording = session.record("to", x, torch.float32)
    assert recording.calls == []
    assert recording.value == Slot(0)


def test_equal_calls_are_traced_once(session: Session) -> None:
    first = session.record("float", session.tensor(2, 3, dtype=torch.bfloat16))
    second = session.record("float", session.tensor(2, 3, dtype=torch.bfloat16))
    assert second is first
    assert (session.recorder.traced, session.recorder.reused) == (1, 1)
    assert first.value == Result(0, 0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((2, 3), (2, 4)),
        ((1,), (True,)),
        ((1,), (1.0,)),
        ((0.0,), (-0.0,)),
    ],
    ids=["sizes", "bool", "float", "sign"],
)
def test_different_calls_are_told_apart(
    session: Session, one: tuple[Any, ...], other: tuple[Any, ...]
) -> None:
    if len(one) == 2:
        session.record("neg", session.tensor(*one))
        session.record("neg", session.tensor(*other))
    else:
        x = session.tensor(2, 3)
        session.record("mul", x, *one)
        session.record("mul", x, *other)
    assert session.recorder.reused == 0


def test_strides_are_part_of_what_tells_calls_apart(session: Session) -> None:
    session.record("contiguous", session.tensor(3, 3))
    turned = session.record("contiguous", session.tensor(3, 3).t())
    assert targets(turned) == [aten.clone.default]


def test_the_same_tensor_twice_is_one_slot(session: Session) -> None:
    x = session.tensor(2, 3)
    assert session.record(torch.add, x, x).calls[0].args == (Slot(0), Slot(0))
    y = session.tensor(2, 3)
    assert session.record(torch.add, x, y).calls[0].args == (Slot(0), Slot(1))


def test_a_write_comes_with_the_call_that_computes_it(session: Session) -> None:
    x, y = session.tensor(2, 3, dtype=torch.bfloat16), session.tensor(2, 3)
    (call,) = session.record("add_", x, y).calls
    assert call.functional is aten.add.Tensor
    assert call.contents is not None
    assert call.contents.dtype == torch.float32


def test_no_recording_of_a_write_that_has_no_functional_form(session: Session) -> None:
    x = session.tensor(2, 3)
    with pytest.raises(NotSimple, match="resize_"):
        session.record("resize_", x, (3, 3))


def test_no_recording_with_a_fake_tensor_from_elsewhere(session: Session) -> None:
    x, y = session.tensor(2, 3), session.tensor(2, 3)
    with pytest.raises(NotSimple, match="outside"):
        session.recorder.record(one(lambda a: a + y), (x,), {}, [x])
