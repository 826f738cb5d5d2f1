"""The errors of Python, from C++, in the same words."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fuseline.artifact.load import load
from fuseline.exporting.export import export
from tests.artifact.cpp import models, runner
from tests.artifact.cpp.change import changed, spoil, with_manifest
from tests.artifact.cpp.compare import close, message
from tests.artifact.cpp.runner import Built, Opened


def test_wrong_arguments_give_the_words_of_python(
    built: Built, block: Path, rows: tuple[Path, nn.Module], store: Path
) -> None:
    ids, scale = models.ids(2, 5), models.scale(torch.float32)
    total = torch.zeros(64)
    cases: list[tuple[Path, str, tuple[Any, ...]]] = [
        (block, "FL0902", (ids.float(), scale)),  # another type
        (block, "FL0902", (ids[0], scale)),  # other dims
        (block, "FL0902", (ids, scale[:7])),  # another size
        (block, "FL0902", (models.ids(9, 5), scale)),  # beyond the range
        (block, "FL0902", (3, scale)),  # an integer
        (block, "FL0905", (ids + 1000, scale)),  # no such token
        (rows[0], "FL0904", (total.view(1, 1, 64), total)),  # written, and read elsewhere
        (store, "FL0905", (models.ids(1, 16), "twice")),  # a cache that is full
    ]
    for path, code, given in cases:
        opened, loaded = Opened(built, path), load(path, threads=1)
        name = "prefill" if path == store else "main"
        args = tuple(a for a in given if a != "twice")
        if len(args) < len(given):
            opened(*args, program=name)
            loaded.programs[name](*args)
        said = message(lambda o=opened, a=args, n=name: o(*a, program=n))
        assert said == message(lambda p=loaded.programs[name], a=args: p(*a))
        assert said.startswith(code)
    assert message(lambda: Opened(built, block)(ids)).startswith("FL0901 wrong number of arguments")
    strided = ids.repeat(1, 2)[:, ::2]  # Python copies it, and C++ leaves that to its caller
    assert message(lambda: Opened(built, block)(strided, scale)).startswith("FL0902")
    load(block, threads=1)(strided, scale)


def test_strides_that_follow_from_sizes_are_looked_at(
    built: Built, rows: tuple[Path, nn.Module]
) -> None:
    opened, wide = Opened(built, rows[0]), torch.randn(2, 9, 64)
    said = message(lambda: opened(wide[:, :5], torch.zeros(64)))
    assert said.startswith(
        "FL0902 unexpected argument x: found strides [576, 64, 1], expected 320 "
    )
    close(
        opened(wide[:1, :5], torch.zeros(64))[0], opened(wide[:1, :5].clone(), torch.zeros(64))[0]
    )


def test_wrong_memory_for_results(built: Built, rows: tuple[Path, nn.Module]) -> None:
    opened, x, total = Opened(built, rows[0]), torch.randn(2, 5, 64), torch.zeros(64)
    wrong: list[tuple[str, list[Tensor]]] = [
        ("FL0901", []),
        ("FL0902", [torch.empty(2, 5, 63)]),
        ("FL0902", [torch.empty(2, 5, 64, dtype=torch.float64)]),
        ("FL0902", [torch.empty(1, 5, 64).expand(2, 5, 64)]),
        ("FL0904", [x]),
    ]
    for code, outputs in wrong:
        said = message(lambda o=outputs: opened.into((x, total), o))
        assert said.startswith(code)
    assert not total.any(), "nothing has run"


def test_what_only_torch_runs_is_refused_by_name(
    built: Built, folder: Path, options: dict[str, Any]
) -> None:
    export(models.Without(), (torch.eye(3),), path=folder / "without.fuse", **options)
    said = message(lambda: Opened(built, folder / "without.fuse"))
    assert said.startswith("FL1105 nothing in the artifact runs here:")
    op = r"aten\.linalg_inv_ex\.default in models\.py:\d+"
    assert re.search(rf"program 'main' with {op}, which torch runs, expected kernels alone", said)


def test_complex_arguments_are_refused_by_name(
    built: Built, folder: Path, options: dict[str, Any]
) -> None:
    given = (torch.randn(3, dtype=torch.complex64),)
    export(models.Complex(), given, path=folder / "complex.fuse", **options)
    said = message(lambda: Opened(built, folder / "complex.fuse"))
    assert "found program 'main' with the complex argument 'x', which torch runs" in said


def test_files_that_cannot_be_run_give_the_words_of_python(
    built: Built, store: Path, tmp_path: Path
) -> None:
    def needs(manifest: Any) -> None:
        manifest["targets"][0]["features"].append("imaginary")

    def elsewhere(manifest: Any) -> None:
        manifest["targets"][0]["machine"] = "pdp11 unix"

    def runs_nowhere(manifest: Any) -> None:
        manifest["native"][0]["machine"] = "pdp11 unix"

    def later(manifest: Any) -> None:
        manifest["schema"] = 99

    def no_weight(manifest: Any) -> None:
        del manifest["weights"]["tensors"]["head.weight"]

    def without(members: dict[str, bytes]) -> None:
        del members["weights.safetensors"]

    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_bytes(store.read_bytes()[:-7])
    cases: dict[str, str | Callable[[dict[str, bytes]], None]] = {
        "absent": "FL1101",
        "folder": "FL1101",
        "empty": "FL1102",
        "short": "FL1102",
        "kernels": spoil("/decode.so"),
        "program": spoil("/prefill/cpu-native.json"),
        "runner": spoil("/runner.so"),
        "without": without,
        "needs": with_manifest(needs),
        "elsewhere": with_manifest(elsewhere),
        "nowhere": with_manifest(runs_nowhere),
        "later": with_manifest(later),
        "weights": with_manifest(no_weight),
    }
    codes: list[str] = []
    for name, change in cases.items():
        path = tmp_path / name
        if not isinstance(change, str):
            changed(store, path, change)
        said = message(lambda p=path: Opened(built, p))
        assert said == message(lambda p=path: load(p))
        codes.append(said[:6])
    assert codes == [
        *("FL1101", "FL1101", "FL1102", "FL1102", "FL1103", "FL1103", "FL1103", "FL1102"),
        *("FL1105", "FL1105", "FL1105", "FL1104", "FL1102"),
    ]
    assert message(lambda: Opened(built, store, "sm_90")).startswith("FL1105")


def test_the_best_target_is_chosen(built: Built, folder: Path, options: dict[str, Any]) -> None:
    path = folder / "two.fuse"
    models.exported_store(path, cpu_isa=("baseline", "native"), **options)
    shown = runner.checked(built.run, path)
    assert shown.splitlines()[0].endswith("for cpu:native")
    assert "for cpu:baseline" in runner.checked(built.run, path, "--target", "cpu:baseline")
    chosen = Opened(built, path, "cpu:baseline")(models.ids(1, 4), program="prefill")[0]
    close(chosen, load(path).programs["prefill"](models.ids(1, 4)))
