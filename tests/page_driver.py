"""What tests of the page do to it, and read from the pictures that it gives."""

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
from syzygy.diffusion.regions import places
from syzygy.errors import UserError
from syzygy.pictures import record_of

Open = Callable[..., Page]


@contextmanager
def watched(browser: Browser, url: str) -> Iterator[Open]:
    """Opens pages, each in a session of its own. They must ask nobody but the server, and complain of nothing."""
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
        else:
            page.goto(at)
        return page

    yield new
    for page in pages:
        page.context.close()
    assert [one for one in complaints if "status of" not in one] == []  # refusals by the server are told so, too
    assert [one for one in asked if not one.startswith(("http://127.0.0.1:", "blob:", "data:"))] == []


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
