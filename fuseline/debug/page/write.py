"""Writes a page as one HTML file that needs nothing else: no network, no library, no other file.

Its script is the files of ``templates/html/page``, one behind the other; its data is JSON that the
script reads, a program at a time. The file's own policy forbids whatever does not come with it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Mapping
from importlib import resources

import jinja2
from markupsafe import Markup

from fuseline.debug.page.data import PageView, ProgramView

_SCRIPTS = (
    # what all views need
    "dom",
    "format",
    "data",
    "derive",
    "route",
    "tokens",
    "words",
    "code",
    "table",
    "palette",
    "camera",
    # the views
    "overview",
    "passes",
    "diff",
    "text",
    "graph_model",
    "graph_draw",
    "graph_map",
    "graph_card",
    "graph",
    "sites",
    "kernels",
    "layers",
    "memory",
    "samples",
    # what is around them
    "search",
    "shell",
    "start",
)
"""The files of the script, in their order."""


def render(page: PageView) -> str:
    """The page as HTML: the same bytes for the same page."""
    style, script = _style(), _script()
    return _template().render(
        title=page.title,
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        data=_json(_head(page)),
        programs=[_json(program) for program in page.programs],
    )


def _head(page: PageView) -> Mapping[str, object]:
    """All of a page but what its programs hold."""
    return {
        "title": page.title,
        "versions": dict(page.versions),
        "notes": page.notes,
        "programs": [_name(program) for program in page.programs],
    }


def _name(program: ProgramView) -> Mapping[str, str]:
    return {"name": program.name, "target": program.target}


def _json(data: object) -> Markup:
    """JSON that may stand in a script element: nothing in it can end that, or begin another."""
    text = json.dumps(data, default=vars, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _policy(style: str, script: str) -> str:
    """What the file may do: run its own script, use its own style, and nothing else."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_digest(script)}'",
            f"style-src '{_digest(style)}'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@functools.lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fuseline", "templates/html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=True,
    )
    return environment.get_template("page.html.jinja")


@functools.lru_cache(maxsize=1)
def _style() -> str:
    return _read("page.css")


@functools.lru_cache(maxsize=1)
def _script() -> str:
    return "\n".join(_read(f"page/{name}.js") for name in _SCRIPTS)


def _read(name: str) -> str:
    return resources.files("fuseline").joinpath("templates/html", name).read_text("utf-8")


__all__ = ["render"]
