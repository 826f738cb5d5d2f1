"""The page in a real Chromium: each view and each control, on a desk and on a phone."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

import fuseline
from fuseline.debug.page import write
from fuseline.debug.page.data import PageView
from tests.debug.page import browser as driver
from tests.debug.page import fabricated
from tests.debug.page.browser import Browser

pytestmark = pytest.mark.skipif(driver.missing(), reason=driver.MISSING)

SHELL = "document.querySelector('main')"
CAMERA = "document.querySelector('.stage canvas').dataset.camera.split(' ').map(Number)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def window(folder: Path) -> Generator[Browser]:
    with driver.browser(folder / "profile") as opened:
        opened.open(_written(folder, "about", fabricated.bare()))
        opened.requests()
        yield opened


@pytest.fixture
def browser(window: Browser) -> Generator[Browser]:
    """The window as it comes, which must have said nothing and asked for nothing but its file."""
    window.screen(1280, 800)
    window.scheme("light")
    window.log()
    window.requests()
    yield window
    assert window.log() == []
    assert [url for url in window.requests() if not url.startswith("file:")] == []


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Path:
    return _written(folder, "tiny", fabricated.page())


@pytest.fixture(scope="module")
def pair(folder: Path) -> Path:
    return _written(folder, "pair", fabricated.page(programs=2))


def _written(folder: Path, name: str, view: PageView) -> Path:
    path = folder / f"{name}.html"
    path.write_text(write.render(view), encoding="utf-8")
    return path


def _node(browser: Browser, number: int) -> tuple[float, float]:
    """Where on the screen an op of the graph is: they lie in two columns, each in its own row."""
    x, y, scale = browser.get(CAMERA)
    left, top = browser.get(
        "(r => [r.x, r.y])(document.querySelector('.stage canvas').getBoundingClientRect())"
    )
    return left + (number % 2 * 196 + 86 - x) * scale, top + (number * 64 + 19 - y) * scale


SAYS = {
    "overview": [
        "10 fused",
        "1 missed",
        "8 passes, 6 of which changed it",
        "70→70",
        "attention",
    ],
    "passes": ["pass-7", "Fold a residual add"],
    "diff": ["pass-0", "version = 1"],
    "graph": ["70 ops", "attention"],
    "sites": ["x is not rotated: Tiny", "layers.0\u20139.Tiny", "4 over 2"],
    "kernels": ["rows_0", "linear by rows"],
    "layers": ["layers.0\u20139", "50", "the same", "Floor of each"],
    "memory": ["1.02 kB in use"],
    "samples": ["2.27\u00d7 as fast", "70 steps", "Floor", "take 40.0 \u00b5s"],
    "text": ["72 lines", "func @f(%v0: f32[1, 64])"],
}
"""Words of each view of a small page."""


def test_views_say_what_the_data_says(browser: Browser, tiny: Path) -> None:
    browser.open(tiny)
    for view, says in SAYS.items():
        browser.go(f"#view={view}")
        text = browser.get(f"{SHELL}.innerText").replace("\n", " ").replace("\u00a0", " ")
        for words in says:
            assert words in text
        [tab] = browser.texts(".tab[aria-current]")
        assert browser.get("document.title") == f"{tab.rstrip('0123456789')} \u00b7 Tiny"


def test_views_of_a_program_of_which_nothing_is_known_say_why(
    browser: Browser, folder: Path
) -> None:
    browser.open(folder / "about.html")
    for view in list(SAYS)[1:]:
        browser.go(f"#view={view}")
        assert len(browser.texts(".missing-what")) >= 1, view


def test_all_that_a_layer_costs_is_in_sight_on_a_phone(browser: Browser, tiny: Path) -> None:
    browser.screen(360, 740, phone=True)
    browser.open(tiny, "#view=layers")
    rights = "[...document.querySelectorAll('td, td *')].map(e => e.getBoundingClientRect().right)"
    assert browser.get(f"Math.max(...{rights})") <= 360
    title = "getComputedStyle(document.querySelector('td:last-child'), '::before').content"
    assert browser.get(title) == '"Floor of each"'


def test_a_page_on_which_nothing_was_compiled_has_its_notes(browser: Browser, folder: Path) -> None:
    note = "torch ran a call of f as it is, not compiled: gradients are on"
    view = PageView("report.html", {"torch": "2.13.0"}, (note,), ())
    browser.open(_written(folder, "notes", view), "#view=samples")
    text = browser.get(f"{SHELL}.innerText")
    assert all(words in text for words in ("report.html", "Nothing was compiled.", note, "2.13.0"))
    browser.key("/")
    browser.key("3")
    browser.scheme("dark")  # which has views made anew
    assert note in browser.get(f"{SHELL}.innerText")
    browser.scheme("light")


def test_a_call_is_held_against_the_floor_where_it_is_one_run(
    browser: Browser, folder: Path, tiny: Path
) -> None:
    browser.open(tiny, "#view=samples")  # three calls, and two samples of each step
    text = browser.get(f"{SHELL}.innerText")
    assert "A call is more than one run of this program." in text
    assert "times that" not in text
    assert "The rest of a call" not in text
    page = fabricated.page()
    (program,) = page.programs
    steps = tuple(replace(s, seconds=(1e-5, 2e-5, 1e-5), floor=None) for s in program.steps)
    page = replace(page, programs=(replace(program, steps=steps, unknown=("u0",)),))
    browser.open(_written(folder, "whole", page), "#view=samples")
    text = browser.get(f"{SHELL}.innerText").replace("\u00a0", " ")
    assert "take 40.0 \u00b5s, and a call 275 times that, by a machine of this test" in text
    assert "The rest of a call, 10.3 ms, is around them." in text
    browser.go("#view=overview")
    assert browser.texts(".note")[0].startswith("The size u0 is not known before the model runs")


def test_nothing_is_cut_off_on_paper(browser: Browser, tiny: Path) -> None:
    browser.open(tiny, "#view=kernels")
    style = "getComputedStyle(document.querySelector('.code')).maxHeight"
    assert browser.get(style) != "none"
    browser.devtools("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert browser.get(style) == "none"
        assert browser.get("getComputedStyle(document.querySelector('.tabs')).display") == "none"
    finally:
        browser.devtools("Emulation.setEmulatedMedia", {"media": ""})


def test_no_view_is_wider_than_a_phone(browser: Browser, tiny: Path) -> None:
    browser.screen(360, 740, phone=True)
    browser.open(tiny)
    for view in SAYS:
        browser.go(f"#view={view}")
        assert browser.get("document.documentElement.scrollWidth") <= 360, view


def test_hostile_names_are_text(browser: Browser, folder: Path) -> None:
    hostile = _written(folder, "hostile", fabricated.page(name=fabricated.HOSTILE))
    browser.open(hostile)
    for view in SAYS:
        browser.go(f"#view={view}")
        assert browser.get("document.images.length") == 0, view
    assert "taken" not in browser.get("document.title").split(" · ")[0]
    browser.go("#view=overview")
    assert fabricated.HOSTILE.split("\u2028")[0] in browser.texts("h1")[0]


def test_a_bar_of_the_timeline_leads_to_its_diff(browser: Browser, tiny: Path) -> None:
    browser.open(tiny, "#view=passes")
    browser.click("a.pass[data-pass='4'] rect")
    assert browser.get("location.hash") == "#program=0&view=diff&pass=4"
    assert "pass-3" in browser.texts(".pass-title")[0]


def test_the_timeline_has_bars_by_time_and_of_one_width(browser: Browser, tiny: Path) -> None:
    bars = "[...document.querySelectorAll('.pass > rect:first-of-type')]"
    widths = f"{bars}.map(bar => bar.width.baseVal.value)"
    browser.open(tiny, "#view=passes")
    by_time = browser.get(widths)
    assert by_time[4] / by_time[0] == pytest.approx(5, rel=0.1)
    browser.click(".choice button:nth-child(2)")
    assert len({round(width) for width in browser.get(widths)}) == 1


def test_the_diff_marks_the_words_that_changed(browser: Browser, tiny: Path) -> None:
    browser.open(tiny, "#view=diff&pass=2")
    assert browser.texts(".row.other .left mark")[0] == "0"
    assert browser.texts(".row.other .right mark")[0] == "2"
    same = browser.texts(".row.same .left.text")
    assert same[0] == browser.texts(".row.same .right.text")[0]


def test_lines_that_stayed_can_be_unfolded(browser: Browser, tiny: Path) -> None:
    browser.open(tiny, "#view=diff&pass=1")
    before = browser.get("document.querySelectorAll('.row').length")
    said = browser.texts(".unfold")[0]
    browser.click(".unfold")
    after = browser.get("document.querySelectorAll('.row').length")
    assert after - before == int(said.split("\u00a0")[0])
    numbers = browser.get("[...document.querySelectorAll('.no.right')].map(e => +e.dataset.n)")
    assert numbers == sorted(numbers)


def test_a_narrow_diff_shows_a_line_below_what_it_was(browser: Browser, tiny: Path) -> None:
    browser.screen(390, 844, phone=True)
    browser.open(tiny, "#view=diff&pass=1")
    left, right = browser.get(
        "['.left', '.right'].map(side => document.querySelector('.row.other .text' + side)"
        ".getBoundingClientRect().y)"
    )
    assert left < right


def test_arrow_keys_go_to_the_passes_that_changed_something(browser: Browser, tiny: Path) -> None:
    browser.open(tiny, "#view=diff&pass=2")
    browser.key("ArrowRight")
    assert "pass=4" in browser.get("location.hash")  # the third changed nothing
    browser.key("ArrowLeft")
    assert "pass=2" in browser.get("location.hash")


def test_the_text_after_a_pass_is_what_its_hunks_say(browser: Browser, tiny: Path) -> None:
    program = fabricated.page().programs[0]
    browser.open(tiny, "#view=text&at=8")
    patched = browser.texts(".line .text")
    browser.go("#view=text&at=final")
    assert browser.texts(".line .text") == patched
    assert [line.replace("\u00a0", " ") for line in patched] == [
        program.lines[line] for line in program.final
    ]


def test_a_link_to_a_line_shows_it(browser: Browser, tiny: Path) -> None:
    browser.open(tiny, "#view=text&at=0&line=60")
    browser.settle()
    box = "document.querySelector('.line.here').getBoundingClientRect()"
    assert "%v58 =" in browser.texts(".line.here .text")[0]
    assert 0 < browser.get(f"{box}.y") < 800


def test_the_graph_says_what_is_below_the_pointer(browser: Browser, tiny: Path) -> None:
    browser.open(tiny, "#view=graph")
    for number in (3, 4):
        browser.mouse("move", *_node(browser, number))
        browser.settle()
        card = browser.texts(".card")[0]
        assert f"%v{number} =" in card
        assert f"{1000 + number}"[:1] in card
        assert "model.py:1" in card
    browser.mouse("move", 5, 5)
    browser.settle()
    assert browser.get("document.querySelector('.card').hidden")


def test_a_click_pins_an_op_that_leads_to_its_line_kernel_and_site(
    browser: Browser, tiny: Path
) -> None:
    browser.open(tiny, "#view=graph")
    x, y = _node(browser, 1)
    for what in ("move", "press", "release"):
        browser.mouse(what, x, y)
    browser.settle()
    assert "node=1" in browser.get("location.hash")
    links = browser.get("[...document.querySelectorAll('.pin a')].map(a => a.hash)")
    assert "#program=0&view=text&at=final&line=3" in links
    assert "#program=0&view=kernels&kernel=rows_1" in links
    assert "#program=0&view=sites&site=0" in links
    browser.click(".pin .close")
    assert browser.get("document.querySelector('.pin').hidden")


def test_the_graph_moves_and_zooms(browser: Browser, tiny: Path) -> None:
    browser.open(tiny, "#view=graph")
    x, y, scale = browser.get(CAMERA)
    middle = browser.get(
        "(r => [r.x + r.width / 2, r.y + r.height / 2])"
        "(document.querySelector('.stage canvas').getBoundingClientRect())"
    )
    browser.mouse("wheel", *middle, deltaY=-200)
    browser.settle()
    assert browser.get(CAMERA)[2] == pytest.approx(scale * math.exp(0.36), rel=1e-3)
    browser.click(".lens-buttons button:nth-child(2)")
    assert browser.get(CAMERA)[2] == pytest.approx(scale * math.exp(0.36) / 1.4, rel=1e-3)
    browser.click(".lens-buttons button:nth-child(3)")
    fitted = browser.get(CAMERA)
    assert fitted[2] < scale
    browser.run("document.querySelector('.stage canvas').focus()")
    browser.key("Home")
    assert browser.get(CAMERA) == [x, y, scale]
    browser.key("ArrowDown")
    assert browser.get(CAMERA)[1] == pytest.approx(y + 80 / scale, abs=0.01)
    browser.mouse("move", *middle)
    browser.mouse("press", *middle)
    browser.mouse("move", middle[0], middle[1] - 100, buttons=1)
    browser.mouse("release", middle[0], middle[1] - 100)
    browser.settle()
    assert browser.get(CAMERA)[1] == pytest.approx(y + 180 / scale, abs=0.01)


def test_two_fingers_zoom_the_graph(browser: Browser, tiny: Path) -> None:
    browser.screen(390, 844, phone=True)
    browser.open(tiny, "#view=graph")
    scale = browser.get(CAMERA)[2]
    browser.touch("Start", (150, 500), (200, 500))
    browser.touch("Move", (125, 500), (225, 500))
    browser.touch("End")
    browser.settle()
    assert browser.get(CAMERA)[2] == pytest.approx(scale * 2, rel=0.02)


def test_the_legend_fades_a_kind(browser: Browser, tiny: Path) -> None:
    browser.open(tiny, "#view=graph")
    left, top = _node(browser, 1)
    pixel = (
        "(() => { const from = document.querySelector('.stage canvas');"
        "const { x, y } = from.getBoundingClientRect();"
        "const to = document.createElement('canvas').getContext('2d', {willReadFrequently: true});"
        f"to.drawImage(from, x - {left} + 84, y - {top});"
        "return [...to.getImageData(0, 0, 1, 1).data]; })()"
    )
    shown = browser.get(pixel)
    browser.click(".legend-kind[data-kind='attention']")
    browser.mouse("move", 5, 5)
    browser.settle()
    assert sum(browser.get(pixel)[:3]) > sum(shown[:3]) + 100  # nearly white
    assert browser.get("document.querySelector('[data-kind=attention]').ariaPressed") == "false"
    browser.click(".legend-kind[data-kind='attention']")
    browser.mouse("move", 5, 5)
    browser.settle()
    assert browser.get(pixel) == shown


def test_the_graph_has_one_before_the_passes_pieces_and_a_wrapped_form(
    browser: Browser, tiny: Path
) -> None:
    browser.open(tiny, "#view=graph&piece=1")
    assert "35\u00a0ops" in browser.texts(".bar-of-controls")[0]
    browser.click(".bar-of-controls .choice button")
    assert "graph=0" in browser.get("location.hash")
    assert "70\u00a0ops" in browser.texts(".bar-of-controls")[0]
    scale = browser.get(CAMERA)[2]
    browser.go("#view=graph&form=wrapped")
    assert browser.get(CAMERA)[2] != scale


def test_sites_can_be_filtered(browser: Browser, tiny: Path) -> None:
    browser.open(tiny, "#view=sites")
    rows = "document.querySelectorAll('tbody tr').length"
    assert browser.get(rows) == 2  # ten that are alike, and one
    browser.click("[aria-label='Like sites'] button:nth-child(2)")
    assert browser.get(rows) == 11
    browser.click("[aria-label=Status] button:nth-child(3)")
    assert browser.get(rows) == 1
    assert browser.get("location.hash") == "#program=0&view=sites&status=missed"
    browser.go("#view=sites&site=4")
    assert "layers.4.Tiny" in browser.texts("tr.here")[0]
    browser.click("tr.here td:nth-child(3) a")
    assert "view=graph" in browser.get("location.hash")
    assert "layers.4" in browser.texts(".pin")[0]


def test_kernels_show_their_code_and_what_became_of_it(browser: Browser, tiny: Path) -> None:
    browser.open(tiny, "#view=kernels&kernel=rows_1")
    text = browser.get(f"{SHELL}.innerText")
    for words in ("registers", "64", "49.2\u00a0kB", "spills", "Chosen by measurement"):
        assert words in text
    assert "rows_1" in browser.texts(".t-call")
    assert browser.texts(".t-comment")[:2] == ["/* the rows", "   of a product */"]
    browser.click("[aria-label='Which code'] button:nth-child(2)")
    assert ".version 8.4" in browser.texts(".line .text")
    browser.go("#view=kernels&kernel=mm")
    assert "large products" in browser.get(f"{SHELL}.innerText")


def test_like_layers_are_one_row_until_one_asks(browser: Browser, tiny: Path) -> None:
    browser.open(tiny, "#view=layers")
    rows = "document.querySelectorAll('tbody tr').length"
    assert browser.get(rows) == 1
    browser.click(".choice button:nth-child(2)")
    assert browser.get(rows) == 10


def test_memory_says_what_lies_where(browser: Browser, tiny: Path) -> None:
    browser.open(tiny, "#view=memory")
    x, y, width, height = browser.get(
        "(r => [r.x, r.y, r.width, r.height])"
        "(document.querySelector('.stage canvas').getBoundingClientRect())"
    )
    browser.mouse("move", x + width * 8.5 / 70, y + height - 40)  # above step 8, at the bottom
    browser.settle()
    assert browser.texts(".card .card-title") == ["v8"]
    for what in ("press", "release"):
        browser.mouse(what, x + width * 8.5 / 70, y + height - 40)
    browser.settle()
    assert browser.texts(".live h2") == ["Step 8"]
    assert sorted(browser.texts(".live tbody td:first-child")) == ["v5", "v6", "v7", "v8"]


def test_tables_are_sorted_by_a_click(browser: Browser, tiny: Path) -> None:
    browser.open(tiny, "#view=samples")
    first = "document.querySelector('tbody td').innerText"
    assert browser.get(first) == "3"  # the longest
    browser.click("thead th:first-child button")
    browser.click("thead th:first-child button")
    assert browser.get(first) == "0"
    assert browser.get("document.querySelector('th').ariaSort") == "ascending"


def test_search_finds_ops_kernels_sites_and_passes(browser: Browser, tiny: Path) -> None:
    browser.open(tiny)
    browser.key("/")
    browser.type("%v13 ")
    assert len(browser.texts(".hits li")) == 2  # it, and what reads it
    browser.key("Enter")
    assert "node=13" in browser.get("location.hash")
    assert "%v13 =" in browser.texts(".pin")[0]
    for words, place in (("rows_2", "kernel=rows_2"), ("rotated", "site=10"), ("pass-5", "pass=6")):
        browser.key("/")
        browser.run("const i = document.querySelector('.search input'); i.value = ''")
        browser.type(words)
        last = browser.get("document.querySelectorAll('.hits li').length")
        for _ in range(last - 1):
            browser.key("ArrowDown")
        browser.key("Enter")
        assert place in browser.get("location.hash")


def test_programs_and_views_are_chosen_by_hand_and_by_key(browser: Browser, pair: Path) -> None:
    browser.open(pair, "#view=kernels")
    browser.run(
        "const list = document.querySelector('[aria-label=Program]'); list.value = '1';"
        "list.dispatchEvent(new Event('change'))"
    )
    browser.settle()
    assert browser.get("location.hash") == "#program=1&view=kernels"
    assert "Tiny1 (model.py:1)" in browser.get(f"{SHELL}.innerText")
    browser.key("4")
    assert browser.get("location.hash") == "#program=1&view=graph"
    browser.open(pair, "#program=1&view=overview")
    assert "Tiny1 for cpu" in browser.texts(".sub")[0].replace("\u00a0", " ")
    assert "like the first" in browser.texts(".note")[0]


def test_colours_follow_the_system_until_one_chooses(browser: Browser, tiny: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    browser.open(tiny)
    light = browser.get(paper)
    browser.scheme("dark")
    browser.settle()
    dark = browser.get(paper)
    assert dark != light
    browser.click(".theme")
    assert browser.get(paper) == light
    browser.click(".theme")
    assert browser.get(paper) == dark
    browser.open(tiny, "#view=graph")  # it is remembered
    assert browser.get("document.documentElement.dataset.scheme") == "dark"
    browser.click(".theme")
    assert browser.get("document.documentElement.dataset.scheme") == "system"


def test_keys_are_explained(browser: Browser, tiny: Path) -> None:
    browser.open(tiny)
    browser.key("?")
    assert browser.get("document.querySelector('dialog').open")
    browser.key("Escape")
    assert not browser.get("document.querySelector('dialog').open")


def test_a_page_of_5000_ops_opens_soon(browser: Browser, folder: Path) -> None:
    large = _written(folder, "large", fabricated.page(5040, 60))
    assert large.stat().st_size < 15e6
    for view in ("overview", "graph", "diff"):
        browser.open(large, f"#view={view}")
        assert browser.get("performance.getEntriesByName('shown')[0].startTime") < 3000, view
    browser.go("#view=graph&graph=0&form=wrapped")
    frames = browser.run(
        """
        const [zoom] = document.querySelectorAll('.lens-buttons button');
        const frame = () => new Promise(requestAnimationFrame);
        return (async () => {
            const start = performance.now();
            for (let number = 0; number < 10; number += 1) { zoom.click(); await frame(); }
            return (performance.now() - start) / 10;
        })()
        """
    )
    assert frames < 200  # milliseconds of each


@pytest.mark.slow
def test_the_page_of_a_model_of_30_layers_opens_soon(browser: Browser, folder: Path) -> None:
    config = transformers.Qwen3Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=30,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=256,
    )
    path = folder / "30-layers.html"
    model = fuseline.compile(transformers.Qwen3ForCausalLM(config).eval(), html=path)
    with torch.no_grad():
        model(input_ids=torch.arange(1, 10)[None], use_cache=False)
    assert path.stat().st_size < 15e6
    for view in SAYS:
        browser.open(path, f"#view={view}")
        assert browser.get("performance.getEntriesByName('shown')[0].startTime") < 3000, view
    browser.go("#view=sites&pattern=qk_norm")
    assert "\u00d730" in browser.texts("tbody tr")[0]
    passes = browser.texts(".tab .count")[0]
    browser.go("#view=text&at=final")
    final = browser.texts(".line .text")
    browser.go(f"#view=text&at={passes}")
    assert browser.texts(".line .text") == final
