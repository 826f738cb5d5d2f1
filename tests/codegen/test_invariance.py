"""What says of itself that it is batch invariant, and what does not."""

from __future__ import annotations

import pytest

from fuseline.codegen.invariance import varying, why_reference_varies
from fuseline.codegen.kernel import KernelTemplate
from fuseline.codegen.library import LibraryKernel, ReferenceKernel
from fuseline.codegen.lower import emit
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from tests.codegen.test_templates import KINDS


@pytest.mark.parametrize("cls", KINDS, ids=lambda c: f"{c.__module__}.{c.__name__}")
def test_every_family_says_whether_it_is_batch_invariant(cls: type[KernelTemplate]) -> None:
    said = cls.varies is not KernelTemplate.varies
    assert said or cls.why_varies is not KernelTemplate.why_varies


def test_libraries_are_not() -> None:
    assert "number of rows" in LibraryKernel("linear").why_varies()
    assert "number of rows" in ReferenceKernel("it is faster").why_varies()


REFERENCES = {
    "%y = matmul %x, %z": False,
    "%y = softmax %x {axis = 0}": False,
    "%y = exp %x": False,
    "%y = add %x, %x": True,
    "%y = sum %n {axes = (0,)}": True,
    "%y, %i = sort %x {axis = 0}": True,
}


@pytest.mark.parametrize("text", REFERENCES)
def test_references(text: str) -> None:
    """Torch's arithmetic that is rounded once, or not at all, is."""
    func = parse_func(
        f"func @f(%x: f32[4, 3], %z: f32[3, 5], %n: i64[4, 3]) {{ {text}  return %y }}"
    )
    assert (why_reference_varies(func.ops[-1]) == "") is REFERENCES[text]


CALLS = {
    "scatter.src args = ($0, 0, $1, $2), kwargs = ()": "",
    "scatter.value args = ($0, 0, $1, 1.5), kwargs = ()": "",
    'scatter.reduce args = ($0, 0, $1, $2), kwargs = (("reduce", "add"),)': "order of its own",
    'scatter.value_reduce args = ($0, 0, $1, 1.5), kwargs = (("reduce", "multiply"),)': (
        "order of its own"
    ),
    "add.Tensor args = ($0, $2), kwargs = ()": "",
    'add.Tensor args = ($0, $2), kwargs = (("alpha", 1),)': "",
    'add.Tensor args = ($0, $2), kwargs = (("alpha", 0.5),)': "alpha",
    'sub.Tensor args = ($0, $2), kwargs = (("alpha", 2),)': "alpha",
    "add.Scalar args = ($0, 2, 0.5), kwargs = ()": "alpha",
    "sub.Scalar args = ($0, 2, 0.5), kwargs = ()": "alpha",
    "sub.Scalar args = ($0, 2, 1), kwargs = ()": "",
}


@pytest.mark.parametrize("text", CALLS)
def test_overloads_that_do_more_are_refused(text: str) -> None:
    """An operator of ATen that is exact by its name may add or multiply under another overload."""
    target, _, rest = text.partition(" ")
    func = parse_func(f"""func @f(%x: f32[4, 3], %n: i64[4, 3], %z: f32[4, 3]) {{
      %y = aten.call [%x, %n, %z] {{target = "aten.{target}", {rest}, types = (f32[4, 3],)}}
      return %y
    }}""")
    reason = why_reference_varies(func.ops[-1])
    assert CALLS[text] in reason
    assert bool(reason) is bool(CALLS[text])


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_a_product_has_no_one_form_without_the_option(backend: str) -> None:
    """And with it has one."""
    text = """func @f(%x: bf16[B, 64], %w: bf16[48, 64]) {
      %y = linear %x, %w
      return %y
    }"""
    for invariant in (False, True):
        func = parse_func(text)
        layouts = LayoutMap(func)
        layouts.batch_invariant = invariant
        emitted = emit(func, layouts, "cpu" if backend == "cpu" else "cuda")
        found = [each.reason for each in varying(emitted)]
        assert found == ([] if invariant else ["it has another form for other sizes"])
