"""The tiny model behind HTTP, and an engine that can be held in the middle of its work."""

import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from syzygy.core.contracts import Progress
from syzygy.generation.text_to_image import TextToImage
from syzygy.server.engine import Engine, Generated
from syzygy.server.requests import ImageRequest

PATIENCE = 120.0
"""Seconds that a test waits for something that comes at once, on a machine that is not busy."""


@cache
def tiny_engine(folder: Path) -> Engine:
    """As `syzygy serve` makes it; loaded once, as nothing changes it."""
    model = TextToImage.from_pretrained(folder)
    names = {"steps": "num_inference_steps", "guidance_scale": "guidance_scale", "sampler": "sampler"}
    own = {name: model.defaults[theirs] for name, theirs in names.items()}
    return Engine.of(model, {**own, "conditions": ["image", "text"], "negative_prompt": None})


def waited(true: Callable[[], Any], seconds: float = PATIENCE) -> bool:
    """Whether something comes true in time."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(true())


class Held(Engine):
    """An engine that waits after each step until it may continue, and remembers which requests shared a batch."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.model, engine.record)
        self.begun, self.go = threading.Event(), threading.Event()
        self.batches: list[list[str | None]] = []
        self.steps = 0

    def generate(
        self, requests: Sequence[ImageRequest], seeds: Sequence[int], on_step: Callable[[Progress], None]
    ) -> Generated:
        self.batches.append([request.prompt for request in requests])

        def held(progress: Progress) -> None:
            self.steps += 1
            self.begun.set()
            assert self.go.wait(PATIENCE)
            on_step(progress)

        return super().generate(requests, seeds, held)
