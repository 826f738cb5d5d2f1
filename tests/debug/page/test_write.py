"""The page as a file: safe, whole, and the same each time; what it shows is tested in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fuseline
from fuseline.debug.page import write
from tests.debug.page import fabricated

FOLDER = Path(fuseline.__file__).parent / "templates" / "html"


def embedded(page: str, name: str) -> Any:
    """The JSON of a page's element."""
    found = re.search(f'<script type="application/json" id="{name}">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def test_the_page_holds_all_of_its_data() -> None:
    view = fabricated.page(programs=2)
    page = write.render(view)
    for number, program in enumerate(view.programs):
        assert embedded(page, f"program-data-{number}") == json.loads(json.dumps(asdict(program)))
    head = embedded(page, "page-data")
    assert head["title"] == view.title
    assert head["programs"][1] == {"name": "Tiny1", "target": "cpu"}


def test_equal_pages_have_equal_bytes() -> None:
    assert write.render(fabricated.page()) == write.render(fabricated.page())


def test_no_name_ends_a_script_or_begins_an_element() -> None:
    page = write.render(fabricated.page(name=fabricated.HOSTILE))
    assert "<img" not in page
    assert "\u2028" not in page.split("</head>")[1]
    assert page.count("</script>") == 3  # the page's data, the program's, and the script
    assert embedded(page, "page-data")["title"] == fabricated.HOSTILE


def test_the_policy_names_this_style_and_this_script_alone() -> None:
    page = write.render(fabricated.page())
    policy = re.search('http-equiv="Content-Security-Policy" content="(.*?)"', page)
    assert policy is not None
    for element in (r"<style>(.*?)</style>", r'<script type="module">(.*?)</script>'):
        text = re.search(element, page, re.S)
        assert text is not None
        digest = base64.b64encode(hashlib.sha256(text[1].encode()).digest()).decode()
        assert f"sha256-{digest}" in policy[1]
    assert policy[1].startswith("default-src &#39;none&#39;")
    assert "unsafe" not in policy[1]


def test_every_file_of_the_script_is_in_it() -> None:
    page = write.render(fabricated.bare())
    for file in sorted((FOLDER / "page").iterdir()):
        assert file.read_text() in page, file.name


def test_no_file_of_the_script_reads_html() -> None:
    """Names of a model reach the page as text only."""
    ways = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function")
    for file in sorted((FOLDER / "page").iterdir()):
        assert not ways.search(file.read_text()), file.name
