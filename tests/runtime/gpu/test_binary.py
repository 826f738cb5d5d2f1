"""What is read from machine code: a stack that a kernel asks for is no spill."""

from __future__ import annotations

from fuseline.runtime.gpu.binary import arrays

PTX = """
.visible .entry pointwise(
{
	.local .align 4 .b8 	__local_depot0[28];
	.reg .b32 	%r<9>;
	.local .align 16 .b8 	other[8];
"""


def test_arrays_of_a_kernel_are_counted_in_units_of_the_stack() -> None:
    assert arrays(PTX) == 40
    assert arrays(PTX.replace(".local", ".shared")) == 0
