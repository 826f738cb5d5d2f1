"""`fuseline doctor` says what is there, where values come from, and what will not work."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fuseline import __version__
from fuseline.cli import main
from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu import driver, triton_build

Print = pytest.CaptureFixture[str]


def examined(capsys: Print, *argv: str) -> tuple[int, Any]:
    code = main(["doctor", "--json", *argv])
    return code, json.loads(capsys.readouterr().out)


def test_a_healthy_machine_is_0(capsys: Print) -> None:
    code, found = examined(capsys)
    assert (code, found["problems"]) == (0, [])
    assert found["fuseline"] == __version__
    assert torch.__version__.startswith(found["versions"]["torch"])  # with or without "+cpu"
    assert found["compiler"]["command"].endswith("++")
    assert "cores" in found["devices"]["cpu"]


def test_options_have_their_origin(monkeypatch: pytest.MonkeyPatch, capsys: Print) -> None:
    monkeypatch.setenv("FUSELINE_STRICT", "1")
    _, found = examined(capsys, "--set", "disable=cse,dce")
    options = {option["name"]: option for option in found["options"]}
    assert (options["strict"]["value"], options["strict"]["origin"]) == (True, "environment")
    assert (options["disable"]["value"], options["disable"]["origin"]) == (
        ["cse", "dce"],
        "argument",
    )
    assert options["graphs"]["origin"] == "default"


def test_text_has_all_sections(capsys: Print) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for title in ("versions", "compiler", "devices", "directories", "options", "problems"):
        assert f"\n{title}\n" in f"\n{text}"
    assert "FUSELINE_CACHE_DIR" in text


def test_no_compiler_is_a_problem(monkeypatch: pytest.MonkeyPatch, capsys: Print) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    code, found = examined(capsys)
    assert code == 1
    assert found["compiler"] == {"problem": found["problems"][0]}
    assert "FL0701 no C++ compiler" in found["problems"][0]


def test_a_compiler_that_does_not_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Print
) -> None:
    (tmp_path / "g++").write_bytes(b"\x7fELF nonsense")
    (tmp_path / "g++").chmod(0o755)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    code, found = examined(capsys)
    assert code == 1
    assert "FL0702 unusable C++ compiler" in found["problems"][0]


def test_a_cache_that_cannot_be_used_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Print
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FUSELINE_CACHE_DIR", str(tmp_path / "file"))
    code, found = examined(capsys)
    assert code == 1
    assert "FL0601" in found["problems"][0]


def test_bases_of_the_cache_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Print
) -> None:
    bases = [tmp_path / name for name in ("one", "two")]
    for base in bases:
        Cache.open(base).get_or_build("kernel", {}, lambda folder: (folder / "x").touch())
    monkeypatch.setenv("FUSELINE_CACHE_BASE", ":".join(map(str, bases)))
    code, found = examined(capsys)
    assert (code, found["problems"]) == (0, [])
    shown = {d["path"]: d["state"] for d in found["directories"] if d["use"] == "cache base"}
    assert shown == {str(base): "is read, 1 entry" for base in bases}
    (option,) = [option for option in found["options"] if option["name"] == "cache_base"]
    assert (option["value"], option["origin"]) == ([str(base) for base in bases], "environment")
    assert main(["doctor"]) == 0
    assert f"cache_base {bases[0]}:{bases[1]} environment" in re.sub(
        r" +", " ", capsys.readouterr().out
    )


@pytest.mark.filterwarnings("ignore:FL0609")
def test_a_base_that_cannot_be_read_is_a_problem(tmp_path: Path, capsys: Print) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for name, said in {"absent": "FL0609", "open": "FL0602"}.items():
        code, found = examined(capsys, "--set", f"cache-base={tmp_path / name}")
        assert code == 1
        assert any(said in problem for problem in found["problems"])


def test_a_dump_directory_that_is_a_file_is_a_problem(tmp_path: Path, capsys: Print) -> None:
    (tmp_path / "file").write_text("")
    code, found = examined(capsys, "--set", f"dump_dir={tmp_path}/file")
    assert code == 1
    assert "not a directory" in found["problems"][0]


def test_directories_that_do_not_exist_are_not_made(tmp_path: Path, capsys: Print) -> None:
    code, found = examined(capsys, "--set", f"cache_dir={tmp_path}/a/b")
    assert code == 0
    assert "will be made" in found["directories"][0]["state"]
    assert not (tmp_path / "a").exists()


def test_misspelt_variables_are_a_problem(monkeypatch: pytest.MonkeyPatch, capsys: Print) -> None:
    monkeypatch.setenv("FUSELINE_TREADS", "2")
    code, found = examined(capsys)
    assert code == 1
    assert found["problems"] == ["FUSELINE_TREADS is no option of fuseline"]


def test_a_bad_variable_is_a_problem_and_the_rest_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: Print
) -> None:
    monkeypatch.setenv("FUSELINE_TARGET", "sm_70")
    monkeypatch.setenv("FUSELINE_THREADS", "some")
    code, found = examined(capsys)
    assert code == 1
    assert len(found["problems"]) == 2
    assert found["problems"][0].startswith("FL0101 invalid value for the option target")
    options = {option["name"]: option for option in found["options"]}
    assert (options["target"]["value"], options["target"]["origin"]) == ("auto", "default")
    assert "command" in found["compiler"]


def test_a_bad_value_of_set_is_wrong_usage(capsys: Print) -> None:
    assert main(["doctor", "--set", "target=sm_70"]) == 2
    assert "FL0101" in capsys.readouterr().err


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(driver, "supported_cuda", lambda: None)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_kernels_can_be_built_and_not_run(capsys: Print) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    code, found = examined(capsys)
    assert code == 0
    assert found["gpu"]["GPU"] == "none: kernels for GPUs can be built here, and not run"
    assert found["gpu"]["driver"] == "none"
    assert found["targets"]["cpu"] == "can be built and run"
    assert found["targets"]["sm_90"] == "can be built, and not run"
    assert found["auto"] == {"cpu": "cpu"}


@pytest.mark.usefixtures("no_gpu")
def test_without_triton_nothing_can_be_built_for_gpus(
    monkeypatch: pytest.MonkeyPatch, capsys: Print
) -> None:
    monkeypatch.setattr(triton_build, "has_triton", lambda: False)
    _, found = examined(capsys)
    assert found["targets"]["sm_100"] == "cannot be built without Triton"
    assert found["targets"]["cpu"] == "can be built and run"


def test_a_driver_that_is_too_old_for_torch_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: Print
) -> None:
    """torch says so in a warning, and finds no GPU, or fails where it is asked of one."""

    def refuse() -> int:
        raise RuntimeError("The NVIDIA driver on your system is too old")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", refuse)
    monkeypatch.setattr(driver, "supported_cuda", lambda: (12, 4))
    code, found = examined(capsys)
    assert code == 1
    said = "FL1001 no CUDA driver that torch can use: found one for CUDA 12.4, expected one for 13"
    assert [p for p in found["problems"] if p.startswith(said)] == found["problems"]
    assert found["auto"] == {"cpu": "cpu"}


def test_a_gpu_has_its_target_and_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: Print, tmp_path: Path
) -> None:
    """With a cache of its own: what other tests built would serve in the place of a compiler."""
    (tmp_path / "cache").mkdir(0o700)
    monkeypatch.setenv("FUSELINE_CACHE_DIR", str(tmp_path / "cache"))

    class Properties:
        total_memory = 80 * 2**30

    def answer(value: object) -> Any:
        return lambda *_: value  # pyright: ignore[reportUnknownLambdaType, reportUnknownVariableType]

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name, value in {
        "is_available": True,
        "device_count": 1,
        "get_device_capability": (9, 0),
        "get_device_name": "H100",
        "get_device_properties": Properties,
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer(value))
    monkeypatch.setattr(driver, "supported_cuda", lambda: (13, 0))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    code, found = examined(capsys)
    assert code == 1
    assert found["devices"]["cuda:0"] == "H100, sm_90, 80 GiB"
    assert found["auto"] == {"cpu": "cpu", "cuda:0": "sm_90"}
    assert found["targets"]["sm_80"] == "can be built, and not run"
    assert any("what launches kernels is not in the cache" in p for p in found["problems"])
