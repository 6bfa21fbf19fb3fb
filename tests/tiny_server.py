"""The tiny model behind HTTP, and a studio that can be held in the middle of its work."""

import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from syzygy.core.contracts import Progress
from syzygy.generation.text_to_image import TextToImage
from syzygy.server.engine import Studio
from syzygy.server.requests import Order

PATIENCE = 120.0
"""Seconds that a test waits for something that comes at once, on a machine that is not busy."""


@cache
def tiny_studio(folder: Path) -> Studio:
    """As `syzygy serve` makes it; loaded once, as nothing changes it."""
    model = TextToImage.from_pretrained(folder)
    names = {"steps": "num_inference_steps", "guidance_scale": "guidance_scale", "sampler": "sampler"}
    own = {name: model.defaults[theirs] for name, theirs in names.items()}
    return Studio.of(model, {**own, "conditions": ["image", "text"], "negative_prompt": None})


def waited(true: Callable[[], Any], seconds: float = PATIENCE) -> bool:
    """Whether something comes true in time."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(true())


class Held(Studio):
    """A studio that waits after each step until it is let go, and remembers what was painted together."""

    def __init__(self, studio: Studio) -> None:
        super().__init__(studio.model, studio.record)
        self.begun, self.go = threading.Event(), threading.Event()
        self.batches: list[list[str | None]] = []
        self.steps = 0

    def paint(
        self, orders: Sequence[Order], seeds: Sequence[int], on_step: Callable[[Progress], None]
    ) -> list[Image.Image]:
        self.batches.append([order.prompt for order in orders])

        def held(progress: Progress) -> None:
            self.steps += 1
            self.begun.set()
            assert self.go.wait(PATIENCE)
            on_step(progress)

        return super().paint(orders, seeds, held)
