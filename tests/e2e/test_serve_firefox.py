"""The page in Firefox: type, select, draw, generate, look, reload. Skipped only if no Firefox is installed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from syzygy.server.app import create_app
from syzygy.server.http_server import serving
from syzygy.server.limits import Limits
from tests.firefox import NEEDS_FIREFOX, Firefox, executable, firefox
from tests.page_driver import expected
from tests.tiny_server import tiny_engine

pytestmark = pytest.mark.skipif(executable() is None, reason=NEEDS_FIREFOX)
DONE = "document.querySelectorAll('figure.done').length === {count} && !document.querySelector('#go.stop')"
SELECT = """
const field = document.getElementById("prompt"), at = field.value.indexOf(arguments[0]);
field.focus();
field.setSelectionRange(at, at + arguments[0].length);
await new Promise((resolve) => setTimeout(resolve, 200));
return [...document.querySelectorAll(".phrases .words")].map((one) => one.textContent);
"""
FILL = """
document.getElementById("advanced").open = true;
for (const [id, value] of Object.entries(arguments[0])) {
    document.getElementById(id).value = value;
    document.getElementById(id).dispatchEvent(new Event("input", { bubbles: true }));
}
"""
PLACES = "const { places } = await import('/page/phrases.js'); return arguments[0].map((pair) => places(...pair));"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firefox]:
    with firefox(tmp_path_factory.mktemp("firefox")) as found:
        yield found


@pytest.fixture(scope="module")
def url(tiny_model: Path) -> Iterator[str]:
    with serving(create_app(tiny_engine(tiny_model), Limits(number=4, steps=10))) as url:
        yield url


def click(browser: Firefox, *selectors: str) -> None:
    for selector in selectors:
        browser.run("document.querySelector(arguments[0]).click();", selector)


def texts(browser: Firefox, selector: str) -> list[str]:
    return browser.run("return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent);", selector)


def test_type_select_draw_generate_look_reload(browser: Firefox, url: str) -> None:
    browser.open(url)
    browser.type("a red star and a blue ring")
    assert browser.run("return document.getElementById('prompt').value;") == "a red star and a blue ring"
    assert browser.run(SELECT, "red star") == ["red star"]
    left, top, width, height = browser.run(
        "const box = document.getElementById('canvas').getBoundingClientRect(); return [box.left, box.top, box.width, box.height];"
    )
    browser.drag(*((round(left + x * width), round(top + y * height)) for x, y in [(0.2, 0.3), (0.2, 0.5), (0.2, 0.7)]))
    assert texts(browser, ".phrases .state") == [""]
    assert browser.run(SELECT, "blue ring") == ["red star", "blue ring"]
    click(browser, "#fill summary", "#templates button:nth-child(3)", "#blur", "#invert", "#undo", "#redo", "#undo")
    browser.run(FILL, {"n": 2, "steps": 2, "seed": 7})
    click(browser, "#go")
    browser.wait(DONE.format(count=2))
    assert texts(browser, "figcaption > span") == ["7", "8"]
    click(browser, "figure.done .open", "#compare", "#zoom-in", "#next", "#previous", "#favourite", "#viewer-close")
    browser.run("await new Promise((resolve) => setTimeout(resolve, 1500));")  # the draft is written after a pause
    browser.open(url)
    assert texts(browser, ".phrases .words") == ["red star", "blue ring"]
    assert len(texts(browser, "figure.done")) == 2
    assert browser.run("return document.querySelectorAll('figure.favourite').length;") == 1
    assert texts(browser, "#advanced-changed") == ["(1 changed)"]
    click(browser, "figcaption [aria-label='Reuse settings']")
    browser.wait("document.getElementById('notice-text').textContent.includes('All settings but the seed')")
    assert browser.errors() == []


def test_phrases_are_found_as_the_server_finds_them(browser: Firefox, url: str) -> None:
    browser.open(url)
    pairs = [
        ("a Red star, a red stars", "red star"),
        ("die große Straße", "GROSSE"),
        ("赤い星と月", "星"),
        ("🌟 star 🌟", "star"),
        ("un cafe\u0301 rouge", "CAF\u00c9"),
        ("the king\u2019s\u00a0 crown", "king's crown"),
    ]
    assert browser.run(PLACES, pairs) == [expected(*pair) for pair in pairs]
    assert browser.errors() == []
