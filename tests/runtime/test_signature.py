"""Signatures: what fits gives the symbols' values, what does not is named, in C++ as in Python."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuseline.runtime.cache import Cache
from fuseline.runtime.native import ArgumentSpec, Mismatch, Runner, Signature
from fuseline.runtime.native.signature import DLPACK_CODES
from fuseline.runtime.toolchain import Toolchain

F32 = torch.float32


@pytest.fixture(params=["extension", "ctypes"])
def runner(request: pytest.FixtureRequest, built: Cache, toolchain: Toolchain) -> Runner:
    if request.param == "extension":
        made: Runner = request.getfixturevalue("extension")
        return made
    return Runner.open(built, toolchain, extension=False)


def mismatch(signature: Signature, arguments: Sequence[object]) -> Mismatch:
    number = signature.match(list(arguments))
    assert isinstance(number, int)
    return signature.mismatch(arguments, number)


def test_symbols_are_read_from_extents_strides_and_integers(runner: Runner) -> None:
    signature = runner.signature(
        [
            ArgumentSpec("x", F32, ("batch", "rows", 4)),
            ArgumentSpec("y", F32, ("rows", 4), strides=("pitch", 1)),
            ArgumentSpec("n", None, value="n"),
        ],
        {"n": (-9, 9), "pitch": (0, None), "rows": (1, 512), "batch": (0, 8)},
    )
    wide = torch.zeros(3, 7)[:, :4]
    assert signature.match([torch.zeros(2, 3, 4), wide, -5]) == (-5, 7, 3, 2)
    assert signature.match((torch.zeros(0, 3, 4), wide, 9)) == (9, 7, 3, 0)


def test_the_values_are_one_object_while_they_stay_the_same(extension: Runner) -> None:
    signature = extension.signature([ArgumentSpec("x", F32, ("n",))], {"n": (0, None)})
    first = signature.match([torch.zeros(5)])
    assert signature.match([torch.ones(5)]) is first
    assert signature.match([torch.ones(6)]) == (6,)
    assert signature.match([torch.ones(5)]) == (5,)


def test_one_symbol_has_one_value(runner: Runner) -> None:
    signature = runner.signature(
        [ArgumentSpec("x", F32, ("n", 2)), ArgumentSpec("y", F32, ("n",))], {"n": (1, None)}
    )
    assert signature.match([torch.zeros(3, 2), torch.zeros(3)]) == (3,)
    assert mismatch(signature, [torch.zeros(3, 2), torch.zeros(4)]) == Mismatch(
        "y", "torch.float32[4] on cpu", "torch.float32[n=3] contiguous on cpu"
    )


@pytest.mark.parametrize(
    ("actual", "found"),
    [
        (torch.zeros(3, 4, dtype=torch.float64), "torch.float64[3, 4] on cpu"),
        (torch.zeros(3, 5), "torch.float32[3, 5] on cpu"),
        (torch.zeros(3), "torch.float32[3] on cpu"),
        (torch.zeros(9, 4), "torch.float32[9, 4] on cpu"),
        (torch.zeros(4, 3).T, "torch.float32[3, 4] with strides [1, 3] on cpu"),
        (torch.zeros(3, 4, device="meta"), "torch.float32[3, 4] on meta"),
        (torch.eye(3, 4).to_sparse(), "torch.float32[3, 4] of layout torch.sparse_coo on cpu"),
        (5, "int 5"),
        (None, "NoneType"),
        ("text", "str"),
    ],
)
def test_what_does_not_fit_is_described(runner: Runner, actual: object, found: str) -> None:
    signature = runner.signature([ArgumentSpec("x", F32, ("n", 4))], {"n": (1, 8)})
    expected = "torch.float32[n in 1..8, 4] contiguous on cpu"
    assert mismatch(signature, [actual]) == Mismatch("x", found, expected)


def test_integers_are_checked(runner: Runner) -> None:
    spec = [ArgumentSpec("a", None, value=-7), ArgumentSpec("b", None)]
    signature = runner.signature(spec)
    assert signature.match([-7, 123]) == ()
    assert mismatch(signature, [7, 1]) == Mismatch("a", "int 7", "int -7")
    assert mismatch(signature, [-7, torch.zeros(1)]).argument == "b"
    assert mismatch(signature, [-7, 1.5]) == Mismatch("b", "float", "int any")


def test_the_number_of_arguments_is_checked(runner: Runner) -> None:
    signature = runner.signature([ArgumentSpec("x", F32, ())] * 2)
    x = torch.tensor(1.0)
    assert signature.match([x, x]) == ()
    assert signature.match([x]) == 1
    assert mismatch(signature, [x, x, x]) == Mismatch("the arguments", "3", "2")
    assert mismatch(signature, [x]) == Mismatch("the arguments", "1", "2")


def test_contiguity_is_torchs(runner: Runner) -> None:
    signature = runner.signature([ArgumentSpec("x", F32, (None, None, None))])
    contiguous = [
        torch.zeros(2, 3, 4),
        torch.zeros(2, 1, 4).transpose(0, 1),
        torch.zeros(2, 3, 0).transpose(0, 1),
        torch.zeros(4).as_strided((1, 1, 4), (7, 9, 1)),
    ]
    for x in contiguous:
        assert x.is_contiguous()
        assert signature.match([x]) == ()
    for x in (
        torch.zeros(2, 3, 4).mT,
        torch.zeros(2, 3, 5)[..., :4],
        torch.zeros(1).expand(2, 3, 4),
    ):
        assert not x.is_contiguous()
        assert signature.match([x]) == 0


def test_strides_of_short_extents_may_be_anything(runner: Runner) -> None:
    spec = ArgumentSpec("x", F32, ("rows", 4), strides=("pitch", 1))
    signature = runner.signature([spec], {"rows": (1, 9), "pitch": (4, 99)})
    assert signature.match([torch.zeros(4).as_strided((1, 4), (3, 1))]) == (1, 4)
    assert signature.match([torch.zeros(8).as_strided((2, 4), (3, 1))]) == 0


@pytest.mark.parametrize("dtype", DLPACK_CODES, ids=str)
def test_every_dtype_is_told_from_the_others(runner: Runner, dtype: torch.dtype) -> None:
    signature = runner.signature([ArgumentSpec("x", dtype, (2,))])
    fits = [other for other in DLPACK_CODES if signature.match([torch.zeros(2, dtype=other)]) == ()]
    assert fits == [dtype]


def test_a_dtype_without_a_code_is_matched_in_python(extension: Runner) -> None:
    signature = extension.signature([ArgumentSpec("x", torch.complex32, (2,))])
    with pytest.warns(UserWarning, match="ComplexHalf"):
        x = torch.zeros(2, dtype=torch.complex32)
    assert signature.match([x]) == ()


def test_parameters_fit(runner: Runner) -> None:
    signature = runner.signature([ArgumentSpec("w", F32, (3,))])
    assert signature.match([torch.nn.Parameter(torch.zeros(3))]) == ()


def test_symbols_and_their_sources_are_checked(runner: Runner) -> None:
    with pytest.raises(ValueError, match=r"no argument shows: \['n'\]"):
        runner.signature([ArgumentSpec("x", F32, (2,))], {"n": (0, 1)})
    with pytest.raises(ValueError, match=r"without a range.*\['n'\]"):
        runner.signature([ArgumentSpec("x", F32, ("n",))])
    with pytest.raises(ValueError, match="x: 1 dims, 2 strides"):
        runner.signature([ArgumentSpec("x", F32, (2,), strides=(1, 1))])


SIZES = st.sampled_from([None, 0, 1, 2, 3, "a", "b"])
SHAPES = st.lists(SIZES, max_size=3).map(tuple)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.int64])


@st.composite
def specs(draw: st.DrawFn) -> ArgumentSpec:
    if draw(st.booleans()) and draw(st.booleans()):
        return ArgumentSpec("i", None, value=draw(SIZES))
    shape = draw(SHAPES)
    strides = draw(st.tuples(*[st.sampled_from([None, 1, 2, 3, "a"]) for _ in shape]))
    layout = draw(st.sampled_from(["any", "contiguous", strides]))
    return ArgumentSpec("x", draw(DTYPES), shape, layout)  # pyright: ignore[reportArgumentType]


@st.composite
def values(draw: st.DrawFn) -> object:
    if draw(st.booleans()) and draw(st.booleans()):
        return draw(st.integers(-1, 3))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    x = torch.zeros(shape, dtype=draw(DTYPES))
    return x.mT if x.ndim > 1 and draw(st.booleans()) else x


@settings(max_examples=400, deadline=None)
@given(expected=st.lists(specs(), max_size=4), actual=st.lists(values(), max_size=4))
def test_the_extension_agrees_with_python(
    extension: Runner, expected: list[ArgumentSpec], actual: list[object]
) -> None:
    names = {
        size
        for spec in expected
        for size in (
            *spec.shape,
            spec.value,
            *(() if isinstance(spec.strides, str) else spec.strides),
        )
        if size in ("a", "b")
    }
    symbols = {str(name): (0, 2) if name == "a" else (1, None) for name in sorted(names, key=str)}
    native, plain = extension.signature(expected, symbols), Signature(expected, symbols)
    assert native.match(actual) == plain.match(actual)
