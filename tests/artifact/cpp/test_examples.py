"""The examples of the C++ runner, and what it has in common with Python."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from fuseline import errors
from fuseline.artifact.load import load
from tests.artifact.cpp import models, runner
from tests.artifact.cpp.compare import Case, close
from tests.artifact.cpp.runner import Built

ABI = runner.CPP.parent / "fuseline_abi.h"


def test_the_interface_of_kernels_is_that_of_the_header(tmp_path: Path) -> None:
    source = (runner.CPP / "fuseline.cpp").read_text()
    own = source[source.index("struct fl_host {") : source.index("struct fl_piece;")]
    fields = {
        "fl_host": ["sgemm"],
        "fl_step": ["fn", "buf", "dim", "width", "independent"],
        "fl_ref": ["offset", "slot"],
        "fl_limits": ["omp_max", "omp_set", "mkl_local"],
    }
    lines = [
        '#include "fuseline.h"',
        "#include <cstddef>",
        f'#include "{ABI}"',
        f"namespace own {{\n{own}}}",
    ]
    for name, members in fields.items():
        lines.append(f"static_assert(sizeof(own::{name}) == sizeof({name}));")
        lines += [
            f"static_assert(offsetof(own::{name}, {m}) == offsetof({name}, {m}));" for m in members
        ]
    limits = {"kMostShares": "FL_MAX_SHARES", "kMostThreads": "FL_MAX_THREADS"}
    for ours, theirs in limits.items():
        value = re.search(rf"{ours} = (\d+);", source)
        assert value is not None
        lines.append(f"static_assert({value[1]} == {theirs});")
    (tmp_path / "same.cpp").write_text("\n".join(lines))
    command = (runner.compiler(), "-std=c++17", "-fsyntax-only", f"-I{runner.CPP}")
    runner.checked(*command, tmp_path / "same.cpp")


def test_the_words_of_errors_are_those_of_python() -> None:
    source = (runner.CPP / "fuseline.cpp").read_text()
    found = re.findall(r"constexpr Code ([A-Z_]+)\{(.*?)\};", source, re.DOTALL)
    assert len(found) == 11
    for name, inner in found:
        texts = re.findall(r'"([^"]*)"', inner)
        code = getattr(errors, name)
        assert (texts[0], texts[1], "".join(texts[2:])) == (code.code, code.title, code.hint or "")


def test_the_example_describes_and_runs(built: Built, case: Case, tmp_path: Path) -> None:
    path, model, dtype = case
    shown = runner.checked(built.run, path)
    kind = str(dtype).removeprefix("torch.")
    assert re.search(r"takes ids: int64\[\w+ in 1\.\.8, \w+ in 1\.\.256\]", shown)
    assert f"takes scale: {kind}[48]" in shown
    assert re.search(rf"gives pooled: {kind}\[\w+ in 1\.\.8, 48\]", shown)
    assert "gives kind = a" in shown
    ids, scale = models.ids(2, 6), models.scale(dtype)
    np.save(tmp_path / "ids.npy", ids.numpy())
    np.save(tmp_path / "scale.npy", scale.float().numpy())
    words = (f"ids={tmp_path}/ids.npy", f"scale={tmp_path}/scale.npy")
    told = runner.checked(built.run, path, *words, "--save", tmp_path, "--threads", "2")
    assert f"hidden: {kind}[2, 6, 48]\n" in told
    with torch.no_grad():
        want = model(ids, scale)
    for name in ("hidden", "pooled"):
        close(torch.as_tensor(np.load(tmp_path / f"{name}.npy")).to(dtype), want[name])
    assert np.load(tmp_path / "tokens.npy") == 6


def test_the_example_tells_what_is_wrong(built: Built, block: Path) -> None:
    for words, code, said in (
        ((), 2, "MODEL.fuse"),
        (("absent.fuse",), 1, "FL1101 cannot read the artifact absent.fuse"),
        ((block, "ids=absent.npy", "scale=absent.npy"), 1, "absent.npy is no .npy file"),
        ((block, "--program", "other"), 1, "no program 'other', but main"),
        ((block, "ids=absent.npy"), 1, "absent.npy is no .npy file"),
    ):
        command = [built.run, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert said in done.stderr


def test_the_example_continues_a_prompt(built: Built, store: Path) -> None:
    prompt, want = [3, 11, 7], list[int]()
    loaded, ids = load(store), torch.tensor([[3, 11, 7]])
    for step in range(8):
        logits = loaded.programs["decode" if step else "prefill"](ids)
        want.append(int(logits[0].argmax()))
        ids = torch.tensor([[want[-1]]])
    words = ("--prompt", ",".join(map(str, prompt)), "--new", "8")
    assert runner.checked(built.generate, store, *words).split() == list(map(str, want))


def test_the_program_of_the_page_runs(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (runner.ROOT / "docs" / "cpp.md").read_text()
    python, source = (
        re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL)[0] for kind in ("python", "cpp")
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(python, "cpp.md", "exec"), {})
    (tmp_path / "page.cpp").write_text(source)
    runner.checked(
        *(runner.compiler(), "-std=c++17", *runner.WARNINGS, f"-I{runner.CPP}", "page.cpp"),
        *(built.shim.parent / "library.a", *runner.LIBRARIES, "-o", "page"),
        cwd=tmp_path,
    )
    assert runner.checked("./page", cwd=tmp_path).startswith("2 rows of 64")
