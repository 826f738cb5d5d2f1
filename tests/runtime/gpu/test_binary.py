"""What is read from machine code, and by which tools; and what the cache has of it."""

from __future__ import annotations

import errno
import subprocess
from typing import Any

import pytest

from fuseline.errors import BuildError
from fuseline.runtime.gpu import binary
from fuseline.runtime.gpu.binary import (
    PARKED,
    TRIES,
    Binary,
    arrays,
    loop_spills,
    most_registers,
    tool,
)

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


CODE = """
.text.kernel:
        /*0010*/              STL [R1], R28 ;
.L_x_0:
        /*0020*/              HMMA.16816.F32.BF16 R24, R12, R16, R24 ;
.L_x_1:
        /*0030*/              LDL R5, [R1+0x4] ;
        /*0040*/         @!P0 BRA `(.L_x_1) ;
        /*0050*/              BRA.U !UP0, `(.L_x_0) ;
        /*0060*/         @P1  BRA `(.L_x_2) ;
        /*0070*/              LDL.LU R23, [R1] ;
.L_x_2:
        /*0080*/              EXIT ;
.L_x_3:
        /*0090*/              BRA `(.L_x_3);
"""


def test_spills_in_loops_are_told_from_those_around_them() -> None:
    """A branch forward is no loop, and what lies in two loops counts once."""
    assert loop_spills(CODE) == 1
    assert loop_spills(CODE.replace("LDL R5", "LDG R5")) == 0
    assert loop_spills(CODE.replace(".L_x_1", "$kernel$__internal_0$_div")) == 1
    assert loop_spills(CODE.replace("BRA `(.L_x_1)", "JMP `(.L_x_1)")) == 1


@pytest.mark.parametrize(
    "line",
    ['BRX R2 -0x40 (*"BRANCH_TARGETS .L_x_0"*)', "CALL.REL.NOINC `($k$_div)", "BRA `(.L_x_9)"],
)
def test_where_code_may_go_on_anywhere_all_spills_count(line: str) -> None:
    code = CODE.replace("BRA `(.L_x_2)", line)
    assert code != CODE
    assert loop_spills(code) == 3


@pytest.mark.parametrize(
    ("found", "spills"),
    [
        ({"spills": 0, "loop_spills": 0, "stack": 64}, False),
        ({"spills": 2, "loop_spills": 0, "stack": PARKED}, False),
        ({"spills": 2, "loop_spills": 0, "stack": 8, "registers": 128}, True),
        ({"spills": 2, "loop_spills": 0, "stack": PARKED + 8}, True),
        ({"spills": 2, "loop_spills": 1, "stack": 8}, True),
    ],
    ids=["stack of its own", "parked", "no registers left", "much", "in a loop"],
)
def test_a_few_bytes_around_a_loop_are_no_spills(found: dict[str, int], spills: bool) -> None:
    resources = {"registers": 40, **found}
    made = Binary("k", b"ELF", (), warps=16, shared_memory=0, resources=resources)
    assert made.spills == spills


@pytest.mark.parametrize(
    ("warps", "most"),
    [(1, 255), (8, 255), (9, 168), (12, 168), (14, 128), (16, 128), (20, 96), (24, 80), (28, 72)],
)
def test_the_most_registers_are_those_that_ptxas_gives(warps: int, most: int) -> None:
    assert most_registers(warps) == most


@pytest.mark.parametrize(
    ("number", "failures", "fails"),
    [(errno.EFAULT, TRIES - 1, False), (errno.EFAULT, TRIES, True), (errno.ENOENT, 1, True)],
)
def test_a_tool_is_started_again_where_its_name_was_lost(
    number: int, failures: int, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    run = tool("cuobjdump")
    left = [OSError(number, "no such thing")] * failures

    def start(command: list[str], **_: Any) -> Any:
        if left:
            raise left.pop()
        return subprocess.CompletedProcess(command, 0, "said", "")

    monkeypatch.setattr(subprocess, "run", start)
    if fails:
        with pytest.raises(OSError, match="no such thing"):
            run("x")
    else:
        assert run("x") == "said"


def test_a_tool_without_an_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary, "TOOL_SECONDS", 0.2)
    with pytest.raises(BuildError, match=r"FL0702.*sleep: found no answer in 0 s.*try again"):
        vars(binary)["_output"](["sleep", "20"])
