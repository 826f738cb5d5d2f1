"""The importer: shapes as dims, functions, what is refused, and what exporters spell out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from fuseline.errors import InputError, LoadError
from fuseline.frontend.onnx import NeedsInput, OnnxProgram, import_onnx
from fuseline.frontend.onnx.registry import REGISTRY, onnx_op
from fuseline.ir.types import Range, format_dim
from fuseline.ir.verify import verify
from fuseline.onnx_run import compile_onnx
from tests.onnx.models import assert_as_onnxruntime, by_onnxruntime, info, model, node
from tests.onnx.test_microsoft import seeded

_helper = cast("Any", helper)


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def misused() -> OnnxProgram:
    return import_onnx(model([node("Relu", "x", "y")], {"x": seeded(2, 3)}, ["y"]))


@pytest.mark.parametrize("given", [3, b"bytes", torch.nn.ReLU(), onnx.GraphProto(), None])
def test_what_is_no_model(given: Any) -> None:
    said = f"FL0820 .*found {type(given).__name__}, expected a ModelProto, or the path"
    with pytest.raises(LoadError, match=said):
        import_onnx(given)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"FL0820 .*absent.*No such file.*Hint: check the path"):
        import_onnx(str(tmp_path / "absent.onnx"))
    with pytest.raises(LoadError, match="FL0820 .*directory"):
        import_onnx(tmp_path)
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(LoadError, match=r"FL0820 .*empty\.onnx: found a model without a graph"):
        import_onnx(tmp_path / "empty.onnx")
    with pytest.raises(LoadError, match="FL0820 .*found a model without a graph"):
        import_onnx(onnx.ModelProto())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([torch.ones(2, 3)], "values: found list"),
        ({"x": [1.0]}, "x: found list, expected a tensor"),
        ({"z": torch.ones(2, 3)}, "z: found no such input, expected x"),
    ],
)
def test_wrong_values(values: Any, said: str) -> None:
    made = model([node("Relu", "x", "y")], {"x": seeded(2, 3)}, ["y"])
    with pytest.raises(InputError, match=f"FL0823 .*{said}"):
        import_onnx(made, values)


@pytest.mark.parametrize("given", [[torch.ones(2, 3)], torch.ones(2, 3), {"x": [1.0]}, {}])
def test_wrong_inputs(given: Any) -> None:
    program = misused()
    for run in (program.run, compile_onnx(program)):
        with pytest.raises(InputError, match="FL0823"):
            run(given)


def test_what_is_no_program() -> None:
    for given in (Path("model.onnx"), onnx.ModelProto()):
        with pytest.raises(LoadError, match="FL0820 .*expected an OnnxProgram. Hint: give"):
            compile_onnx(cast("Any", given))


@pytest.mark.parametrize("where", ["model", "function"])
def test_operator_sets_that_onnx_does_not_have(where: str) -> None:
    newest = int(cast("Any", onnx).defs.onnx_opset_version())
    x = {"x": seeded(2, 3)}
    body = _helper.make_function(
        *("here", "Twice", ["x"], ["y"], [node("Add", "x x", "y")]),
        [_helper.make_opsetid("", newest + (where == "function"))],
    )
    made = model(
        [node("Twice", "x", "y", "here")],
        x,
        ["y"],
        opset=newest + (where == "model"),
        functions=[body],
        domains=("here",),
    )
    said = f"found operator set {newest + 1}, expected at most {newest}, the newest that onnx "
    with pytest.raises(LoadError, match=f"FL0820 .*{said}{re.escape(onnx.__version__)} has"):
        import_onnx(made)


def test_data_beside_a_model_without_a_place(tmp_path: Path) -> None:
    x, weights = {"x": seeded(2, 3)}, {"w": seeded(3)}
    made = model([node("Add", "x w", "y")], x, ["y"], weights)
    cast("Any", onnx).save(
        *(made, tmp_path / "m.onnx"),
        save_as_external_data=True,
        location="w.data",
        size_threshold=0,
    )
    alone = cast("Any", onnx).load(tmp_path / "m.onnx", load_external_data=False)
    with pytest.raises(LoadError, match=r"FL0820 .*'w\.data'.*Hint: give the path of the model"):
        import_onnx(alone)


def shape_of(program: OnnxProgram) -> list[str]:
    return [format_dim(d) for d in program.func.returns[0].shape]


def names_of(program: OnnxProgram) -> list[str]:
    return [op.name for op in program.func.ops]


BATCHED = {"x": ("batch", "seq", 64)}


def test_sizes_are_computed_as_dims() -> None:
    """The heads of attention, as exporters of torch split them."""
    x = {"x": seeded(2, 5, 64)}
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "b", axis=0),
        node("Gather", "s one", "l", axis=0),
        node("Unsqueeze", "b axes", "b1"),
        node("Unsqueeze", "l axes", "l1"),
        node("Concat", "b1 l1 heads", "target", axis=0),
        node("Reshape", "x target", "h"),
        node("Transpose", "h", "y", perm=[0, 2, 1, 3]),
    ]
    weights = {
        "zero": torch.tensor(0),
        "one": torch.tensor(1),
        "axes": ints(0),
        "heads": ints(4, -1),
    }
    m = model(nodes, x, ["y"], weights, shapes=BATCHED)
    program = import_onnx(m)
    verify(program.func)
    assert shape_of(program) == ["batch", "4", "seq", "16"]
    assert names_of(program) == ["reshape", "permute"]
    assert_as_onnxruntime(m, x)


def test_causal_mask_of_a_size_that_a_run_gives() -> None:
    x = {"x": seeded(2, 5, 64)}
    nodes = [
        node("Shape", "x", "l", start=1, end=2),
        node("Concat", "l l", "square", axis=0),
        node("ConstantOfShape", "square", "ones", value=torch_proto(1.0)),
        node("Trilu", "ones", "y", upper=0),
    ]
    m = model(nodes, x, ["y"], shapes=BATCHED)
    assert shape_of(import_onnx(m)) == ["seq", "seq"]
    assert_as_onnxruntime(m, x)


def torch_proto(value: float) -> onnx.TensorProto:
    return _helper.make_tensor("value", TensorProto.FLOAT, [1], [value])


def test_range_and_arithmetic_on_sizes() -> None:
    """Past and present tokens: a range from one size to the sum of both."""
    x = {"x": seeded(2, 5, 64), "p": seeded(2, 3, 64)}
    nodes = [
        node("Shape", "p", "a", start=1, end=2),
        node("Shape", "x", "b", start=1, end=2),
        node("Squeeze", "a", "first"),
        node("Add", "a b", "sum"),
        node("Squeeze", "sum", "last"),
        node("Range", "first last one", "y"),
    ]
    shapes = {"x": ("batch", "seq", 64), "p": ("batch", "past", 64)}
    m = model(nodes, x, ["y"], {"one": torch.tensor(1)}, shapes=shapes)
    program = import_onnx(m)
    assert shape_of(program) == ["seq"]
    assert names_of(program) == ["iota"]
    assert_as_onnxruntime(m, x)


def test_a_table_bounds_the_sizes_that_read_it() -> None:
    """No kernel reads positions that the table does not have."""
    x = {"x": seeded(2, 5, 64)}
    nodes = [node("Shape", "x", "l", start=1, end=2), node("Slice", "table zero l zero", "y")]
    m = model(nodes, x, ["y"], {"table": seeded(8, 3), "zero": ints(0)}, shapes=BATCHED)
    program = import_onnx(m)
    assert program.func.symbols["seq"] == Range(0, 8)
    assert_as_onnxruntime(m, x)
    with pytest.raises(InputError, match="FL0823 .*seq is 9"):
        program.run({"x": seeded(2, 9, 64)})


def test_sizes_may_be_expressions_of_others() -> None:
    """Where all names in it are sizes of their own; else it is one more size."""
    x = {"x": seeded(1, 5), "m": seeded(1, 8)}
    for past, said in (("past", "past + seq"), (3, "d_past_seq")):
        shapes = {"x": ("batch", "seq"), "m": ("batch", "past + seq"), "p": ("batch", past)}
        given = x | {"p": seeded(1, 3)}
        m = model([node("ReduceSum", "m", "y")], given, ["y"], shapes=shapes)
        program = import_onnx(m)
        assert format_dim(program.func.args[1].shape[1]) == said
        torch.testing.assert_close(program.run(given), by_onnxruntime(m, given))


def test_a_shape_that_is_data_asks_for_it() -> None:
    x = {"x": seeded(2, 6), "s": ints(3, 4)}
    m = model([node("Reshape", "x s", "y")], x, ["y"])
    with pytest.raises(NeedsInput, match="FL0822 a shape is data: s in node the_Reshape") as caught:
        import_onnx(m)
    assert caught.value.inputs == {"s"}
    program = import_onnx(m, {"s": ints(3, 4)})
    assert program.run(x)["y"].shape == (3, 4)
    with pytest.raises(InputError, match="FL0823 .*s.*the one that it was imported with"):
        program.run({"x": x["x"], "s": ints(4, 3)})


def test_local_functions_are_inlined() -> None:
    """With attributes of a call, and a function within a function."""
    inner = _helper.make_function(
        "local", "Scaled", ["a"], ["b"], [_ref_node()],
        [_helper.make_opsetid("", 21)], ["alpha"],
    )  # fmt: skip
    twice = _helper.make_function(
        "local", "Twice", ["a"], ["c"],
        [node("Scaled", "a", "b", "local", alpha=0.25), node("Add", "b a", "c")],
        [_helper.make_opsetid("", 21), _helper.make_opsetid("local", 1)],
    )  # fmt: skip
    x = {"x": seeded(3, 5)}
    m = model(
        [node("Twice", "x", "y", "local")], x, ["y"], functions=[inner, twice], domains=["local"]
    )
    assert_as_onnxruntime(m, x)


def _ref_node() -> onnx.NodeProto:
    made = node("LeakyRelu", "a", "b")
    made.attribute.append(
        onnx.AttributeProto(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    )
    return made


def test_external_data(tmp_path: Path) -> None:
    x = {"x": seeded(3, 64)}
    m = model([node("MatMul", "x w", "y")], x, ["y"], {"w": seeded(64, 96)})
    wanted = by_onnxruntime(m, x)
    cast("Any", onnx).save_model(
        m, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=16, location="data.bin"
    )
    assert (tmp_path / "data.bin").stat().st_size >= 64 * 96 * 4
    found = import_onnx(tmp_path / "m.onnx").run(x)
    torch.testing.assert_close(found["y"], wanted["y"], atol=1e-5, rtol=1e-5)
    (tmp_path / "data.bin").write_bytes(b"short")
    with pytest.raises(LoadError, match="FL0820 .*initializer w"):
        import_onnx(tmp_path / "m.onnx")


def test_no_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\xff\xffnot a model")
    with pytest.raises(LoadError, match="FL0820"):
        import_onnx(tmp_path / "m.onnx")
    with pytest.raises(LoadError, match="FL0820"):
        import_onnx(tmp_path / "absent.onnx")


def _branch(name: str, op: str) -> Any:
    return _helper.make_graph(
        [node(op, "x", "out")], name, [], [_helper.make_empty_tensor_value_info("out")]
    )


def test_no_control_flow_that_data_decides() -> None:
    x = {"x": seeded(3), "c": torch.tensor(True)}
    made = node("If", "c", "y", then_branch=_branch("a", "Neg"), else_branch=_branch("b", "Abs"))
    with pytest.raises(LoadError) as caught:
        import_onnx(model([made], x, ["y"]))
    text = str(caught.value)
    for part in ("FL0821", "ai.onnx::If of version 21", "node the_If", "control flow"):
        assert part in text


def test_a_branch_that_sizes_decide_is_taken() -> None:
    x = {"x": seeded(3)}
    nodes = [
        node("Size", "x", "n"),
        node("Equal", "n three", "c"),
        node("If", "c", "y", then_branch=_branch("a", "Neg"), else_branch=_branch("b", "Abs")),
    ]
    m = model(nodes, x, ["y"], {"three": torch.tensor(3)})
    assert names_of(import_onnx(m)) == ["neg"]
    assert_as_onnxruntime(m, x)


def test_no_sequences_and_no_unknown_operators() -> None:
    x = {"x": seeded(3, 4)}
    with pytest.raises(LoadError, match="FL0821 .*ai.onnx::SequenceConstruct"):
        import_onnx(model([node("SequenceConstruct", "x x", "y")], x, ["y"]))
    with pytest.raises(LoadError, match="FL0821 .*mine::Blend of version 1.*no importer"):
        import_onnx(model([node("Blend", "x", "y", "mine")], x, ["y"], domains=["mine"]))


def test_no_element_types_that_the_ir_lacks() -> None:
    m = model([node("Neg", "x", "y")], {"x": seeded(3)}, ["y"])
    m.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    with pytest.raises(LoadError, match="FL0821 .*input x.*STRING"):
        import_onnx(m)


def test_no_input_that_does_not_fit() -> None:
    program = import_onnx(model([node("Neg", "x", "y")], {"x": seeded(3, 4)}, ["y"]))
    for given, said in (
        ({}, "x"),
        ({"x": seeded(3, 4), "z": seeded(1)}, "z"),
        ({"x": seeded(3, 4).half()}, "float16"),
        ({"x": seeded(3)}, r"\[3\]"),
        ({"x": seeded(3, 5)}, "extent 4 is 5"),
    ):
        with pytest.raises(InputError, match=f"FL0823 .*{said}"):
            program.run(given)


# -- what exporters spell out ---------------------------------------------------------------


def test_silu_gelu_and_root_are_recognised() -> None:
    x = {"x": seeded(3, 8)}
    nodes = [
        node("Sigmoid", "x", "s"),
        node("Mul", "s x", "a"),
        node("Div", "a root2", "d"),
        node("Erf", "d", "e"),
        node("Add", "e one", "e1"),
        node("Mul", "a e1", "m"),
        node("Mul", "m half", "g"),
        node("Abs", "g", "p"),
        node("Add", "p one", "p1"),
        node("Sqrt", "p1", "r"),
        node("Reciprocal", "r", "y"),
    ]
    numbers = {"root2": torch.tensor(2.0).sqrt(), "one": torch.tensor(1.0)}
    m = model(nodes, x, ["y"], numbers | {"half": torch.tensor(0.5)})
    assert set(names_of(import_onnx(m))) == {"silu", "gelu", "abs", "full", "add", "rsqrt"}
    assert_as_onnxruntime(m, x)


def test_gelu_by_tanh_is_recognised() -> None:
    x = {"x": seeded(3, 8)}
    nodes = [
        node("Pow", "x three", "c"),
        node("Mul", "c small", "k"),
        node("Add", "x k", "i"),
        node("Mul", "i root", "j"),
        node("Tanh", "j", "t"),
        node("Add", "t one", "u"),
        node("Mul", "x half", "h"),
        node("Mul", "h u", "y"),
    ]
    numbers = {"three": 3.0, "small": 0.044715, "root": 0.7978845608028654, "one": 1.0, "half": 0.5}
    m = model(nodes, x, ["y"], {k: torch.tensor(v) for k, v in numbers.items()})
    assert names_of(import_onnx(m)) == ["gelu"]
    assert_as_onnxruntime(m, x)


def test_no_gelu_of_another_root() -> None:
    x = {"x": seeded(3, 8)}
    nodes = [
        node("Div", "x root", "d"),
        node("Erf", "d", "e"),
        node("Add", "e one", "e1"),
        node("Mul", "x e1", "m"),
        node("Mul", "m half", "y"),
    ]
    numbers = {"root": torch.tensor(1.5), "one": torch.tensor(1.0), "half": torch.tensor(0.5)}
    m = model(nodes, x, ["y"], numbers)
    assert "gelu" not in names_of(import_onnx(m))
    assert_as_onnxruntime(m, x)


def test_products_of_weights_are_linears_with_their_biases() -> None:
    x = {"x": seeded(2, 5, 64)}
    nodes = [node("MatMul", "x w", "p"), node("Add", "b p", "y")]
    m = model(nodes, x, ["y"], {"w": seeded(64, 48), "b": seeded(48)}, shapes=BATCHED)
    program = import_onnx(m)
    assert names_of(program) == ["linear"]
    assert [format_dim(d) for d in program.func.args[1].shape] == ["48", "64"]
    assert_as_onnxruntime(m, x, atol=2e-5)


# -- compiled -------------------------------------------------------------------------------


def decoder_block() -> onnx.ModelProto:
    """Norm, rotary attention over grouped heads and a gated MLP, by operators of opset 23."""
    nodes = [
        node("RMSNormalization", "x g1", "n", epsilon=1e-6),
        node("MatMul", "n wq", "q"),
        node("MatMul", "n wk", "k"),
        node("MatMul", "n wv", "v"),
        node("RotaryEmbedding", "q cos sin p", "qr", num_heads=4),
        node("RotaryEmbedding", "k cos sin p", "kr", num_heads=2),
        node("Attention", "qr kr v", "a", q_num_heads=4, kv_num_heads=2, is_causal=1),
        node("MatMul", "a wo", "o"),
        node("Add", "x o", "h"),
        node("RMSNormalization", "h g2", "m", epsilon=1e-6),
        node("MatMul", "m wg", "gate"),
        node("MatMul", "m wu", "up"),
        node("Sigmoid", "gate", "s"),
        node("Mul", "gate s", "act"),
        node("Mul", "act up", "mid"),
        node("MatMul", "mid wd", "down"),
        node("Add", "h down", "y"),
    ]
    sizes = {"wq": (64, 64), "wk": (64, 32), "wv": (64, 32), "wo": (64, 64)}
    sizes |= {"wg": (64, 96), "wu": (64, 96), "wd": (96, 64)}
    weights = {name: seeded(*size, seed=i) / 8 for i, (name, size) in enumerate(sizes.items())}
    weights |= {"g1": seeded(64), "g2": seeded(64, seed=1)}
    angles = torch.outer(torch.arange(32), 1 / 100 ** (torch.arange(8) / 8))
    weights |= {"cos": angles.cos(), "sin": angles.sin()}
    x = {"x": seeded(2, 5, 64), "p": torch.arange(5).repeat(2, 1)}
    shapes = {"x": ("batch", "seq", 64), "p": ("batch", "seq")}
    return model(nodes, x, ["y"], weights, shapes=shapes, opset=23)


def test_a_decoder_block_is_fused_and_runs_at_other_sizes() -> None:
    m = decoder_block()
    program = import_onnx(m)
    verify(program.func)
    compiled = compile_onnx(program)
    for batch, length in ((2, 5), (1, 1), (3, 13)):
        x = {"x": seeded(batch, length, 64), "p": torch.arange(length).repeat(batch, 1)}
        wanted = by_onnxruntime(m, x)["y"]
        torch.testing.assert_close(program.run(x)["y"], wanted, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(compiled(x)["y"], wanted, atol=1e-5, rtol=1e-4)
    report = compiled.report()
    assert {p: report.count(p, status="fused") for p in ("gated_mlp", "merged_linear")} == {
        "gated_mlp": 1,
        "merged_linear": 1,
    }
    assert report.stats["host steps"] == 0


def test_every_registered_operator_has_its_versions_apart() -> None:
    standard = {name for domain, name in REGISTRY if not domain}
    microsoft = {name for domain, name in REGISTRY if domain == "com.microsoft"}
    assert len(standard) >= 120
    assert len(microsoft) >= 13
    with pytest.raises(ValueError, match="Softmax has two importer functions"):
        onnx_op("Softmax", since=20)(shape_of)


def test_infos_say_dims() -> None:
    """What the other tests build models with."""
    made = info("x", seeded(2, 3), ("batch", 3))
    assert made.type.tensor_type.shape.dim[0].dim_param == "batch"
