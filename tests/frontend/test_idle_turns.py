"""Which loops over experts do nothing in a turn without rows."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

import pytest

from fuseline.frontend.idle_turns import has_idle_turns

IDLE = [
    "y.index_add_(0, rows, self.experts[e](x[rows]))",
    "y[rows] += self.experts[e](x[rows]) * w[rows, None]",
    "y = y.index_add(0, rows, self.experts[e](x[rows]))",
    "if rows.numel() == 0:\n    continue\ny[rows] += self.experts[e](x[rows])",
    "if rows.numel() > 0:\n    out = self.experts[e](x[rows])\n    y[rows] += out",
    "n = e + 1\nif n > 2:\n    out = x[rows]\nelse:\n    out = -x[rows]\ny[rows] = out",
    "a, b = (m[e] for m in (self.a, self.b))\ny[rows] += x[rows] @ a @ b",
    "with torch.no_grad():\n    more = x[rows]\ny.index_add_(0, rows, more)",
]
NOT_IDLE = [
    "count += 1\ny[rows] += x[rows]",
    "self.calls = e\ny[rows] += x[rows]",
    "found.append(e)\ny[rows] += x[rows]",
    "y += self.bias[e]",
    "used[e] = 1",
    "n = e + 1\nused[n] = 1",
    "used[rows] = 1\ny[rows] += x[rows]",
    "scale = scale * 0.5\ny[rows] += scale * x[rows]",
    "if e > 0:\n    out = before\nbefore = x[rows]\ny[rows] += before",
    "last = x[rows]\ny[rows] += last",
    "if rows.numel() == 0:\n    break\ny[rows] += x[rows]",
    "if rows.numel() == 0:\n    return y\ny[rows] += x[rows]",
    "for i in rows:\n    y[i] += x[i]",
    "y[rows] += (out := x[rows])",
    "",
]


def loop(body: str, tmp_path: Path, *, head: str = "for e in hit:") -> tuple[str, int]:
    """A file with a loop, and the line of its head."""
    lines = [
        "def forward(self, x, hit, mask, w, used, found, y, scale, count, before):",
        f"    {head}",
        "        rows, = torch.where(mask[e])",
        indent(body, " " * 8),
        "    return y, last",
    ]
    path = tmp_path / "loop.py"
    path.write_text("\n".join(lines))
    return str(path), 2


@pytest.mark.parametrize("body", IDLE)
def test_idle(body: str, tmp_path: Path) -> None:
    assert has_idle_turns(*loop(body, tmp_path))


@pytest.mark.parametrize("body", NOT_IDLE)
def test_no_idle_turns(body: str, tmp_path: Path) -> None:
    assert not has_idle_turns(*loop(body, tmp_path))


BODY = "y[rows] += x[rows]"


def changed(tmp_path: Path, *changes: tuple[str, str]) -> bool:
    """Whether the loop has idle turns after changes to its source; asked at the file's line 2."""
    text = Path(loop(BODY, tmp_path)[0]).read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "changed.py"
    path.write_text(text)
    return has_idle_turns(str(path), 2)


def test_no_loop_with_an_end_of_its_own(tmp_path: Path) -> None:
    assert not changed(tmp_path, ("    return", "    else:\n        y = -y\n    return"))


MADE = ("    for e", "    hit = mask.tolist()\n    for e"), ("x, hit, mask", "x, mask")


def test_a_list_of_numbers_is_the_loops(tmp_path: Path) -> None:
    assert changed(tmp_path, *MADE)


def test_no_list_that_something_else_reads(tmp_path: Path) -> None:
    assert not changed(tmp_path, *MADE, ("return y", "return hit, y"))


def test_no_list_of_something_else(tmp_path: Path) -> None:
    assert not changed(tmp_path, *MADE, ("hit = mask", "found = mask"))
