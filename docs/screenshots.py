"""Takes the pictures of `html-report.md`, in a headless Chromium.

    python -m docs.screenshots

Needs the Debian packages chromium and chromium-driver.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

import fuseline
from fuseline.cli.models import load
from fuseline.config import Config
from tests.debug.page.browser import MISSING, Browser, browser, missing

FOLDER = Path(__file__).parent / "html-report"

DESK = (1280, 800)
PHONE = (390, 844)


@dataclass(frozen=True)
class Shot:
    """One picture: its name, where on the page, in which colours, and what is done before."""

    name: str
    fragment: str
    scheme: str = "light"
    phone: bool = False
    act: Callable[[Browser], None] = lambda _: None


def _point(window: Browser) -> None:
    """Have the pointer over the first op that attends."""
    left, top, x, y, scale = window.get(
        "(canvas => [canvas.getBoundingClientRect().x, canvas.getBoundingClientRect().y,"
        "...canvas.dataset.camera.split(' ').map(Number)])(document.querySelector('.stage canvas'))"
    )
    column, row = 2, 5
    window.mouse("move", left + (column * 196 + 90 - x) * scale, top + (row * 64 + 20 - y) * scale)


def _shots(page: Path) -> list[Shot]:
    norms = _pass_number(page, "fuse-add-rms-norm")
    return [
        Shot("overview", "#view=overview"),
        Shot("pipeline", "#view=passes"),
        Shot("diff", f"#view=diff&pass={norms}", "dark"),
        Shot("graph", "#view=graph", act=_point),
        Shot("wrapped", "#view=graph&graph=0&form=wrapped", "dark"),
        Shot("memory", "#view=memory"),
        Shot("phone", "#view=graph&node=12", "dark", phone=True),
    ]


def _pass_number(page: Path, name: str) -> int:
    """The first run of a pass that changed something, from 1."""
    found = re.search(r'id="program-data-0">(.*?)</script>', page.read_text())
    assert found is not None
    passes = json.loads(found[1])["passes"]
    return next(n for n, each in enumerate(passes, 1) if each["name"] == name and each["hunks"])


def _write(path: Path) -> None:
    """A page without samples: a picture is no benchmark."""
    model = load("smollm2", Config(), length=64)
    compiled = fuseline.compile(model.model, html=path)
    with torch.no_grad():
        compiled(*model.args, **model.kwargs)


def _take(window: Browser, page: Path, shot: Shot) -> None:
    width, height = PHONE if shot.phone else DESK
    window.screen(width, height, phone=shot.phone, ratio=1.5 if shot.phone else 1)
    window.scheme(shot.scheme)
    window.open(page, shot.fragment)
    window.settle()
    shot.act(window)
    window.settle()
    picture = Image.open(io.BytesIO(window.picture())).convert("RGB")
    picture.save(FOLDER / f"{shot.name}.png", optimize=True)


if __name__ == "__main__":
    if missing():
        raise SystemExit(MISSING)
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        report = Path(made) / "smollm2.html"
        _write(report)
        with browser(Path(made) / "profile") as chromium:
            for each in _shots(report):
                _take(chromium, report, each)
