"""Which loops over experts do nothing in a turn without rows, by their source."""

from __future__ import annotations

import linecache
from pathlib import Path
from textwrap import indent
from types import CodeType

import pytest

from fuseline.frontend.idle_turns import loop_asking, loop_over

HEAD, ASKS = 2, 4
"""The lines of the loop's head, and of the first statement behind the one that finds rows."""

IDLE = [
    "y.index_add_(0, rows, self.experts[e](x[rows]))",
    "y[rows] += self.experts[e](x[rows]) * w[rows, None]",
    "y = y.index_add(0, rows, self.experts[e](x[rows]))",
    "if rows.numel() == 0:\n    continue\ny[rows] += self.experts[e](x[rows])",
    "if rows.shape[0] > 0:\n    out = self.experts[e](x[rows])\n    y[rows] += out",
    "if len(rows) != 0:\n    y[rows] += self.experts[e](x[rows])",
    "n = int(e.item())\nif n > 2 or not self.w:\n    o = x[rows]\nelse:\n    o = 1\ny[rows] += o",
    "n = e.item()\nif n == self.count:\n    continue\ny[rows] += x[rows] * n",
    "with torch.no_grad():\n    more = x[rows]\ny.index_add_(0, rows, more)",
    "n = e[0]\ny.index_add_(0, rows, self.act(x[rows] @ self.w[n]))",
]

NOT_IDLE = [
    "count += 1\ny[rows] += x[rows]",
    "self.calls = e\ny[rows] += x[rows]",
    "found.append(e)\ny[rows] += x[rows]",
    "y += self.bias[e]",
    "used[e] = 1",
    "used[rows] = 1\ny[rows] += x[rows]",
    "y[rows] = x[rows]",
    "scale = scale * 0.5\ny[rows] += scale * x[rows]",
    "if self.late:\n    out = before\nbefore = x[rows]\ny[rows] += before",
    "last = x[rows]\ny[rows] += last",
    "if rows.numel() == 0:\n    break\ny[rows] += x[rows]",
    "if rows.numel() == 0:\n    return y\ny[rows] += x[rows]",
    "if rows.numel() == 0:\n    y = -y\ny[rows] += x[rows]",
    "if rows.numel() == 0:\n    continue\nelse:\n    y[rows] += x[rows]",
    "if rows.numel() > 0:\n    out = x[rows]\ny[rows] += out",
    "for i in rows:\n    y[i] += x[i]",
    "while self.more():\n    y[rows] += x[rows]",
    "y[rows] += (out := x[rows])",
    "y[rows] += next(scale) * x[rows]",
    "y[rows] += sum([x[r] for r in rows])",
    "y[rows] += x[rows] * e",
    "y[rows] += self.w[e * 2]",
    "y[rows] += self.w[e[0] + 1]",
    "y[x] += x[rows]",
    "y.index_add_(1, rows, x[rows])",
    "y[rows] += x[rows]\nused[rows] += 1",
    "assert rows.numel()\ny[rows] += x[rows]",
    "del x\ny[rows] += y[rows]",
    "try:\n    y[rows] += x[rows]\nfinally:\n    pass",
    "with self.lock():\n    y[rows] += x[rows]",
    "",
]


def source(body: str, *, head: str = "for e in hit:") -> str:
    lines = [
        "def forward(self, x, hit, mask, w, used, found, y, scale, count, before):",
        f"    {head}",
        "        rows, _ = torch.where(mask[e])",
        indent(body, " " * 8),
        "    return y, last",
        "",
    ]
    return "\n".join(lines)


def code_of(text: str, tmp_path: Path) -> CodeType:
    """The code of the function in a text, which is written to a file."""
    path = tmp_path / "loop.py"
    path.write_text(text)
    linecache.checkcache(str(path))
    codes = compile(text, str(path), "exec").co_consts
    return next(c for c in codes if isinstance(c, CodeType))


def is_idle(text: str, tmp_path: Path, line: int = HEAD) -> bool:
    return loop_over(code_of(text, tmp_path), line) is not None


@pytest.mark.parametrize("body", IDLE)
def test_idle(body: str, tmp_path: Path) -> None:
    assert is_idle(source(body), tmp_path)


@pytest.mark.parametrize("body", NOT_IDLE)
def test_no_idle_turns(body: str, tmp_path: Path) -> None:
    assert not is_idle(source(body), tmp_path)


BODY = "y[rows] += x[rows]"


@pytest.mark.parametrize(
    "head",
    [
        "for e in mask.sum((1, 2)).gt(0).nonzero():",
        "for e in torch.greater(mask, 0).nonzero(as_tuple=True)[0]:",
        "for e in hit.tolist():",
    ],
)
def test_heads(head: str, tmp_path: Path) -> None:
    assert is_idle(source(BODY, head=head), tmp_path)


@pytest.mark.parametrize(
    "head",
    [
        "for e in list(hit):",
        "for e in zip(hit):",
        "for _, e in enumerate(hit):",
        "for e in reversed(hit):",
        "for e in [z for z in hit]:",
        "for e in hit[1:]:",
        "for e in torch.stack(list(hit)):",
        "for e in hit.view(*hit):",
        "for e in hit or found:",
    ],
)
def test_no_other_heads(head: str, tmp_path: Path) -> None:
    assert not is_idle(source(BODY, head=head), tmp_path)


def changed(tmp_path: Path, *changes: tuple[str, str]) -> bool:
    """Whether the loop has idle turns after changes to its source; asked at the file's line 2."""
    text = source(BODY)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return is_idle(text, tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    return", "    else:\n        y = -y\n    return"),
        ("    return y, last", "    return y, rows"),
        ("    return y, last", "    return y, lambda: rows"),
        ("    return y, last", "    return y, locals()"),
        ("    for e", "    global rows\n    for e"),
        ("    for e", "    def late():\n        return rows\n    for e"),
    ],
)
def test_no_loop_whose_names_are_seen_outside(old: str, new: str, tmp_path: Path) -> None:
    text = source(BODY).replace(old, new)
    assert text != source(BODY)
    line = text.split("\n").index("    for e in hit:") + 1
    assert not is_idle(text, tmp_path, line)


def test_no_loop_in_another(tmp_path: Path) -> None:
    lines = source(BODY).split("\n")
    inner = ["    for _ in range(2):", *("    " + line for line in lines[1:4]), *lines[4:]]
    assert not is_idle("\n".join([lines[0], *inner]), tmp_path, HEAD + 1)


MADE = ("    for e", "    hit = mask.tolist()\n    for e"), ("x, hit, mask", "x, mask")


def test_a_list_of_numbers_is_the_loops(tmp_path: Path) -> None:
    assert changed(tmp_path, *MADE)


def test_no_list_that_something_else_reads(tmp_path: Path) -> None:
    assert not changed(tmp_path, *MADE, ("return y", "return hit, y"))


@pytest.mark.parametrize(
    "changes",
    [
        ("    hit = mask", "    nonlocal hit\n    hit = mask"),
        ("hit = mask.tolist()", "n = len(mask.tolist()); hit = mask.tolist()"),
        ("hit = mask.tolist()", "hit = self.keep([*mask], mask).tolist()"),
        ("hit = mask.tolist()", "hit = (mask if n else count).tolist()"),
    ],
)
def test_no_list_that_may_be_seen(changes: tuple[str, str], tmp_path: Path) -> None:
    text = source(BODY)
    for old, new in (*MADE, changes):
        assert old in text
        text = text.replace(old, new, 1)
    text = f"def around(hit):\n{indent(text, '    ')}" if "nonlocal" in text else text
    code = code_of(text, tmp_path)
    inner = [c for c in code.co_consts if isinstance(c, CodeType)] if "nonlocal" in text else [code]
    line = 1 + next(i for i, t in enumerate(text.split("\n")) if "hit = " in t)
    assert loop_over(inner[0], line) is None


def test_no_loop_whose_failure_is_caught(tmp_path: Path) -> None:
    lines = source(BODY).split("\n")
    inner = ["    try:", *("    " + line for line in lines[1:4]), "    except ValueError: pass"]
    assert not is_idle("\n".join([lines[0], *inner, *lines[4:]]), tmp_path, HEAD + 1)


def test_no_source_that_is_another(tmp_path: Path) -> None:
    """A file may have been edited since it was imported."""
    code = code_of(source("count += 1\n" + BODY), tmp_path)
    code_of(source("count\n" + BODY), tmp_path)
    assert loop_over(code, HEAD) is None


def test_no_list_of_something_else(tmp_path: Path) -> None:
    assert not changed(tmp_path, *MADE, ("hit = mask", "found = mask"))


@pytest.mark.parametrize(
    ("test", "asks"),
    [
        ("rows.numel() == 0", True),
        ("rows.size(0) == 0", True),
        ("rows.numel() == 4", False),
        ("rows.numel() < 2", False),
        ("x.numel() == 0", False),
        ("other.numel() == 0", False),
        ("rows.numel() == 0 or x.numel() == 0", False),
        ("not rows.numel()", False),
    ],
)
def test_what_asks_for_rows(test: str, asks: bool, tmp_path: Path) -> None:
    """In a loop over all experts, too, whose turns are then all made."""
    body = f"if {test}:\n    continue\n{BODY}"
    code = code_of(source(body, head="for e in range(count):"), tmp_path)
    assert (loop_asking(code, ASKS) is not None) is asks
