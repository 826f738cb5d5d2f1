"""Artifacts whose digests are right and whose contents are not: loading says what is wrong."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fuseline
from fuseline.artifact import natives, weights
from fuseline.artifact.archive import Archive
from fuseline.artifact.check_program import check_program
from fuseline.artifact.codec import MalformedError
from fuseline.artifact.manifest import CudaKernel, Manifest, Target
from fuseline.artifact.program import ProgramFile
from fuseline.errors import ArtifactError, DeviceError
from fuseline.runtime.plan import NativeStep
from tests.artifact.mutate import Good
from tests.artifact.small import Small, shared

Change = Callable[[Any], object]


@pytest.fixture
def good() -> Good:
    return Good(shared())


def rewritten(good: Good, tmp: Path, change: Change, ending: str = ".json") -> Path:
    """The file with another program, or another manifest."""
    path = tmp / "changed.fuse"
    if ending == "manifest":
        about = json.loads(json.dumps(good.manifest))
        change(about)
        path.write_bytes(good.with_members({}, about))
        return path
    name = next(n for n in good.members if n.startswith("programs/") and n.endswith(ending))
    value = json.loads(good.members[name])
    change(value)
    path.write_bytes(good.with_members({name: json.dumps(value).encode()}))
    return path


def put(value: Any, where: str, new: object) -> None:
    """Set what a path such as ``plan.steps.0.symbol`` leads to."""
    *steps, last = where.split(".")
    for step in steps:
        value = value[int(step)] if step.isdigit() else value[step]
    value[int(last) if last.isdigit() else last] = new


def test_the_good_one_runs(good: Good, tmp_path: Path) -> None:
    """What the tests below change is right before."""
    model = fuseline.load(rewritten(good, tmp_path, lambda program: None))
    x = torch.randn(5, 16)
    expected, found = Small()(x), model(x)
    torch.testing.assert_close(found["y"], expected["y"])
    assert found["order"].tolist() == expected["order"].tolist()
    assert found["count"].tolist() == [1.0] * 4


PROGRAMS: dict[str, tuple[str, object, str]] = {
    "a buffer that is not there": ("plan.steps.0.buffers.0", [99, 0], "buffer 99 of"),
    "a negative buffer": ("plan.steps.0.buffers.0", [-2, 0], "buffer -2 of"),
    "a view of none": ("plan.returns.0.buffer", 99, "buffer 99 of"),
    "strides": ("plan.returns.0.strides", [1], "2 dims and 1 strides"),
    "dims": ("plan.returns.0.shape", [1] * 65, "65 dims"),
    "an argument": ("plan.buffers.0.arg", 99, "argument 99 of"),
    "an argument last": ("plan.buffers.12.kind", "arg", "a buffer of an argument behind others"),
    "a symbol's place": ("plan.symbols", {"B": [99, 0]}, "argument 99 of"),
    "a symbol's dim": ("plan.symbols", {"B": [4, 2]}, "dim 2 of 2"),
    "a symbol nobody shows": ("plan.symbols", {"B": [4, 0], "z": [4, 0]}, "no argument shows"),
    "a word of Python": ("plan.symbols", {"lambda": [4, 0]}, "is no name of a size"),
    "the workers": ("plan.symbols", {"num_workers": [4, 0]}, "is no name of a size"),
    "code": ("plan.buffers.6.nbytes", "__import__('os').getpid()", "is no size"),
    "a tower": ("plan.buffers.6.nbytes", "((((B**8)**8)**8)**8)**8", "is no size"),
    "an unknown size": ("plan.buffers.6.nbytes", "64*s78", "is no size"),
    "too many expressions": (
        "plan.steps.0.dims",
        [f"B + {i}{'0' * 1000}" for i in range(1100)],
        "more expressions than a program has",
    ),
    "a negative size": ("plan.args.0.shape", [-(2**62)], "a size of -"),
    "a weight that is a number": ("plan.args.0.kind", "int", "that is no tensor"),
    "a group of others": ("plan.packed", [[4]], "a packed argument that is no weight"),
    "many groups": ("plan.packed", [[0, 1]] * 9, "packed more than 8 times"),
    "a symbol of the linker": ("plan.steps.0.symbol", "a\0b", "a kernel of the name"),
    "an attribute of Python": ("plan.steps.0.symbol", "__class__", "a kernel of the name"),
    "too few leaves": ("takes.children.0.children", [], "leaves of a call"),
    "a call of another form": ("takes.kind", "list", "a call that takes"),
    "names beside places": ("takes.children.1.kind", "names", "a call that takes"),
    "names without leaves": (
        "takes.children",
        [
            {"is": "Tree", "kind": "tuple", "keys": [], "children": [], "value": None},
            {"is": "Tree", "kind": "names", "keys": ["x"], "children": [], "value": None},
        ],
        "1 keys for 0 children",
    ),
    "keys of one name": ("gives.keys", ["y", "y", "order"], "keys of the same name"),
    "too few keys": ("gives.keys", ["y"], "1 keys for 3 children"),
    "steps of nobody": ("owners", [0], "1 owners of steps for"),
    "a result": ("returns.0.result", 9, "result 9 of 3"),
    "growth": (
        "plan.pads",
        {"B": {"is": "PadRule", "args": [], "returns": [], "limits": ["zz"]}},
        "'zz' is no size",
    ),
    "growth of nothing": (
        "plan.pads",
        {"q": {"is": "PadRule", "args": [], "returns": [], "limits": []}},
        "no size 'q' that could grow",
    ),
    "a count": (
        "plan.variants",
        [{"is": "VariantSpec", "name": "n", "symbol": "B", "most": 2**40, "args": []}],
        "a count 'B' of at most",
    ),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_a_program_that_does_not_fit_together(case: str, good: Good, tmp_path: Path) -> None:
    where, new, said = PROGRAMS[case]
    path = rewritten(good, tmp_path, lambda program: put(program, where, new))
    with pytest.raises(ArtifactError, match=f"FL1102.*{said}"):
        fuseline.load(path)


def step(program: Any, kind: str) -> Any:
    return next(s for s in program["plan"]["steps"] if s["is"] == kind)


def test_a_result_of_torch_that_nobody_makes(good: Good, tmp_path: Path) -> None:
    """It has no memory: a kernel would get a null pointer."""

    def change(program: Any) -> None:
        steps = program["plan"]["steps"]
        steps.remove(step(program, "HostOp"))

    with pytest.raises(ArtifactError, match=r"FL1102.*is read before it is written"):
        fuseline.load(rewritten(good, tmp_path, change))


def test_a_step_of_torch_that_takes_the_place_of_an_argument(good: Good, tmp_path: Path) -> None:
    def change(program: Any) -> None:
        step(program, "HostOp")["results"][0]["buffer"] = 0

    with pytest.raises(ArtifactError, match=r"FL1102.*writes arg"):
        fuseline.load(rewritten(good, tmp_path, change))


def test_an_op_of_thousands_of_steps(good: Good, tmp_path: Path) -> None:
    """Whoever shows what runs for which sizes looks at each of them for each of them."""

    def change(program: Any) -> None:
        native = step(program, "NativeStep")
        program["plan"]["steps"] = [*program["plan"]["steps"], *[native] * 3000]
        program["owners"] += [0] * 3000

    with pytest.raises(ArtifactError, match=r"FL1102.*more steps of one op than any has"):
        fuseline.load(rewritten(good, tmp_path, change))


def test_an_op_that_the_func_lacks(good: Good, tmp_path: Path) -> None:
    def change(program: Any) -> None:
        step(program, "HostOp")["op"] = 1000

    with pytest.raises(ArtifactError, match=r"FL1102.*ops that lacks one"):
        fuseline.load(rewritten(good, tmp_path, change))


@pytest.mark.parametrize(
    ("name", "attributes", "said"),
    [
        ("system", {}, "no library function 'system'"),
        ("linear", {"columns": 1}, "unexpected keyword"),
        ("topk", {}, "missing"),
        ("linear", {"rows": [1]}, "not bool or int or float or str or NoneType"),
    ],
)
def test_library_calls(name: str, attributes: Any, said: str, good: Good, tmp_path: Path) -> None:
    call: dict[str, object] = {
        "is": "LibraryStep",
        "name": name,
        "operands": [],
        "results": [],
        "label": "",
    }
    call |= {"attributes": attributes, "when": None, "scratch": 0, "where": ""}

    def change(program: Any) -> None:
        program["plan"]["steps"].append(call)

    with pytest.raises(ArtifactError, match=f"FL1102.*{said}"):
        fuseline.load(rewritten(good, tmp_path, change))


BOUNDS: dict[str, tuple[str, object, str]] = {
    "an offset behind its buffer": ("plan.steps.0.buffers.0", [5, "64*B + 1"], "at byte 321"),
    "an offset before it": ("plan.steps.0.buffers.0", [5, "B - 6"], "at byte -1"),
    "a view beyond its buffer": ("plan.returns.0.shape", ["B + 1", 16], "to byte 384"),
    "a view of a negative size": ("plan.returns.0.shape", ["B - 6", 16], "of sizes"),
    "a view between elements": ("plan.returns.0.offset", 2, "a tensor at byte 2"),
    "a buffer of less than nothing": ("plan.buffers.6.nbytes", "B - 6", "of -1 bytes"),
    "a size without a value": ("plan.buffers.6.nbytes", "64*B // (B - 5)", "without a value"),
    "a number without an end": ("plan.steps.0.dims", [f"B**8*{10**15}"], "with a size of"),
}


@pytest.mark.parametrize("case", BOUNDS)
def test_what_depends_on_sizes_is_checked_in_a_call(case: str, good: Good, tmp_path: Path) -> None:
    """Nothing native runs before: the first step would write."""
    where, new, said = BOUNDS[case]
    model = fuseline.load(rewritten(good, tmp_path, lambda program: put(program, where, new)))
    before = {name: tensor.clone() for name, tensor in model.main.state.items()}
    with pytest.raises(ArtifactError, match=f"FL1102.*{said}"):
        model(torch.randn(5, 16))
    for name, tensor in model.main.state.items():
        assert torch.equal(tensor, before[name])


def test_more_memory_than_there_is(good: Good, tmp_path: Path) -> None:
    path = rewritten(good, tmp_path, lambda p: put(p, "plan.buffers.6.nbytes", f"B*{2**50}"))
    model = fuseline.load(path)
    with pytest.raises(DeviceError, match="FL1010"):
        model(torch.randn(5, 16))


MANIFESTS: dict[str, tuple[str, object, str]] = {
    "another schema": ("schema", 1, "FL1104"),
    "a schema that is true": ("schema", True, "FL1102"),
    "no program": ("programs", [], "FL1102.*without a program"),
    "a program twice": ("programs", ["main", "main"], "FL1102.*programs of the same name"),
    "a program without a member": ("targets.0.programs", {}, "FL1102.*other programs than"),
    "a member that is not there": ("targets.0.ir", {"main": "x"}, "FL1102.*no member 'x'"),
    "a library of none": ("targets.0.libraries", {"x": "y"}, "FL1102.*libraries of other programs"),
    "no library": ("targets.0.libraries", {}, "FL1102.*kernels, and no library with them"),
    "a target of many digits": ("targets.0.name", "sm_" + "9" * 5000, "FL1102.*a target"),
    "a target for GPUs": ("targets.0.name", "sm_90", "FL1102.*nothing that launches its kernels"),
    "weights nowhere": ("weights.member", None, "FL1102.*or in neither"),
    "weights twice": (
        "weights.file",
        ["w", {"is": "Member", "sha256": "0" * 64, "size": 1}],
        "FL1102.*in a member and beside it",
    ),
    "a runner that is not there": ("native.0.runner", "x.so", "FL1102.*no member 'x.so'"),
    "another machine": ("native.0.machine", "pdp11 unix", "FL1105"),
    "an order to a terminal": ("targets.0.machine", "\x1b[2J", r"FL1102.*a machine '\\x1b\[2J'"),
    "no feature": ("targets.0.features", ["\n"], "FL1102.*needs what no processor has"),
    "a size": ("members.weights~safetensors.size", 1, "FL1102.*bytes, not 1"),
    "no digest": ("members.weights~safetensors.sha256", "", "FL1102.*a digest that is none"),
    "a negative stride": ("weights.tensors.up.strides", [16, -1], "FL1102.*of sizes"),
    "beyond its memory": ("weights.tensors.up.offset", 1, "FL1102.*reaches beyond 'up'"),
    "memory of none": ("weights.tensors.up.memory", "x", "FL1102.*no memory 'x'"),
    "a size without an end": ("weights.tensors.up.shape", [2**62, 2**62], "FL1102.*of sizes"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_does_not_fit(case: str, good: Good, tmp_path: Path) -> None:
    where, new, said = MANIFESTS[case]

    def change(about: Any) -> None:
        *steps, last = (word.replace("~", ".") for word in where.split("."))
        for word in steps:
            about = about[int(word)] if word.isdigit() else about[word]
        about[last] = new

    with pytest.raises(ArtifactError, match=said):
        fuseline.load(rewritten(good, tmp_path, change, "manifest"))


def test_state_that_would_become_larger_than_the_file(good: Good, tmp_path: Path) -> None:
    """Repeating one element takes no memory, until it is copied."""

    def change(about: Any) -> None:
        large = {**about["weights"]["tensors"]["up"], "shape": [2**40], "strides": [0]}
        about["weights"]["tensors"]["count"] = large

    with pytest.raises(ArtifactError, match=r"FL1102.*'count' that is larger than its memory"):
        fuseline.load(rewritten(good, tmp_path, change, "manifest"))


def test_a_member_that_the_manifest_does_not_know(good: Good, tmp_path: Path) -> None:
    def change(about: Any) -> None:
        del about["members"]["weights.safetensors"]

    with pytest.raises(ArtifactError, match=r"FL1102.*only one list has: 'weights.safetensors'"):
        fuseline.load(rewritten(good, tmp_path, change, "manifest"))


def test_changed_code_is_never_loaded(good: Good, tmp_path: Path) -> None:
    """For each native member: one bit is another, and the loader of the system does not see it."""
    for name in (n for n in good.members if ".so" in n):
        path = tmp_path / "changed.fuse"
        at = good.data.index(good.members[name]) + len(good.members[name]) // 2
        path.write_bytes(good.data[:at] + bytes([good.data[at] ^ 1]) + good.data[at + 1 :])
        with pytest.raises(ArtifactError, match=f"FL1103.*{name}"):
            fuseline.load(path)


def test_nobody_writes_code_that_was_checked(good: Good) -> None:
    """The copies in memory that the system has loaded."""
    archive = Archive.open(shared())
    manifest = Manifest.of(archive)
    for name in (n for n in good.members if ".so" in n):
        path = natives.file_of(archive, manifest, name)
        assert path.parent == Path("/proc/self/fd")
        with pytest.raises(PermissionError):
            os.pwrite(int(path.name), b"x", 0)
        with pytest.raises(PermissionError), path.open("r+b") as file:
            file.truncate(1)


# -- weights ---------------------------------------------------------------------------------------


def safetensors(head: object, body: bytes = bytes(64)) -> memoryview:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return memoryview(bytearray(len(text).to_bytes(8, "little") + text + body))


def entry(shape: list[Any], begin: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_good_head() -> None:
    found = weights.read(safetensors({"a": entry([4, 3], 0, 48), "b": entry([4], 48, 64)}))
    assert {name: list(t.shape) for name, t in found.items()} == {"a": [4, 3], "b": [4]}


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ({"a": entry([8], 0, 32), "b": entry([8], 16, 48), "c": entry([4], 48, 64)}, "overlap"),
        ({"a": entry([8], 0, 32), "b": entry([4], 48, 64)}, "or do not meet"),
        ({"a": entry([8], 0, 32)}, "64 bytes for 32 of tensors"),
        ({"a": entry([32], 0, 128)}, "64 bytes for 128 of tensors"),
        ({"a": entry([2**40, 2**40], 0, 64)}, "a tensor of sizes"),
        ({"a": entry([2**59, 2**59, 0], 0, 0)}, "a tensor of sizes"),
        ({"a": entry([1] * 65, 0, 4)}, "of sizes"),
        ({"a": entry([16], 0, 63)}, "at bytes 0 to 63"),
        ({"a": entry([-1], 0, 64)}, "no size"),
        ({"a": entry([True], 0, 64)}, "no size"),
        ({"a": entry([16.0], 0, 64)}, "no size"),
        ({"a": entry([16], 0, 64, "F7")}, "F7"),
        ({"a": [1, 2]}, "TypeError"),
        ({"a": {"dtype": "F32"}}, "shape"),
        ({"\ud800": entry([16], 0, 64)}, "of sizes"),
        ([], "is no object"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1, "a": 2}', "one name twice"),
        (b"[" * 5000, "recursion"),
        ({"p": entry([3], 0, 3, "U8"), "a": entry([15], 3, 63), "q": entry([1], 63, 64, "U8")},
         "at an address"),
    ],
)  # fmt: skip
def test_heads_that_are_refused(head: object, said: str) -> None:
    with pytest.raises(MalformedError, match=said):
        weights.read(safetensors(head))


@pytest.mark.parametrize("size", [0, 7, 2**63, 2**64 - 1, 65, 1])
def test_sizes_of_heads(size: int) -> None:
    data = bytearray(safetensors({"a": entry([16], 0, 64)}))
    data[:8] = size.to_bytes(8, "little")
    with pytest.raises(MalformedError):
        weights.read(memoryview(data))
    with pytest.raises(MalformedError, match="less than 8 bytes"):
        weights.read(memoryview(bytearray(7)))


def test_a_million_tensors_are_too_many() -> None:
    head = b"{" + b",".join(b'"%d":0' % i for i in range(1_000_000)) + b"}"
    with pytest.raises(MalformedError, match="1000000 tensors"):
        weights.read(safetensors(head))


# -- GPUs, without one -----------------------------------------------------------------------------


def kernel(*parameters: str, **others: Any) -> CudaKernel:
    given: dict[str, Any] = {"warps": 4, "shared_memory": 0, "scratch": 0, "scratch_pointers": 1}
    given |= {"cubin": "c", "ptx": None, "resources": {}, "waits": False, **others}
    return CudaKernel(parameters=parameters, **given)


def test_launches_give_what_kernels_take(good: Good) -> None:
    """What is launched with too few pointers would read what lies behind them."""
    name = next(n for n in good.members if n.startswith("programs/") and n.endswith(".json"))
    program = ProgramFile.of_json(json.loads(good.members[name]), name)
    calls = {s.symbol: s for s in program.plan.steps if isinstance(s, NativeStep)}

    def target(pointers: int, sizes: int) -> Target:
        """Kernels that take so many more than they are given; the last pointer is Triton's own."""
        kernels = {
            symbol: kernel(
                *["*fp32"] * (len(step.buffers) + pointers),
                *["i64"] * (len(step.dims) + sizes),
                "*i8",
            )
            for symbol, step in calls.items()
        }
        return Target("sm_90", "", "", (), {}, {}, {}, kernels, {})

    check_program(program, target(0, 0))
    with pytest.raises(MalformedError, match="buffers of"):
        check_program(program, target(1, 0))
    with pytest.raises(MalformedError, match="sizes of"):
        check_program(program, target(0, 1))
    with pytest.raises(MalformedError, match="no kernel"):
        check_program(program, Target("sm_90", "", "", (), {}, {}, {}, {}, {}))


@pytest.mark.parametrize(
    ("field", "value"),
    [("warps", 0), ("warps", 33), ("shared_memory", -1), ("shared_memory", 2**40),
     ("scratch", 2**40), ("scratch_pointers", 2), ("cubin", None)],
)  # fmt: skip
def test_what_kernels_may_ask_for(field: str, value: Any, good: Good) -> None:
    from fuseline.artifact.check import check_manifest
    from fuseline.artifact.codec import decode

    about = json.loads(json.dumps(good.manifest))
    about["targets"][0] |= {"name": "sm_90", "isa": ""}
    about["native"][0]["launcher"] = about["native"][0]["runner"]
    one = {"is": "CudaKernel", "cubin": about["native"][0]["runner"], "ptx": None, "warps": 4}
    one |= {"parameters": ["*i8"], "shared_memory": 0, "resources": {}, "waits": False}
    one |= {"scratch": 0, "scratch_pointers": 1}
    about["targets"][0]["kernels"] = {"k": one}
    sizes = {name: member["size"] for name, member in about["members"].items()}
    check_manifest(decode(Manifest, about), sizes)
    one[field] = value
    with pytest.raises(MalformedError, match="'k' with"):
        check_manifest(decode(Manifest, about), sizes)


def test_loading_imports_no_compiler(tmp_path: Path) -> None:
    """Of an artifact in which nothing runs by torch, the IR is not imported, either."""
    import subprocess

    code = (
        "import sys, fuseline; from fuseline.artifact.inspecting import Opened; from pathlib import"
        f" Path; Opened.of(Path({str(shared())!r})).facts(); bad = [m for m in sys.modules if"
        " m.startswith(('fuseline.ir', 'fuseline.codegen', 'fuseline.passes', 'fuseline.frontend',"
        " 'fuseline.compiler', 'triton', 'torch._dynamo', 'torch._inductor'))]; maps ="
        " open('/proc/self/maps').read(); assert not bad, bad; assert '.fuse' not in maps;"
        " assert 'memfd' not in maps"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
