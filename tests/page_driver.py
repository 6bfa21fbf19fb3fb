"""What tests of the page do to it, and read from its images."""

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page

from benchmarks import serve_page
from syzygy.core.errors import UserError
from syzygy.generation.image_files import record_of
from syzygy.regions.phrases import places

Open = Callable[..., Page]
NEEDS_CHROMIUM = "they test the web page in a browser; install Chromium (Debian and Ubuntu: apt-get install chromium)"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
FAINT = """() => {
    const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const read = (colour) => {
        context.clearRect(0, 0, 1, 1);
        context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data];
    };
    const over = (upper, lower) => lower.map((one, i) => i === 3 ? 255 : one + ((upper[i] - one) * upper[3]) / 255);
    const behind = (element) =>
        element ? over(read(getComputedStyle(element).backgroundColor), behind(element.parentElement)) : [255, 255, 255, 255];
    const linear = (one) => (one / 255 <= 0.04045 ? one / 3294.6 : ((one / 255 + 0.055) / 1.055) ** 2.4);
    const light = ([red, green, blue]) => 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue) + 0.05;
    const contrast = (colour, ground) => {
        const [one, other] = [light(over(read(colour), ground)), light(ground)];
        return Math.max(one, other) / Math.min(one, other);
    };
    const faint = [];
    for (const element of document.querySelectorAll("main *, header *")) {
        const text = [...element.childNodes].some((one) => one.nodeType === Node.TEXT_NODE && one.textContent.trim());
        const field = element.matches("input:not([type=range], [type=checkbox]), select");
        if (!element.checkVisibility() || element.matches(":disabled, option, #mirror, #mirror *") || !(text || field)) continue;
        const ground = behind(element), name = element.id || element.textContent;
        if (contrast(getComputedStyle(element).color, ground) < 4.5) faint.push(name);
        const hint = getComputedStyle(element, "::placeholder");
        if (element.placeholder && (hint.opacity < 1 || contrast(hint.color, ground) < 4.5)) faint.push(`hint of ${name}`);
        if (field && contrast(getComputedStyle(element).borderTopColor, behind(element.parentElement)) < 3) faint.push(`edge of ${name}`);
    }
    return faint;
}"""
"""What is too faint by WCAG 2.2: texts and hints below 4.5 to 1, edges of fields below 3 to 1."""
SMALL = """() => [...document.querySelectorAll("button, a, input, select, summary, .check")]
    .filter((one) => one.checkVisibility() && !one.closest(".check > *"))
    .map((one) => [one.id || one.ariaLabel || one.textContent, one.getBoundingClientRect()])
    .filter(([, box]) => box.width < 40 || box.height < 40).map(([name]) => name)"""
"""What is too small for a finger: below 40 pixels a side."""


@contextmanager
def watched(browser: Browser, url: str) -> Iterator[Open]:
    """Opens pages, each in a session of its own, with the advanced settings unfolded. They may send requests only to the server, and
    must report no errors."""
    pages: list[Page] = []
    complaints: list[str] = []
    asked: list[str] = []

    def new(at: str = url, ready: bool = True, **settings: Any) -> Page:
        page = browser.new_context(**settings).new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        pages.append(page)
        if ready:
            serve_page.ready(page, at)
            serve_page.advanced(page)
        else:
            page.goto(at)
        return page

    yield new
    for page in pages:
        page.context.close()
    assert [one for one in complaints if "status of" not in one] == []  # the browser reports refusals by the server too
    assert [one for one in asked if not one.startswith(("http://127.0.0.1:", "blob:", "data:"))] == []


def finger(page: Page, points: list[tuple[float, float]], fingers: int = 1) -> None:
    """A quick stroke by one finger, or by several side by side, from place to place of the canvas (from 0 to 1)."""
    box = page.locator("#canvas").bounding_box()
    assert box
    session = page.context.new_cdp_session(page)

    def touch(kind: str, count: int, x: float = 0, y: float = 0) -> None:
        at = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
        touched = [{**at, "x": at["x"] + 80 * one, "id": one} for one in range(count)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touched})

    for number in range(fingers):
        touch("touchStart", number + 1, *points[0])
    for point in points[1:]:
        touch("touchMove", fingers, *point)
        page.wait_for_timeout(10)
    touch("touchEnd", 0)
    session.detach()


def record(png: bytes) -> dict[str, Any]:
    """What it says of how it was made."""
    return record_of(Image.open(io.BytesIO(png)), "it")


def masks(made: dict[str, Any]) -> list[np.ndarray]:
    """Its regions' masks."""
    return [np.array(Image.open(io.BytesIO(base64.b64decode(one["mask"])))) for one in made["regions"]]


def pixels(png: bytes) -> list[Any]:
    """Its RGB pixels."""
    return np.array(Image.open(io.BytesIO(png)).convert("RGB")).tolist()


def picture(colour: str) -> bytes:
    """A PNG of one colour."""
    data = io.BytesIO()
    Image.new("RGB", (40, 40), colour).save(data, "PNG")
    return data.getvalue()


def downloaded(page: Page, number: int = 0) -> bytes:
    """The file that the page gives for a picture."""
    with page.expect_download() as waiting:
        page.locator("figure.done [aria-label^=Download]").nth(number).click()
    return Path(waiting.value.path()).read_bytes()


def drop(page: Page, data: bytes, on: str = "body") -> None:
    """A file, dragged from outside and let go over an element."""
    script = """([bytes, selector]) => {
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
        for (const name of ["dragenter", "dragover", "drop"])
            document.querySelector(selector).dispatchEvent(new DragEvent(name, { dataTransfer, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(script, [list(data), on])


def expected(prompt: str, phrase: str) -> list[list[int]]:
    """The server's places, in JavaScript's units of text."""
    try:
        found = places(prompt, phrase) if phrase.strip() else []
    except UserError:
        return []
    return [[len(prompt[:end].encode("utf-16-le")) // 2 for end in pair] for pair in found]
