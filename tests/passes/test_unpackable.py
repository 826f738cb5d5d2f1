"""Which parameters may be packed beside others, in whatever shape they are read."""

from __future__ import annotations

import pytest

from fuseline.ir.text import parse_func
from fuseline.passes.merge_linears import unpackable

VIEW = "%v = reshape %w {shape = (2, 3, 4)}"


def reason(*lines: str, returned: str) -> str:
    """Why the value ``v`` (or ``w``) that the last lines read cannot be packed."""
    body = "\n".join(lines)
    func = parse_func(f"""func @f(%x: f32[6, 4], %w: f32[6, 4] = param "w") {{
      {body}
      return {returned}
    }}""")
    value = next((op.results[0] for op in func.ops if op.results[0].hint == "v"), func.args[1])
    return unpackable(func, value, "weight")


def test_a_parameter_in_another_shape() -> None:
    assert reason(VIEW, "%y = exp %v", returned="%y") == ""


@pytest.mark.parametrize(
    ("lines", "returned", "said"),
    [
        ([VIEW, "%y = exp %v", "%z = neg %v"], "%y, %z", "weight w is read 2 times"),
        ([VIEW, "%y = exp %v", "%z = neg %w"], "%y, %z", "weight w is read 2 times"),
        (
            [VIEW, "%u = reshape %w {shape = (24,)}", "%y = exp %v", "%z = neg %u"],
            "%y, %z",
            "weight w is read 2 times",
        ),
        (["%v = reshape %x {shape = (24,)}", "%y = exp %v"], "%y", "not from a parameter"),
    ],
)
def test_no_packing(lines: list[str], returned: str, said: str) -> None:
    assert said in reason(*lines, returned=returned)
