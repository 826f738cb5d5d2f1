"""The numbers of eager, from C++."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fuseline import _torch
from fuseline.artifact.load import load
from fuseline.artifact.weights import Placed, Zeros
from fuseline.exporting.export import export
from tests.artifact.cpp import models
from tests.artifact.cpp.compare import SHAPES, Case, close, message
from tests.artifact.cpp.runner import Built, Opened
from tests.exporting.models import Adapted, Crossed, crossed


def test_blocks_equal_eager_and_the_python_runner(built: Built, case: Case) -> None:
    """At three shapes; with torch's sgemm even to the bit what Python gives."""
    path, model, dtype = case
    opened = Opened(built, path)
    same, loaded = Opened(built, path, sgemm=_torch.sgemm_address()), load(path, threads=1)
    for shape in SHAPES:
        given = models.ids(*shape), models.scale(dtype)
        hidden, pooled, row, tokens = opened(*given)
        with torch.no_grad():
            want = model(*given)
        close(hidden, want["hidden"])
        close(pooled, want["pooled"])
        assert torch.equal(row, given[1][1:])
        assert tokens.item() == shape[1]
        python = loaded(*given)
        for got, other in zip(
            same(*given), (python[k] for k in ("hidden", "pooled")), strict=False
        ):
            assert torch.equal(got, other)
        assert opened.shapes(*given) == [[*shape, 48], [shape[0], 48], [47], []]


def test_an_onnx_model(built: Built, tmp_path: Path) -> None:
    """Inputs and results in the file's order, under its names."""
    from fuseline.frontend.onnx import import_onnx
    from tests.onnx.models import model, node

    shape = ("rows", 24)
    x, skip = (torch.linspace(-1, 1, 72).view(3, 24) * n for n in (1, 2))
    weight = torch.linspace(-1, 1, 24 * 7).view(24, 7).sin()
    nodes = [node("Add", "x skip.1", "sum"), node("MatMul", "sum weight", "y.1")]
    made = model(
        *(nodes, {"x": x, "skip.1": skip}, ["y.1", "sum"], {"weight": weight}),
        shapes={"x": shape, "skip.1": shape},
        domains=(),
    )
    opened = Opened(built, export(import_onnx(made), path=tmp_path / "m.fuse").path)
    for rows in (3, 1, 2):
        y, total = opened(x[:rows].clone(), skip[:rows].clone())
        close(total, x[:rows] + skip[:rows])
        close(y, total @ weight)


def test_weights_beside_and_shares_of_several_threads(built: Built, block: Path) -> None:
    """More work than one thread does alone: the same on four."""
    given = models.ids(8, 131), models.scale(torch.float32)
    one, four = Opened(built, block), Opened(built, block, threads=4)
    for got, want in zip(four(*given), one(*given), strict=True):
        close(got, want)
    close(four(*given)[0], load(block, threads=1)(*given)["hidden"])


def test_calls_from_several_threads(built: Built, block: Path) -> None:
    opened = Opened(built, block, threads=2)
    given = [(models.ids(b, s), models.scale(torch.float32)) for b, s in ((1, 9), (2, 3), (3, 17))]
    want = [opened(*each)[0] for each in given]

    rest = [opened(*each)[1:] for each in given]
    outputs = [torch.empty_like(each) for each in want]

    def call(number: int) -> None:
        for _ in range(10):
            opened.into(given[number], [outputs[number], *rest[number]])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(call, range(3)))
    for got, expected in zip(outputs, want, strict=True):
        assert torch.equal(got, expected)


def test_large_products_go_to_the_sgemm_that_is_given(
    built: Built, rows: tuple[Path, nn.Module]
) -> None:
    """Without one the kernel does them itself; both give the product."""
    path, model = rows
    calls: list[tuple[int, int, int]] = []
    pointer = ctypes.POINTER
    integer, real = pointer(ctypes.c_int), pointer(ctypes.c_float)

    @ctypes.CFUNCTYPE(
        *(None, ctypes.c_char_p, ctypes.c_char_p, integer, integer, integer, real, real, integer),
        *(real, integer, real, real, integer),
    )
    def sgemm(*given: Any) -> None:
        n, t, k, lda, ldb, ldc = (given[i][0] for i in (2, 3, 4, 7, 9, 12))
        calls.append((n, t, k))
        assert (given[0][:1], given[1][:1]) == (b"T", b"N")
        a = np.ctypeslib.as_array(given[6], (n, lda))[:, :k]
        b = np.ctypeslib.as_array(given[8], (t, ldb))[:, :k]
        np.ctypeslib.as_array(given[11], (t, ldc))[:, :n] = b @ a.T

    address = ctypes.cast(sgemm, ctypes.c_void_p).value or 0
    x = torch.randn(2, 211, 64)
    for opened, called in (
        (Opened(built, path), False),
        (Opened(built, path, sgemm=address), True),
    ):
        total = torch.ones(64)
        got = opened(x, total)[0]
        close(got, model.get_submodule("linear")(x).detach())
        close(total, 1 + x.sum((0, 1)))
        assert bool(calls) is called
    assert sum(n * t * k for n, t, k in calls) == 2 * 211 * 64 * 64


def test_results_go_to_memory_of_the_caller(built: Built, rows: tuple[Path, nn.Module]) -> None:
    """At once where they lie alike, by a copy where they do not."""
    path, model = rows
    opened = Opened(built, path)
    x = torch.randn(3, 5, 64)
    want = model.get_submodule("linear")(x).detach()
    plain = torch.full((3, 5, 64), torch.nan)
    apart = torch.full((64, 3, 10), torch.nan)[:, :, ::2].permute(1, 2, 0)
    for target in (plain, apart):
        opened.into((x, torch.zeros(64)), [target])
        close(target, want)
    assert apart.stride() == (10, 2, 30)


def test_results_that_are_arguments_are_these(built: Built, block: Path) -> None:
    given = models.ids(1, 3), models.scale(torch.float32)
    opened = Opened(built, block)
    assert opened.addresses(*given)[2] == given[1].data_ptr() + 4
    hidden, pooled, row, tokens = opened(*given)
    kept = hidden.clone(), pooled.clone()
    opened.into(given, [hidden.zero_(), pooled.zero_(), given[1][1:], tokens.zero_()])
    assert torch.equal(hidden, kept[0])
    assert torch.equal(pooled, kept[1])
    assert torch.equal(given[1], models.scale(torch.float32))
    assert tokens.item() == 3
    assert torch.equal(row, given[1][1:])


def test_state_is_kept_shared_by_programs_and_given_back(built: Built, store: Path) -> None:
    opened, other, loaded = Opened(built, store), Opened(built, store), load(store)
    for _ in range(2):
        python = load(store)
        for step, tokens in enumerate(
            (models.ids(1, 5), *(models.ids(1, 1) + n for n in range(3)))
        ):
            name = "decode" if step else "prefill"
            want = python.programs[name](tokens)
            close(opened(tokens, program=name)[0], want)
        opened.reset()
    close(
        other(models.ids(1, 2), program="prefill")[0], loaded.programs["prefill"](models.ids(1, 2))
    )


def test_state_is_seen_by_programs_that_only_read_it(
    built: Built, folder: Path, options: dict[str, Any]
) -> None:
    """Whichever of them comes first in the file."""
    models.exported_peek(folder / "peek.fuse", **options)
    opened, token = Opened(built, folder / "peek.fuse"), models.ids(1, 1)
    empty = opened(token, program="peek")[0]
    for count in range(1, 4):
        opened(token, program="decode")
        close(opened(token, program="peek")[0], (count + 1) * empty)


def test_integers_of_a_call(built: Built, folder: Path, options: dict[str, Any]) -> None:
    """One is a size, one lies in memory; what counts both is a result."""
    path, model, varies = folder / "integers.fuse", models.Integers(), torch.export.Dim.DYNAMIC
    export(
        model, (torch.arange(6), 3, 4), path=path, dynamic_shapes=(None, varies, varies), **options
    )
    opened, loaded = Opened(built, path), load(path)
    kinds = [spec.kind for spec in loaded.main.program.plan.args]
    assert (kinds, len(loaded.main.file.numbers)) == (["tensor", "int", "tensor"], 1)
    for count, offset in ((3, 4), (2, 9), (11, 2)):
        x = torch.randint(0, 99, (6,))
        moved, rows, sum_of_all = opened(x, count, offset, bare=True)
        want = model(x, count, offset)
        assert torch.equal(moved, want[0])
        assert torch.equal(rows, want[1])
        assert sum_of_all.item() == want[2]
    for wrong in ((torch.arange(6), -3, 4), (torch.arange(6), 3, -4)):
        said = message(lambda w=wrong: opened(*w))
        assert said == message(lambda w=wrong: loaded(*w))
        assert said.startswith("FL0902")


def test_a_count_of_adapters(built: Built, folder: Path, options: dict[str, Any]) -> None:
    """An integer of a call that is a size, and that kernels read from memory, too."""
    path, model = folder / "adapters.fuse", Adapted().eval()
    example = (torch.ones(3, 2, 24), torch.tensor([0, 2, 1]), 3)
    varies = (None, None, torch.export.Dim.DYNAMIC)
    export(model, example, path=path, dynamic_shapes=varies, **options)
    opened, loaded = Opened(built, path), load(path)
    assert [i.kind for i in loaded.main.file.inputs].count("count") == 1
    for active, ids in ((3, [0, 2, 1]), (5, [4, -1, 0]), (2, [1, -2, 0])):
        given = (torch.randn(3, 2, 24), torch.tensor(ids), active)
        with torch.no_grad():
            close(opened(*given)[0], model(*given))
    x, ids = torch.randn(3, 2, 24), torch.tensor([0, 2, 1])
    for wrong, code in ((-1, "FL0902"), (0, "FL0905")):
        said = message(lambda w=wrong: opened(x, ids, w))
        assert said == message(lambda w=wrong: loaded(x, ids, w))
        assert said.startswith(code)
    assert message(lambda: opened(x, ids + 3, 3)) == message(lambda: loaded(x, ids + 3, 3))


def test_programs_share_copies_of_merged_weights(
    built: Built, folder: Path, options: dict[str, Any]
) -> None:
    weights = crossed(folder / "crossed.fuse", **options)
    opened, x = Opened(built, folder / "crossed.fuse"), torch.randn(9, 48)
    for name, order in {"first": "qkv", "second": "vkq", "third": "vkq"}.items():
        with torch.no_grad():
            close(opened(x, program=name)[0], Crossed(order, weights)(x))


class Running(nn.Module):
    """State that begins as numbers, and state that begins as zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.total: Tensor
        self.last: Tensor
        self.register_buffer("total", torch.arange(6.0))
        self.register_buffer("last", torch.zeros(2000, 6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.total.add_(x.sum(0))
        self.last.add_(x.amax(0))
        return self.total + 0, self.last * 2


def test_state_begins_as_the_file_has_it(
    built: Built, folder: Path, options: dict[str, Any]
) -> None:
    path, x = folder / "running.fuse", torch.randn(4, 6)
    export(Running(), (x,), path=path, **options)
    stored = load(path).manifest.weights.tensors
    assert isinstance(stored["last"], Zeros)
    assert isinstance(stored["total"], Placed)
    opened, loaded = Opened(built, path), load(path)
    for _ in range(2):
        model = Running()
        for _ in range(3):
            want = model(x)
            for found in (opened(x), loaded(x)):
                close(found[0], want[0])
                close(found[1], want[1])
        opened.reset()
        loaded.reset()
