"""The generated pages are up to date, links lead somewhere, and every snippet runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from docs.build import PAGES
from fuseline.cli.program import parser

ROOT = Path(__file__).parents[2]
WRITTEN = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def snippets(page: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(page.read_text()) if kind == language]


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="argparse prints help differently in each version"
)
@pytest.mark.parametrize("name", PAGES)
def test_generated_page_is_current(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert (ROOT / "docs" / name).read_text() == PAGES[name](), "run `python -m docs.build`"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page", [p for p in WRITTEN if snippets(p, "python")], ids=lambda path: path.stem
)
def test_snippets_run(page: Path, tmp_path: Path) -> None:
    """A page's snippets run in order, in one process of their own: they register ops and passes."""
    script = tmp_path / "page.py"
    script.write_text("\n".join(snippets(page, "python")))
    torchs_own = "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"  # in 2.11
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", torchs_own, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", WRITTEN, ids=lambda path: path.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_commands_that_are_shown_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in WRITTEN:
        for line in "\n".join(snippets(page, "sh")).splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["fuseline"]:
                parser().parse_args(words[1:])
            if words[:1] == ["make"] and words[1:]:
                assert f"\n{words[1]}:" in makefile, line
