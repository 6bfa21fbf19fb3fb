"""The session on the page: what a reload brings back, the viewer, seeds, and what buttons and labels say."""

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from benchmarks import serve_page
from benchmarks.serve_page import select, stroke
from syzygy.generation.image_files import record_of
from syzygy.generation.text_to_image import TextToImage
from syzygy.server.app import create_app
from syzygy.server.engine import Engine
from syzygy.server.http_server import serving
from syzygy.server.limits import Limits
from tests.page_driver import NEEDS_CHROMIUM, Open, downloaded, drop, picture, record, watched
from tests.tiny_server import tiny_engine

expect.set_options(timeout=20_000)  # a busy machine
pytestmark = pytest.mark.skipif(serve_page.executable() is None, reason=NEEDS_CHROMIUM)
LEFT = [(0.2, 0.3), (0.2, 0.7)]
WRITTEN = 1200
"""Milliseconds after which the draft is in the browser's database."""


@pytest.fixture(scope="module")
def opened(tiny_model: Path) -> Iterator[Open]:
    app = create_app(tiny_engine(tiny_model), Limits(number=4, steps=10))
    with serving(app) as url, serve_page.browser() as browser, watched(browser, url) as new:
        yield new


def generated(page: Page, count: int = 1, **fields: str) -> None:
    page.fill("#n", str(count))
    page.fill("#steps", "1")
    for name, value in fields.items():
        page.fill(f"#{name}", value)
    serve_page.generated(page)


def reloaded(page: Page) -> None:
    page.wait_for_timeout(WRITTEN)
    page.reload()
    page.wait_for_selector("#go:enabled")
    serve_page.advanced(page)


def test_a_session_survives_a_reload(opened: Open) -> None:
    page = opened()
    page.fill("#prompt", "a red star")
    select(page, "red star")
    stroke(page, LEFT)
    page.locator("[aria-label='Strength of red star']").fill("2")
    page.locator("[aria-label='Hide red star']").click()
    drop(page, picture("orange"), "#style-drop")
    expect(page.locator("#style-picture")).to_be_visible()
    generated(page, 2, seed="7", negative_prompt="a square")
    page.fill("#prompt", "a red star, a ring")
    generated(page)
    page.locator("[aria-label=Favourite]:visible").nth(1).click()
    png = downloaded(page, 1)
    reloaded(page)
    expect(page.locator("figure.done")).to_have_count(3)
    expect(page.locator(".run .title")).to_have_text(["a red star, a ring", "a red star"])
    assert downloaded(page, 1) == png
    values = {"#prompt": "a red star, a ring", "#n": "1", "#steps": "1", "#seed": "7", "#negative_prompt": "a square"}
    for name, value in values.items():
        expect(page.locator(name)).to_have_value(value)
    expect(page.locator("#seed-lock")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#go")).to_have_text("Generate one image")
    expect(page.locator("#advanced-changed")).to_have_text("(1 changed)")
    expect(page.locator(".phrases .state")).to_have_text("hidden")
    expect(page.locator("[aria-label='Strength of red star']")).to_have_value("2")
    expect(page.locator("#style-picture")).to_be_visible()
    page.click("#reset")
    expect(page.locator("#advanced-changed")).to_have_text("")

    page.check("#favourites")
    expect(page.locator("figure.done:visible")).to_have_count(1)
    expect(page.locator("#download-all")).to_have_text("Download favourites (1)")
    page.uncheck("#favourites")
    with page.expect_download() as waiting:
        page.click("#download-all")
    with zipfile.ZipFile(waiting.value.path()) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["a-red-star-a-ring-7.png", "a-red-star-7.png", "a-red-star-8.png"]
        assert archive.read("a-red-star-7.png") == png
        seeds = [record_of(Image.open(io.BytesIO(archive.read(one))), one)["seed"] for one in archive.namelist()]
    assert seeds == [7, 7, 8]

    page.click("figure.done .open >> nth=0")
    page.click("#viewer-actions >> text=Delete")
    expect(page.locator("figure.done:visible")).to_have_count(2)
    page.click("#notice >> text=Undo")
    expect(page.locator("figure.done:visible")).to_have_count(3)
    page.click("figure.done .open >> nth=0")
    page.click("#viewer-actions >> text=Delete")
    reloaded(page)
    expect(page.locator("figure.done")).to_have_count(2)

    page.uncheck("#keep")
    reloaded(page)
    expect(page.locator("#keep")).not_to_be_checked()
    expect(page.locator("figure.done")).to_have_count(0)
    expect(page.locator("#prompt")).to_have_value("")
    expect(page.locator("#empty")).to_contain_text("gone when you close or reload")
    page.fill("#prompt", "a ring")
    generated(page)
    page.check("#keep")
    reloaded(page)
    expect(page.locator("figure.done")).to_have_count(1)
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#forget")
    expect(page.locator("figure.done")).to_have_count(0)
    expect(page.locator("#empty")).to_be_visible()
    reloaded(page)
    expect(page.locator("figure.done")).to_have_count(0)
    expect(page.locator("#prompt")).to_have_value("a ring")


def test_the_viewer_steps_zooms_and_compares(opened: Open) -> None:
    page = opened()
    page.fill("#prompt", "a red star")
    generated(page, 3, seed="1")
    page.click("figure.done .open >> nth=0")
    seed = page.locator("#viewer-facts dd").first
    expect(page.locator("#viewer-place")).to_have_text("1 of 3")
    expect(page.locator("#previous")).to_be_disabled()
    page.click("#next")
    expect(seed).to_have_text("2")
    page.keyboard.press("ArrowRight")
    expect(seed).to_have_text("3")
    expect(page.locator("#next")).to_be_disabled()
    page.keyboard.press("ArrowLeft")
    expect(seed).to_have_text("2")
    width = "document.querySelector('.layers').getBoundingClientRect().width"
    before = page.evaluate(width)
    page.keyboard.press("+")
    expect(page.locator("#zoom-reset")).to_have_text("150 %")
    assert page.evaluate(width) == pytest.approx(1.5 * before, rel=0.05)
    page.focus("#viewer-picture")
    page.keyboard.press("ArrowRight")  # moves the image and not to the next
    expect(seed).to_have_text("2")
    page.keyboard.press("0")
    expect(page.locator("#zoom-out")).to_be_disabled()
    page.keyboard.press("c")
    expect(page.locator("#name-a")).to_have_text("A: seed 2")
    expect(page.locator("#name-b")).to_have_text("B: seed 3")
    page.fill("#share", "25")
    assert page.evaluate("document.querySelector('.above').style.clipPath") == "inset(0px 75% 0px 0px)"
    page.click("#previous")  # passes over A
    expect(page.locator("#name-b")).to_have_text("B: seed 1")
    page.click("#compare")
    expect(page.locator("#compare-part")).to_be_hidden()
    page.click("#favourite")
    expect(page.locator("figure.favourite")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()


def test_seeds_are_drawn_kept_and_reused_apart_from_settings(opened: Open) -> None:
    page = opened()
    page.fill("#prompt", "a red star")
    kept = page.locator("#seed-lock")
    generated(page)
    (drawn,) = page.locator("figcaption > span").all_text_contents()
    expect(page.locator("#seed")).to_have_value("")
    page.click("#seed-lock")  # the latest one
    expect(page.locator("#seed")).to_have_value(drawn)
    generated(page)
    assert page.locator("figcaption > span").all_text_contents() == [drawn, drawn]
    page.click("#seed-lock")
    expect(page.locator("#seed")).to_have_value("")
    page.click("#seed-dice")
    once = page.locator("#seed").input_value()
    assert re.fullmatch(r"\d+", once)
    generated(page)
    assert page.locator("figcaption > span").first.text_content() == once
    expect(page.locator("#seed")).to_have_value("")  # it was not kept
    generated(page, seed="5")
    expect(page.locator("#seed")).to_have_value("5")  # what is typed is kept
    expect(kept).to_have_attribute("aria-pressed", "true")

    page.fill("#prompt", "a blue ring")
    page.fill("#n", "3")
    page.click("figure.done .open >> nth=1")
    page.click("#viewer-actions >> text=Reuse seed")
    expect(page.locator("#seed")).to_have_value(once)
    expect(page.locator("#prompt")).to_have_value("a blue ring")
    page.fill("#seed", "9")
    page.fill("#steps", "4")
    page.click("figure.done .open >> nth=1")
    page.click("#viewer-actions >> text=Reuse settings")
    expect(page.locator("#prompt")).to_have_value("a red star")
    expect(page.locator("#steps")).to_have_value("1")
    expect(page.locator("#seed")).to_have_value("9")
    expect(page.locator("#go")).to_have_text("Generate 3 images")
    drop(page, downloaded(page, 1))
    expect(page.locator("#seed")).to_have_value(once)
    expect(page.locator("#go")).to_have_text("Generate one image")
    page.click("#notice [aria-label=Dismiss]")
    expect(page.locator("#notice")).to_be_hidden()


def test_the_starter_keeps_its_style_control(opened: Open) -> None:
    """It reads "text" and "t5" if a request names no conditions; a style is read in addition."""
    model = TextToImage.from_pretrained("starter")
    engine = Engine.of(model, {"steps": 1, "guidance_scale": 3.0, "sampler": "euler", "negative_prompt": None})
    assert engine.capabilities()["conditions"] == ["text", "t5"]
    with serving(create_app(engine, Limits())) as url:
        page = opened(url)
        page.fill("#prompt", "a red star")
        drop(page, picture("orange"), "#style-drop")
        expect(page.locator("#style-picture")).to_be_visible()
        page.fill("#style_guidance", "2")
        generated(page)
        assert record(downloaded(page))["style_guidance"] == 2
        page.click("figure.done .open")
        expect(page.locator("#viewer-actions >> text=Use as style")).to_be_visible()
