"""Regions on the page: they follow their words, and their layers can be changed. And what helps while typing a prompt."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from benchmarks import serve_page
from benchmarks.serve_page import select, stroke
from syzygy.server.app import create_app
from syzygy.server.http_server import serving
from syzygy.server.limits import Limits
from tests.page_driver import NEEDS_CHROMIUM, PHONE, Open, downloaded, masks, record, watched
from tests.tiny_server import tiny_engine

expect.set_options(timeout=20_000)  # a busy machine
pytestmark = pytest.mark.skipif(serve_page.executable() is None, reason=NEEDS_CHROMIUM)
LEFT = [(0.2, 0.3), (0.2, 0.7)]
FOLLOWED = """async (cases) => {
    const { difference, followed } = await import("/page/anchors.js");
    return cases.map(([before, phrase, after, caret]) => {
        const start = before.indexOf(phrase);
        const anchor = { phrase, range: { start, end: start + phrase.length, open: false } };
        const found = followed(anchor, difference(before, after, caret ?? after.length), after);
        return [found.phrase, found.range && [found.range.start, found.range.end]];
    });
}"""


@pytest.fixture(scope="module")
def opened(tiny_model: Path) -> Iterator[Open]:
    app = create_app(tiny_engine(tiny_model), Limits(number=4, steps=10, prompt=40))
    with serving(app) as url, serve_page.browser() as browser, watched(browser, url) as new:
        yield new


def asked(page: Page) -> dict[str, Any]:
    """The request that the button sends; its images are waited for."""
    page.fill("#n", "1")
    page.fill("#steps", "1")
    with page.expect_request("**/generations") as waiting:
        serve_page.generated(page)
    return waiting.value.post_data_json


def mask(page: Page) -> np.ndarray:
    """The only mask that the newest image was generated with."""
    asked(page)
    (found,) = masks(record(downloaded(page)))
    return found


def test_ranges_follow_edits(opened: Open) -> None:
    cases = {
        ("a red star", "red star", "a big red star"): ["red star", [6, 14]],
        ("a red star", "red star", "a red stars"): ["red stars", [2, 11]],
        ("a red star", "red star", "a red, star"): ["red, star", [2, 11]],
        ("a red star and", "red star", "a green star and"): ["green star", [2, 12]],
        ("a red star and", "red star", "a blue ring and"): ["blue ring", [2, 11]],
        ("a red star, a red star", "red star", "a red star, a blue ring"): ["red star", [2, 10]],
        ("a red star", "red star", "a bored red star"): ["red star", [8, 16]],
        ("a red star", "red star", "a "): ["red star", [2, 2]],
        ("a red star in it", "red star", "nothing"): ["red star", None],
        ("a red star in it", "red star", "two moons, a Red Star"): ["red star", [13, 21]],
        ("a star, a star", "star", "a , a star", 2): ["star", [6, 10]],
        ("赤い星と月", "星", "赤い大きな星と月"): ["星", [5, 6]],
    }
    assert opened().evaluate(FOLLOWED, [list(case) for case in cases]) == list(cases.values())


def test_regions_follow_their_words_while_typing(opened: Open) -> None:
    page = opened()
    page.fill("#prompt", "a red star")
    select(page, "red star")
    stroke(page, LEFT)
    page.focus("#prompt")
    page.keyboard.press("Home")
    page.keyboard.type("two or ")
    words = page.locator(".phrases .words")
    expect(words).to_have_text("red star")
    page.keyboard.press("End")
    for _ in "star":
        page.keyboard.press("Backspace")
    expect(words).to_have_text("red")
    page.keyboard.type("moon")
    expect(words).to_have_text("red moon")
    page.keyboard.type(" and a ring")
    expect(words).to_have_text("red moon")
    select(page, "red moon")
    page.keyboard.type("green heart")
    expect(words).to_have_text("green heart")
    assert [one["phrase"] for one in asked(page)["regions"]] == ["green heart"]
    select(page, "green heart")
    page.keyboard.press("Delete")
    expect(page.locator(".phrases .lost")).to_be_visible()
    page.locator(".phrases .lost select").select_option("ring")
    expect(words).to_have_text("ring")
    expect(page.locator(".phrases .lost")).to_be_hidden()
    assert [one["phrase"] for one in asked(page)["regions"]] == ["ring"]
    page.fill("#prompt", "one blue moon")
    select(page, "blue moon")
    offered = page.locator(".phrases .lost option").all_text_contents()
    assert offered[:4] == ["Attach to …", "blue moon", "one", "one blue"]
    page.click("#undo")  # the layer is as before, and the words stay those of the prompt
    expect(words.first).to_have_text("ring")


def test_layers_are_filled_inverted_softened_hidden_and_doubled(opened: Open) -> None:
    page = opened()
    expect(page.locator("#invert")).to_be_disabled()
    page.fill("#prompt", "a red star and a ring")
    select(page, "red star")
    page.click("#fill summary")
    page.click("text=Left third")
    expect(page.locator("#fill")).not_to_have_attribute("open", "")
    third = mask(page)
    assert (third[:, :85].min(), third[:, 86:].max()) == (255, 0)
    page.click("#invert")
    assert (mask(page) == 255 - third).all()
    page.click("#undo")
    page.click("#blur")
    soft = mask(page)
    assert (soft[128, 2], soft[128, 200]) == (255, 0)
    assert 0 < soft[128, 85] < 255
    assert (np.diff(soft[128].astype(int)) <= 0).all()
    page.click("#undo")
    page.click("#redo")
    assert (mask(page) == soft).all()
    page.click("#duplicate")
    expect(page.locator(".phrases .words")).to_have_text(["red star", "red star"])
    page.locator("[aria-label='Strength of red star']").nth(1).fill("2")
    assert [one["weight"] for one in asked(page)["regions"]] == [1, 2]
    page.click("#solo")
    expect(page.locator(".phrases .state")).to_have_text(["off", "solo"])
    assert [one["weight"] for one in asked(page)["regions"]] == [2]
    page.click("#solo")
    page.locator("[aria-label='Hide red star']").nth(1).click()
    expect(page.locator(".phrases .state")).to_have_text(["", "hidden"])
    assert [one["weight"] for one in asked(page)["regions"]] == [1]
    stroke(page, LEFT)  # what is drawn is shown
    expect(page.locator(".phrases .state")).to_have_text(["", ""])
    page.keyboard.press("Control+z")
    page.focus("#fill summary")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator("#templates button").first).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#fill summary")).to_be_focused()


def test_examples_counters_and_languages_help_while_typing(opened: Open) -> None:
    page = opened()
    page.click("text=a red star left of a blue ring")
    expect(page.locator("#prompt")).to_have_value("a red star left of a blue ring")
    expect(page.locator("#prompt")).to_be_focused()
    expect(page.locator("#examples")).to_be_hidden()
    expect(page.locator("#prompt-count")).to_be_hidden()
    page.keyboard.insert_text(", a moon 🌟🌟")
    expect(page.locator("#prompt-count")).to_have_text("41 of at most 40 characters")
    page.click("#go")
    expect(page.locator("#prompt-note")).to_have_text("The text is 1 characters too long: at most 40 are allowed here.")
    page.keyboard.press("Backspace")
    expect(page.locator("#prompt-note")).to_be_hidden()
    expect(page.locator("#prompt-count")).to_have_text("40 of at most 40 characters")
    page.fill("#negative_prompt", "x" * 39)
    expect(page.locator("#negative_prompt-count")).to_have_text("39 of at most 40 characters")
    page.fill("#prompt", "ein café, 2 звезды")
    expect(page.locator("#languages")).to_have_text("This model may not understand “звезды”. Write in English.")
    page.fill("#prompt", "a café")
    expect(page.locator("#languages")).to_have_text("Write in English.")
    script = "async (of) => { const { foreignWords } = await import('/page/hints.js'); return of.map(([at, text]) => foreignWords(at)(text)); }"
    text = "star 星 звезда ほし 별 نجم"
    asked = [(["en"], text), (["en", "ja"], text), (["zh", "ru"], text), (["ko", "ar", "en"], text)]
    found = page.evaluate(script, asked)
    assert [" ".join(one) for one in found] == [
        "星 звезда ほし 별 نجم",
        "звезда 별 نجم",
        "star ほし 별 نجم",
        "звезда ほし",
    ]


def test_a_phone_has_tabs_and_a_tablet_two_columns(opened: Open) -> None:
    page = opened(**PHONE)
    expect(page.locator("#canvas")).to_be_visible()
    expect(page.locator(".area-pictures")).to_be_hidden()
    page.fill("#prompt", "a red star")
    page.fill("#n", "2")
    page.fill("#steps", "1")
    page.tap("#go")
    expect(page.locator("#tab-images")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#prompt")).to_be_hidden()
    expect(page.locator("#tab-images")).to_have_text("Images (2)")
    page.locator("figcaption [aria-label='Reuse settings']").first.tap()
    expect(page.locator("#prompt")).to_be_visible()
    page.set_viewport_size({"width": 768, "height": 1000})
    expect(page.locator("#tabs")).to_be_hidden()
    places = "['prompt', 'canvas', 'gallery'].map((id) => document.getElementById(id).getBoundingClientRect())"
    prompt, canvas, gallery = page.evaluate(f"{places}.map((box) => box.toJSON())")
    assert prompt["right"] < canvas["left"]
    assert gallery["top"] > canvas["bottom"]
    assert page.evaluate("document.documentElement.scrollWidth") == 768


def test_screen_readers_hear_of_the_start_and_the_end_only(opened: Open) -> None:
    page = opened()
    page.fill("#prompt", "a red star")
    page.fill("#n", "1")
    page.fill("#steps", "5")
    script = """() => {
        window.heard = [];
        const live = document.querySelectorAll("[role=status], [role=alert], [aria-live]");
        const hear = (changes) => window.heard.push(...changes.map((one) => one.target.textContent));
        for (const one of live) new MutationObserver(hear).observe(one, { childList: true });
    }"""
    page.evaluate(script)
    serve_page.generated(page)
    heard = [one for one in page.evaluate("window.heard") if one]
    assert heard[0] == "Generating one image."
    assert heard[1].startswith("One image in ")
    assert len(heard) == 2
