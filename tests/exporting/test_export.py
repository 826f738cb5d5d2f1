"""Models written to a file, and loaded: the same numbers, at other sizes than the example's."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fuseline.artifact import archive, machine
from fuseline.artifact.load import load
from fuseline.artifact.weights import Placed
from fuseline.debug.oracle import relative_error
from fuseline.errors import ArtifactError, FuselineError, InputError
from fuseline.exporting import Part, export, export_parts
from tests.codegen import oracle
from tests.exporting.models import Adapted, Crossed, crossed

ROWS = torch.export.Dim("rows", min=1, max=64)


def seeded(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Numbers that are the same in every run."""
    return oracle.seeded(*shape, dtype=dtype, seed=seed)


class Block(nn.Module):
    """A norm, products that are merged, one with tied weights, a buffer that counts, a table."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        cast("Any", torch).manual_seed(0)
        self.scale = nn.Parameter(1 + 0.1 * torch.randn(48))
        self.q, self.k = nn.Linear(48, 40), nn.Linear(48, 24)
        self.out = nn.Linear(40, 48, bias=False)
        self.back = nn.Linear(40, 48, bias=False)
        self.back.weight = self.out.weight
        self.turned = nn.Parameter(torch.randn(48, 24).t())
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.to(dtype)
        self.turned.data = self.turned.data  # stays turned in memory

    def forward(self, x: Tensor) -> dict[str, Any]:
        self.calls.add_(1)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        y = self.scale * wide.to(x.dtype)
        both = torch.tensor([1.0, 0.5], dtype=x.dtype)
        z = self.out(self.q(y)) + self.back(self.q(y)) * both[1]
        return {"z": (z, self.k(y)), "turned": [y @ self.turned.t()], "count": x.shape[0] * 2}


def negated(tensor: Tensor) -> Tensor:
    """A view of the same memory with the negative bit."""
    return cast("Any", torch)._neg_view(tensor)


def errors_within(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether the norm of a difference is within a few roundings."""
    return relative_error(found, expected) < {torch.float32: 2e-6}.get(dtype, 2e-2)


def exported(folder: Path, model: nn.Module, *args: Any, **options: Any) -> Path:
    """The file of a model."""
    return export(model, args, path=folder / "model.fuse", **options).path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_sizes_than_the_examples(tmp_path: Path, dtype: torch.dtype) -> None:
    model = Block(dtype)
    model.eval()
    x = seeded(5, 48, dtype=dtype)
    path = exported(tmp_path, model, x, dynamic_shapes=({0: ROWS},))
    loaded = load(path, threads=1)
    model.calls.zero_()
    for rows in (5, 1, 37):
        x = seeded(rows, 48, dtype=dtype, seed=rows)
        with torch.no_grad():
            want = model(x)
        found = loaded(x)
        assert list(found) == ["z", "turned", "count"]
        assert isinstance(found["z"], tuple)
        assert isinstance(found["turned"], list)
        assert found["count"] == 2 * rows
        pairs = zip((*found["z"], *found["turned"]), (*want["z"], *want["turned"]), strict=True)
        assert all(errors_within(f, w, dtype) for f, w in pairs)
        assert int(loaded.main.state["calls"]) == int(model.calls)
    loaded.reset()
    assert int(loaded.main.state["calls"]) == 0
    assert loaded.report().count("rms_norm") == 1


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    def digest(name: str, model: nn.Module) -> str:
        path = export(model.eval(), (seeded(5, 48),), path=tmp_path / name).path
        return hashlib.sha256(path.read_bytes()).hexdigest()

    first = digest("one.fuse", Block())
    assert digest("two.fuse", Block()) == first
    changed = Block()
    with torch.no_grad():
        changed.scale[3] += 1
    assert digest("three.fuse", changed) != first


def test_weights_beside_the_file(tmp_path: Path) -> None:
    model = Block().eval()
    x = seeded(5, 48)
    path = exported(tmp_path, model, x, embed_weights=False)
    (beside,) = tmp_path.glob("*.safetensors")
    assert beside.name.startswith("model.fuse.")
    assert errors_within(load(path)(x)["z"][0], model(x)["z"][0], x.dtype)
    beside.write_bytes(beside.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match="FL1102"):
        load(path)
    beside.unlink()
    with pytest.raises(ArtifactError, match="FL1101"):
        load(path)


def test_weights_lie_where_products_read_them(tmp_path: Path) -> None:
    path = exported(tmp_path, Block().eval(), seeded(5, 48))
    loaded = load(path)
    for group in loaded.main.program.plan.packed:
        names = [loaded.main.file.inputs[i].name for i in group]
        at = [loaded.manifest.weights.tensors[n] for n in names]
        places = [each.memory for each in at if isinstance(each, Placed)]
        assert len(set(places)) == len(group) > 1


LOAD = """
import sys, torch
import fuseline
loaded = fuseline.load(sys.argv[1])
print(loaded(torch.ones(3, 48))["z"][0].sum().item())
heavy = (
    *("sympy", "torch._dynamo", "triton", "transformers", "fuseline.ir", "fuseline.compiler"),
    *("fuseline.runtime.gpu.kernels", "fuseline.runtime.graphs", "fuseline.artifact.signing"),
)
print(*[name for name in heavy if name in sys.modules])
"""


def test_loading_needs_no_compiler_and_writes_nothing(tmp_path: Path) -> None:
    """With an empty path, no home, and a folder that cannot be written to."""
    model = Block().eval()
    path = exported(tmp_path, model, seeded(5, 48), dynamic_shapes=({0: ROWS},))
    with torch.no_grad():
        want = model(torch.ones(3, 48))["z"][0].sum().item()
    environment = {
        "PATH": "/nowhere",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    tmp_path.chmod(0o500)
    try:
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(path)],
            capture_output=True,
            text=True,
            env=environment,
            cwd="/",
            check=False,
        )
    finally:
        tmp_path.chmod(0o700)
    assert done.returncode == 0, done.stderr
    found, heavy = done.stdout.splitlines()
    assert float(found) == pytest.approx(want, rel=1e-5)
    assert heavy == ""
    assert list(tmp_path.iterdir()) == [path]


class Inverse(nn.Module):
    """Has an operation without a kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cholesky_inverse(x.view(-1, 4, 4)).sum((1, 2)) + x.view(-1, 16).sum(-1)


def test_an_operation_without_a_kernel_runs_by_torch(tmp_path: Path) -> None:
    x = seeded(5, 16)
    path = exported(tmp_path, Inverse(), x, dynamic_shapes=({0: ROWS},))
    loaded = load(path)
    assert loaded.main.file.plan.ops
    for rows in (5, 1, 9):
        x = seeded(rows, 16, seed=rows)
        assert torch.allclose(loaded(x), Inverse()(x), atol=1e-5)


class Pair(NamedTuple):
    """A result of a type that only the exporter knows."""

    one: Tensor
    other: Tensor


class Named(nn.Module):
    """Takes keywords, gives a named tuple."""

    def forward(self, x: Tensor, *, more: Tensor) -> Pair:
        return Pair(x + more, x - more)


def test_other_containers_become_records(tmp_path: Path) -> None:
    x = seeded(5, 16)
    made = export(Named(), (x,), {"more": 2 * x}, path=tmp_path / "named.fuse")
    found = load(made.path)(x, more=2 * x)
    assert torch.equal(found.one, 3 * x)
    assert torch.equal(found["other"], -x)
    assert torch.equal(found[1], -x)


def test_wrong_calls(tmp_path: Path) -> None:
    loaded = load(exported(tmp_path, Block().eval(), seeded(5, 48), dynamic_shapes=({0: ROWS},)))
    with pytest.raises(ArtifactError, match="FL1108"):
        loaded(seeded(5, 48), seeded(5, 48))
    with pytest.raises(ArtifactError, match="FL1108"):
        loaded(x=seeded(5, 48))
    for wrong in (seeded(5, 47), seeded(65, 48), seeded(5, 48).double(), torch.ones(48)):
        with pytest.raises(InputError, match="FL0902"):
            loaded(wrong)


class TwoInputs(nn.Module):
    """The second input has twice the rows of the first."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat((x, x)) + y


def test_sizes_that_follow_from_others_are_held_to(tmp_path: Path) -> None:
    half = torch.export.Dim("half", min=1, max=64)
    shapes = ({0: half}, {0: 2 * half})
    made = export(
        TwoInputs(), (seeded(3, 4), seeded(6, 4)), path=tmp_path / "two.fuse", dynamic_shapes=shapes
    )
    loaded = load(made.path)
    x, y = seeded(5, 4), seeded(10, 4)
    assert torch.equal(loaded(x, y), torch.cat((x, x)) + y)
    with pytest.raises(InputError, match="FL0902"):
        loaded(x, seeded(9, 4))


def test_instruction_sets_of_a_cpu(tmp_path: Path) -> None:
    model, x = Block().eval(), seeded(5, 48)
    path = exported(tmp_path, model, x, cpu_isa=("native", "x86-64-v3", "baseline"))
    loaded = load(path)
    for target in loaded.manifest.targets:
        if set(target.features) <= machine.features():
            found = load(path, target=target.title)
            assert found.choice.target.isa == target.isa
            assert errors_within(found(x)["z"][0], model(x)["z"][0], x.dtype)
        else:
            with pytest.raises(ArtifactError, match=r"FL1105.*needs"):
                load(path, target=target.title)
    assert loaded.choice.target.isa == "native"


def test_what_does_not_run_here_is_refused(tmp_path: Path) -> None:
    path = exported(tmp_path, Gate(), seeded(5, 48), targets=("sm_90",))
    with pytest.raises(ArtifactError, match="FL1105"):
        load(path, device="cpu")
    with pytest.raises(ArtifactError, match="FL1105"):
        load(path, target="sm_80")


class Gate(nn.Module):
    """One kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.silu(x) * 2


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"targets": ("sm_70",)}, "FL0101"),
        ({"cpu_isa": ("avx9",)}, "FL0101"),
        ({"path": "/nowhere/model.fuse"}, "FL1106"),
    ],
    ids=["target", "instruction set", "path"],
)
def test_wrong_exports(tmp_path: Path, options: dict[str, Any], code: str) -> None:
    given: dict[str, Any] = {"path": tmp_path / "model.fuse", **options}
    with pytest.raises(FuselineError, match=code):
        export(Gate(), (seeded(5, 48),), **given)
    assert not list(tmp_path.iterdir())


class Branching(nn.Module):
    """Cannot be captured whole."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if bool(x.sum() > 0) else x - 1


def test_what_cannot_be_captured_says_why(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"FL1107.*main"):
        export(Branching(), (seeded(5, 48),), path=tmp_path / "model.fuse")
    assert not list(tmp_path.iterdir())


class Long(nn.Module):
    """Goes on by a size."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.shape[0] > 4 else x - 1


def test_sizes_that_are_no_range_are_told(tmp_path: Path) -> None:
    rows = torch.export.Dim("rows", min=2, max=9)
    with pytest.raises(ArtifactError, match=r"(?s)FL1107.*Not all values of rows.*<= 9"):
        export(Long(), (seeded(5, 48),), path=tmp_path / "model.fuse", dynamic_shapes=({0: rows},))


def test_another_form_stands_in_for_sizes_alone(tmp_path: Path) -> None:
    x, told = seeded(5, 48), list[str]()
    rows = torch.export.Dim("rows", min=2, max=9)
    part = Part(Long(), (x,), {}, ({0: rows},), otherwise=Part(Long(), (x,)))
    options: dict[str, Any] = {"path": tmp_path / "model.fuse"}
    export_parts({"main": part}, **options, progress=lambda stage: told.append(stage.what))
    assert any("main is captured in another form: Constraints violated" in what for what in told)
    with pytest.raises(FuselineError, match="FL0902"):
        load(tmp_path / "model.fuse")(seeded(6, 48))
    branching = Part(Branching(), (x,), otherwise=Part(Long(), (x,)))
    with pytest.raises(ArtifactError, match="FL1107"):
        export_parts({"main": branching}, **options)


def test_a_count_of_adapters(tmp_path: Path) -> None:
    model = Adapted()
    ids = torch.tensor([0, 2, 1])
    shapes = (None, None, torch.export.Dim.DYNAMIC)
    path = exported(tmp_path, model, seeded(3, 2, 24), ids, 3, dynamic_shapes=shapes)
    loaded = load(path)
    for active, ids in ((3, [0, 2, 1]), (5, [4, -1, 0]), (2, [1, -2, 0])):
        x = seeded(3, 2, 24, seed=active)
        with torch.no_grad():
            want = model(x, torch.tensor(ids), active)
        assert errors_within(loaded(x, torch.tensor(ids), active), want, x.dtype)


class Optional(nn.Module):
    """Has arguments that are constants to the program."""

    def forward(self, x: Tensor, more: Tensor | None, *, how: str, flag: bool = True) -> Any:
        y = x if more is None else x + more
        return {"y": 2 * y if flag and how == "twice" else y, "none": None}


def test_constants_among_arguments(tmp_path: Path) -> None:
    x = seeded(5, 16)
    made = export(Optional(), (x, None), {"how": "twice", "flag": True}, path=tmp_path / "o.fuse")
    loaded = load(made.path)
    assert torch.equal(
        loaded(x, None)["y"], 2 * x
    )  # what is the same in every call may be left out
    found = loaded(x, None, how="twice", flag=True)
    assert torch.equal(found["y"], 2 * x)
    assert found["none"] is None
    for args, kwargs in (((x, x), {}), ((x, None), {"flag": False}), ((x, None), {"how": "once"})):
        with pytest.raises(ArtifactError, match="FL1108"):
            loaded(*args, **{"how": "twice", "flag": True, **kwargs})


class Scaled(nn.Module):
    """Reads what another program writes."""

    def __init__(self) -> None:
        super().__init__()
        self.total: Tensor
        self.register_buffer("total", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.total


class Counter(Scaled):
    """Writes it."""

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(x)
        return self.total + 0


def test_a_program_that_only_reads_sees_what_another_writes(tmp_path: Path) -> None:
    x = torch.ones(4)
    reader, writer = Scaled(), Counter()
    writer.total = reader.total
    parts = {"read": Part(reader, (x,)), "write": Part(writer, (x,))}
    loaded = load(export_parts(parts, path=tmp_path / "two.fuse").path)
    for count in (1, 2):
        loaded.programs["write"](x)
        assert torch.equal(loaded.programs["read"](x), torch.full((4,), 1.0 + count))
    loaded.reset()
    assert torch.equal(loaded.programs["read"](x), x)


class Sums(nn.Module):
    """Reads its argument."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(-1) * 2


class Raises(nn.Module):
    """Writes its argument."""

    def forward(self, x: Tensor) -> Tensor:
        x.add_(1)
        return x.sum(-1) * 2


class Passes(nn.Module):
    """Returns a view of its argument."""

    def forward(self, x: Tensor) -> Any:
        return x[0], x.sum(-1) * 2


VARYING = ({0: torch.export.Dim("b", max=8), 1: torch.export.Dim("s", max=64)},)


def test_arguments_that_lie_in_another_way_are_copied(tmp_path: Path) -> None:
    loaded = load(exported(tmp_path, Sums(), seeded(2, 5, 8), dynamic_shapes=VARYING))
    wide = seeded(3, 9, 16)
    for x in (
        *(wide[:, :5, :8], wide[:1, :5, :8], wide[..., ::2], wide[:, 1:2, :8]),
        *(wide[:, :8].mT[..., :8], wide[:1, :1, :8].expand(3, 7, 8), wide[:, :5, :8].flip(1)),
        *(wide[:, :0, :8], wide[:0, ::2, 8:]),
    ):
        before = x.clone()
        assert torch.allclose(loaded(x), 2 * x.sum(-1), atol=1e-5)
        assert torch.equal(x, before)
    for wrong in (wide, wide[:, :5, :8].double(), wide[:, :5, 0]):
        with pytest.raises(InputError, match="FL0902"):
            loaded(wrong)
    with pytest.raises(InputError, match=r"FL0902.*of layout torch\.sparse_coo"):
        loaded(wide[:, :5, :8].to_sparse())


def test_a_sparse_example_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"FL1107.*takes x, whose layout is torch\.sparse_coo"):
        exported(tmp_path, Sums(), seeded(5, 8).to_sparse(), dynamic_shapes=None)


class Recurrent(nn.Module):
    """Traced on a CPU, its layer is one operator that no GPU has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")
def test_an_operator_of_cpus_is_refused_for_gpus(tmp_path: Path) -> None:
    model, x = Recurrent().eval(), seeded(2, 3, 8)
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no operators of its own for CPUs")
    with pytest.raises(ArtifactError, match=r"FL1107.*aten\.mkldnn_rnn_layer.*for sm_90"):
        export(model, (x,), path=tmp_path / "gpu.fuse", targets=["cpu", "sm_90"])
    export(model, (x,), path=tmp_path / "cpu.fuse")
    with torch.no_grad():
        assert torch.allclose(load(tmp_path / "cpu.fuse")(x), model(x), atol=1e-6)


def test_an_example_that_lies_turned(tmp_path: Path) -> None:
    loaded = load(exported(tmp_path, Sums(), seeded(5, 8).t(), dynamic_shapes=None))
    x = seeded(8, 5, seed=1)
    assert torch.allclose(loaded(x), 2 * x.sum(-1), atol=1e-5)
    assert torch.allclose(loaded(x.t().contiguous().t()), 2 * x.sum(-1), atol=1e-5)


@pytest.mark.parametrize("model", [Raises(), Passes()], ids=["written", "returned"])
def test_what_must_be_the_callers_own_is_not_copied(tmp_path: Path, model: nn.Module) -> None:
    loaded = load(exported(tmp_path, model, seeded(2, 5, 8), dynamic_shapes=VARYING))
    wide = seeded(3, 9, 8)
    before = wide.clone()
    with pytest.raises(InputError, match="FL0902"):
        loaded(wide[:, :5])
    assert torch.equal(wide, before)
    whole = wide.clone()
    loaded(whole)
    assert torch.equal(whole, before + 1 if isinstance(model, Raises) else before)


@pytest.mark.parametrize("model", [Raises(), Passes()], ids=["written", "returned"])
def test_how_an_argument_must_lie_is_told(tmp_path: Path, model: nn.Module) -> None:
    """Nothing can be compiled for a file that is loaded, but strides can be changed."""
    loaded = load(exported(tmp_path, model, seeded(2, 5, 8), dynamic_shapes=VARYING))
    for turned in (seeded(3, 9, 8)[:, :5], seeded(3, 5, 16)[..., ::2], seeded(3, 8, 5).mT):
        with pytest.raises(
            InputError, match=r"FL0902.* argument x.*as the example.*\.contiguous\(\)"
        ):
            loaded(turned)
    for wrong in (seeded(3, 5, 8).double(), seeded(3, 5, 9), seeded(3, 65, 8)):
        with pytest.raises(InputError, match="FL0902.* argument x") as caught:
            loaded(wrong)
        assert "contiguous" not in str(caught.value)


class Writes(nn.Module):
    """Writes one argument, and reads another one after it."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        y.add_(1)
        return x * 2


def test_a_copy_hides_no_shared_memory(tmp_path: Path) -> None:
    loaded = load(exported(tmp_path, Writes(), torch.ones(3, 3), torch.ones(3, 3)))
    base = seeded(3, 3)
    before = base.clone()
    turned = (base.t(), negated(base), negated(base).t())
    for x in (base, *turned, torch.cat([base, base])[::2]):
        if x.data_ptr() == base.data_ptr():
            with pytest.raises(InputError, match="FL0904"):
                loaded(x, base)
            assert torch.equal(base, before)
        else:
            assert torch.equal(loaded(x, base), x * 2)
            assert torch.equal(base, before + 1)


def test_negative_bits_are_part_of_the_numbers(tmp_path: Path) -> None:
    x = torch.imag(torch.complex(seeded(3, 5, 8), seeded(3, 5, 8, seed=1)).conj())
    assert x.is_neg()
    negative = negated(seeded(3, 5, 8))
    reads = load(exported(tmp_path, Sums(), seeded(2, 5, 8), dynamic_shapes=VARYING))
    for signed in (x, negative, negative[:, :0]):
        assert torch.allclose(reads(signed), 2 * signed.sum(-1), atol=1e-5)
    for model in (Raises(), Passes()):
        loaded = load(exported(tmp_path, model, seeded(2, 5, 8), dynamic_shapes=VARYING))
        before = negative.clone()
        with pytest.raises(InputError, match="FL0902.*negative bit.*resolve_neg"):
            loaded(negative)
        assert torch.equal(negative, before)


class Real(nn.Module):
    """Reads a complex argument, and writes another one."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        torch.view_as_real(y).add_(1)
        return torch.view_as_real(x) * 2


def test_conjugate_bits_are_part_of_the_numbers(tmp_path: Path) -> None:
    like = torch.complex(seeded(3, 4), seeded(3, 4, seed=1))
    loaded = load(exported(tmp_path, Real(), like, like.clone()))
    y = like.clone()
    want = torch.view_as_real(like.conj().resolve_conj()) * 2
    assert torch.equal(loaded(like.conj(), y), want)
    assert torch.equal(torch.view_as_real(y), torch.view_as_real(like) + 1)
    for x, written, code in ((like, y.conj(), "FL0902.*conjugate"), (y.conj(), y, "FL0904")):
        before = y.clone()
        with pytest.raises(InputError, match=code):
            loaded(x, written)
        assert torch.equal(y, before)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.filterwarnings("ignore:The tensor attributes")
def test_recurrent_layers(tmp_path: Path, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
    cast("Any", torch).manual_seed(0)
    model = kind(8, 12, num_layers=2, bidirectional=True)
    x = seeded(5, 3, 8)
    loaded = load(exported(tmp_path, model, x))
    with torch.no_grad():
        found, expected = (pytree.tree_leaves(result) for result in (loaded(x), model(x)))
    for one, other in zip(found, expected, strict=True):
        assert errors_within(one, other, torch.float32)


def test_nothing_has_no_strides(tmp_path: Path) -> None:
    """Arguments of size 0 lie in any way, also where they are written."""
    loaded = load(exported(tmp_path, Raises(), seeded(2, 5, 8), dynamic_shapes=VARYING))
    wide = seeded(3, 9, 8)
    assert loaded(wide[:, :0]).shape == (3, 0)


class Inner(nn.Module):
    """Has what it writes behind another name."""

    def __init__(self, counter: Counter) -> None:
        super().__init__()
        self.inner = counter

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.inner(x))


class Half(nn.Module):
    """Reads a part of what another writes."""

    def __init__(self, total: Tensor) -> None:
        super().__init__()
        self.total: Tensor
        self.register_buffer("total", total[:2])

    def forward(self, x: Tensor) -> Tensor:
        return x[:2] + self.total


@pytest.mark.parametrize("turned", [False, True])
def test_one_state_by_two_names_is_refused(tmp_path: Path, turned: bool) -> None:
    x, writer, reader = torch.ones(4), Counter(), Scaled()
    reader.total = writer.total
    parts = [("write", Part(Inner(writer), (x,))), ("read", Part(reader, (x,)))]
    with pytest.raises(ArtifactError, match=r"FL1107.*read.*total, which is inner\.total in write"):
        export_parts(dict(parts[::-1] if turned else parts), path=tmp_path / "two.fuse")
    assert not list(tmp_path.iterdir())


def test_two_states_by_one_name_are_refused(tmp_path: Path) -> None:
    """They hold the same until one is written."""
    x = torch.ones(4)
    parts = {"a": Part(Counter(), (x,)), "b": Part(Counter(), (x,))}
    with pytest.raises(ArtifactError, match=r"FL1107.*a.*total, which is another tensor in b"):
        export_parts(parts, path=tmp_path / "two.fuse")


def test_a_part_of_a_state_is_refused(tmp_path: Path) -> None:
    x, writer = torch.ones(4), Counter()
    parts = {"write": Part(Inner(writer), (x,)), "read": Part(Half(writer.total), (x,))}
    with pytest.raises(ArtifactError, match=r"FL1107.*one name for one buffer"):
        export_parts(parts, path=tmp_path / "two.fuse")


def test_options_of_compiling_are_refused_by_a_load(tmp_path: Path) -> None:
    path = exported(tmp_path, Gate(), seeded(5, 48))
    wrong: dict[str, Any] = {"fuse_limit": 3, "strict": False, "tune": "off", "cache_dir": tmp_path}
    for name, value in wrong.items():
        with pytest.raises(FuselineError, match="FL0102.*threads"):
            load(path, **{name: value})
    with pytest.raises(FuselineError, match="FL0102.*thread in a load: expected one of threads"):
        load(path, thread=1)
    with pytest.raises(FuselineError, match="FL0101"):
        load(path, threads=0)
    assert load(path, threads=1, graphs="none", side_stream=False, early_launch=False).main


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    x = torch.ones(4)
    one, other = Scaled(), Scaled()
    other.total += 1
    parts = {"one": Part(one, (x,)), "other": Part(other, (x,))}
    with pytest.raises(ArtifactError, match=r"FL1107.*total"):
        export_parts(parts, path=tmp_path / "two.fuse")


def test_what_is_no_plain_file_stays(tmp_path: Path) -> None:
    x = seeded(5, 48)
    real = tmp_path / "real.fuse"
    (tmp_path / "model.fuse").symlink_to(real)
    path = exported(tmp_path, Gate(), x)
    assert path.is_symlink()
    assert real.is_file()
    pipe = tmp_path / "pipe.fuse"
    os.mkfifo(pipe)
    with pytest.raises(ArtifactError, match="FL1106"):
        export(Gate(), (x,), path=pipe)
    assert pipe.is_fifo()


@contextmanager
def room(nbytes: int) -> Generator[None]:
    """As on a disk with so much room: a file that becomes longer cannot be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("embed", [True, False], ids=["embedded", "beside"])
@pytest.mark.parametrize("nbytes", [100, 30_000])
def test_no_room(tmp_path: Path, nbytes: int, embed: bool) -> None:
    """Nothing is left of a file that cannot be written, nor of weights beside it; earlier ones are
    what they were.
    """
    x, changed = seeded(5, 48), Block().eval()
    with torch.no_grad():
        changed.scale[3] += 1
    exported(tmp_path, Block().eval(), x, embed_weights=embed)  # and all that it needs is built
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with room(nbytes), pytest.raises(ArtifactError, match=r"FL1106.*File too large"):
        exported(tmp_path, changed, x, embed_weights=embed)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    with room(nbytes), pytest.raises(ArtifactError, match="FL1106"):
        exported(tmp_path, Block().eval(), x, embed_weights=embed)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_without_the_right_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told before anything is captured; root may write everywhere, so the attempt is made up."""

    def refused(**where: object) -> None:
        assert where == {"dir": tmp_path}
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(archive, "TemporaryFile", refused)
    with pytest.raises(ArtifactError, match=rf"FL1106.*written in {tmp_path} \(Permission denied"):
        exported(tmp_path, Branching(), seeded(5, 48))


def test_strict_leaves_an_earlier_file(tmp_path: Path) -> None:
    x = seeded(5, 16)
    path = exported(tmp_path, Inverse(), x)
    before = path.read_bytes()
    said = r"FL1107 .*no kernel for aten.cholesky_inverse.default at test_export.py:\d+\."
    with pytest.raises(ArtifactError, match=said):
        exported(tmp_path, Inverse(), x, strict=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_copies_of_weights_are_shared_by_programs(tmp_path: Path) -> None:
    weights = crossed(tmp_path / "crossed.fuse")
    loaded = load(tmp_path / "crossed.fuse")

    def places(name: str) -> list[int]:
        call = loaded.programs[name]
        groups = call.program.plan.packed  # of weights, and of biases
        given = call._fixed  # pyright: ignore[reportPrivateUsage]
        return [given[number].data_ptr() for group in groups for number in group]

    assert places("second") == places("third")
    assert sorted(places("first")) != sorted(places("second"))
    x = seeded(9, 48)
    for name, order in {"first": "qkv", "second": "vkq", "third": "vkq"}.items():
        with torch.no_grad():
            want = Crossed(order, weights)(x)
        assert errors_within(loaded.programs[name](x), want, x.dtype)


def test_verify_reads_weights_too(tmp_path: Path) -> None:
    path = exported(tmp_path, Block().eval(), seeded(5, 48), embed_weights=False)
    assert load(path, verify=True).manifest.weights.file
    (beside,) = tmp_path.glob("*.safetensors")
    data = bytearray(beside.read_bytes())
    data[-1] ^= 1
    beside.write_bytes(data)
    load(path)  # weights are mapped, and not read before they are used
    with pytest.raises(ArtifactError, match=r"FL1103.*safetensors"):
        load(path, verify=True)


def test_what_was_loaded_says_what_it_is(tmp_path: Path) -> None:
    path = exported(tmp_path, Block().eval(), seeded(5, 48), dynamic_shapes=({0: ROWS},))
    loaded = load(path)
    assert repr(loaded).startswith(f"<{__name__}.Block of {path}, cpu:native on cpu:\n  main(")
    assert repr(loaded.main) == (
        "main(x: float32[rows, 48]) -> float32[rows, 48], float32[rows, 24], float32[rows, 24], "
        "int 2*rows"
    )
