"""What tests of the page do to it, and read from the pictures that it gives."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page

from syzygy.pictures import record_of


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
