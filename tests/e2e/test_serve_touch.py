"""The page on the screen of a phone, used by finger alone; and what makes it readable."""

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from benchmarks import serve_page
from syzygy.regions.phrases import places
from syzygy.server.app import create_app
from syzygy.server.http_server import serving
from syzygy.server.limits import Limits
from tests.page_driver import FAINT, NEEDS_CHROMIUM, PHONE, SMALL, Open, downloaded, finger, masks, record, watched
from tests.tiny_server import tiny_engine

expect.set_options(timeout=20_000)  # a busy machine
pytestmark = pytest.mark.skipif(serve_page.executable() is None, reason=NEEDS_CHROMIUM)
PROMPT = "a red star left of a blue ring, and a second red star"
DOWN = [(0.2, 0.2 + 0.04 * piece) for piece in range(12)]


@pytest.fixture(scope="module")
def opened(tiny_model: Path) -> Iterator[Open]:
    app = create_app(tiny_engine(tiny_model), Limits(number=4, steps=10, regions=2))
    with serving(app) as url, serve_page.browser() as browser, watched(browser, url) as new:
        yield new


def tap(page: Page, word: str) -> None:
    page.locator("#words button", has_text=word).first.tap()


def chosen(page: Page) -> Any:
    return expect(page.locator("#words [aria-pressed=true]"))


def test_words_are_chosen_drawn_and_removed_by_finger(opened: Open) -> None:
    page = opened(**PHONE)
    expect(page.locator("#words")).to_be_hidden()
    page.tap("#prompt")
    page.keyboard.type(PROMPT)
    tap(page, "star")
    expect(page.locator("#prompt")).not_to_be_focused()  # the keyboard is gone
    tap(page, "red")
    chosen(page).to_have_text(["red", "star", "red", "star"])
    expect(page.locator(".candidate .words")).to_have_text("red star")
    finger(page, DOWN)
    tap(page, "ring")  # at once after a quick stroke
    expect(page.locator(".phrases .state")).to_have_text(["", "draw it now"])
    assert page.evaluate("scrollY") == 0  # the stroke did not move the page
    tap(page, "blue")
    chosen(page).to_have_text(["blue", "ring"])
    placed = page.locator("#words .placed")
    colours = placed.evaluate_all("(all) => all.map((one) => one.style.getPropertyValue('--colour'))")
    assert len(colours) == 6
    assert len(set(colours)) == 2
    page.tap(".candidate button")
    expect(page.locator("#canvas")).to_be_in_viewport(ratio=1)
    tops = page.evaluate("['#tools', '.go'].map((one) => document.querySelector(one).getBoundingClientRect().top)")
    assert tops[0] + 40 <= tops[1]  # the tools are in sight too
    finger(page, [(x + 0.5, y) for x, y in DOWN])
    expect(page.locator(".phrases .state")).to_have_text(["", ""])
    tap(page, "second")
    expect(page.locator("#prompt-help")).to_contain_text("At most 2 regions")
    tap(page, "red")  # chooses the phrase that it is part of
    chosen(page).to_have_text(["red", "star", "red", "star"])
    page.tap("[aria-label='Remove red star']")
    expect(page.locator(".phrases .words")).to_have_text("blue ring")
    expect(page.locator(".phrases button.phrase")).to_be_focused()
    chosen(page).to_have_text(["blue", "ring"])
    page.fill("#n", "1")
    page.fill("#steps", "2")
    page.tap("#go")
    expect(page.locator("figure.done")).to_have_count(1)
    made = record(downloaded(page))
    assert [one["phrase"] for one in made["regions"]] == ["blue ring"]
    (mask,) = masks(made)
    assert (mask[120, 179], mask[:, :128].max()) == (255, 0)


def test_two_fingers_move_the_page_and_draw_nothing(opened: Open) -> None:
    page = opened(**PHONE)
    page.fill("#prompt", PROMPT)
    tap(page, "star")
    finger(page, [(x, 0.8 - y) for x, y in DOWN], fingers=2)
    serve_page.holds(page, "scrollY > 50")
    expect(page.locator(".phrases .state")).to_have_text("not drawn yet")
    finger(page, DOWN)
    expect(page.locator(".phrases .state")).to_have_text("")
    page.tap("[aria-label='Remove star']")
    expect(page.locator("#canvas")).to_be_focused()  # and not the prompt, which would bring the keyboard


def test_taps_join_neighbours_and_give_back_ends(opened: Open) -> None:
    page = opened(**PHONE)
    script = "async (asked) => { const { tapped } = await import('/page/words.js'); return asked.map((one) => tapped(...one)); }"
    asked = [[None, 3], [[3, 3], 4], [[3, 4], 2], [[2, 4], 2], [[2, 4], 4], [[2, 4], 3], [[2, 4], 6], [[3, 3], 3]]
    assert page.evaluate(script, asked) == [[3, 3], [3, 4], [2, 4], [3, 4], [2, 3], [3, 3], [6, 6], None]
    page.fill("#prompt", PROMPT)
    serve_page.select(page, "blue")  # as a long press does
    tap(page, "ring")
    expect(page.locator(".candidate .words")).to_have_text("blue ring")
    page.tap(".candidate button")
    tap(page, "and")
    tap(page, "ring")  # joins, though it is part of a phrase already
    expect(page.locator(".candidate .words")).to_have_text("ring, and")
    page.focus("#prompt")
    page.locator("#words button", has_text="left").dispatch_event(
        "click"
    )  # as Safari's taps, which leave the focus where it is
    expect(page.locator("#prompt")).not_to_be_focused()
    expect(page.locator(".candidate .words")).to_have_text("left")
    page.fill("#prompt", "")
    expect(page.locator("#words")).to_be_hidden()
    mouse = opened()
    mouse.fill("#prompt", PROMPT)
    expect(mouse.locator("#words")).to_be_hidden()
    expect(mouse.locator("#prompt-help")).to_contain_text("Select words above")


def test_every_word_to_tap_is_one_for_the_server(opened: Open) -> None:
    page = opened()
    draw = random.Random(0)
    texts = ["".join(draw.choice("aAbßé1 .,-_'月星カタสวั🌟") for _ in range(draw.randint(1, 20))) for _ in range(300)]
    script = """async (texts) => {
        const { words } = await import("/page/phrases.js");
        return texts.map((text) => words(text).map((at) => [...at, text.slice(...at)]));
    }"""
    texts += ["ดาวสวยมาก", "a red-haired star, 2.5 wide", "红色的星星"]
    found = page.evaluate(script, texts)
    for text, cut in zip(texts, found, strict=True):
        assert all(places(text, word) for _, _, word in cut)
        assert all(one[1] <= other[0] for one, other in pairwise(cut))
    wide, red = ([word for _, _, word in cut] for cut in found[-2:])
    assert wide == ["a", "red", "haired", "star", "2.5", "wide"]
    assert "".join(red) == "红色的星星"
    assert len(red) > 1


def test_all_is_large_enough_and_bold_enough_and_stands_still(opened: Open) -> None:
    page = opened(**PHONE, reduced_motion="reduce")
    page.fill("#prompt", PROMPT)
    tap(page, "star")
    finger(page, DOWN)
    tap(page, "blue")
    page.fill("#n", "1")
    page.fill("#steps", "1")
    page.tap("#go")
    expect(page.locator("figure.done")).to_have_count(1)
    grounds = set()
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        for tab in ("edit", "images"):
            page.tap(f"#tab-{tab}")
            if tab == "edit" and not page.locator(".sources li").count():
                page.tap("#mix-part summary")
                page.tap("#mix-text")
            assert page.evaluate(FAINT) == []
        grounds.add(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
    assert len(grounds) == 2
    for width in (390, 320):
        page.set_viewport_size({"width": width, "height": 700})
        for tab in ("edit", "images"):
            page.tap(f"#tab-{tab}")
            assert page.evaluate(SMALL) == []
            assert page.evaluate("document.documentElement.scrollWidth") == width
    page.tap("figure.done .open")
    assert page.evaluate(SMALL) == []
    assert page.evaluate("document.getElementById('viewer').scrollWidth") <= 320
    page.tap("#viewer-close")
    script = """async () => {
        const { reveal } = await import("/page/dom.js");
        return new Promise((told) => reveal({ scrollIntoView: (how) => told(how.behavior) }));
    }"""
    assert page.evaluate(script) == "instant"
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(script) == "smooth"
