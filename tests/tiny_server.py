"""The tiny model behind HTTP, and an engine that can be held in the middle of its work."""

import threading
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from syzygy.generation.text_to_image import TextToImage
from syzygy.server.engine import Engine, Generated, Step
from syzygy.server.ray_engine import RayEngine, Replica, engine_of, modules
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


_LOADS: list[Callable[[], Any]] = []
"""Arguments of replicas must be serialisable, also where nothing is sent; these functions need not be."""


def _loaded(number: int) -> Any:
    return _LOADS[number]()


def in_replica(load: Callable[[], Any]) -> RayEngine:
    """A model in a replica of Ray Serve, in its local mode: requests and answers are serialised, and no cluster is started."""
    _, serve = modules()
    deployment = serve.deployment(Replica).options(logging_config={"log_level": "WARNING", "enable_access_log": False})
    _LOADS.append(load)
    handle = serve.run(deployment.bind(partial(_loaded, len(_LOADS) - 1)), route_prefix=None, _local_testing_mode=True)
    return engine_of(handle, replicas=1, running=lambda: 1)


NO_RAY = pytest.mark.skipif(
    find_spec("ray") is None or find_spec("grpc_reflection") is None,
    reason="Ray Serve is not installed (pip install -e '.[ray]')",
)
ENGINES = [
    pytest.param(lambda load: load(), id="local"),
    pytest.param(in_replica, id="ray", marks=NO_RAY),
]
"""For fixtures, as with `--engine`: functions from one that loads the model to an engine."""


class Held:
    """An engine that waits after each step until it may continue, and remembers which requests shared a batch."""

    def __init__(self, engine: Any, seconds: float = 0.0) -> None:
        """`seconds`: how much longer each step takes."""
        self.engine, self.seconds = engine, seconds
        self.failure: Exception | None = None
        """What `generate` raises."""
        self.begun, self.go = threading.Event(), threading.Event()
        self.batches: list[list[str | None]] = []
        self.steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def generate(
        self, requests: Sequence[ImageRequest], seeds: Sequence[int], on_step: Callable[[Step], None]
    ) -> Generated:
        self.batches.append([request.prompt for request in requests])
        if self.failure is not None:
            raise self.failure

        def held(step: Step) -> None:
            self.steps += 1
            self.begun.set()
            assert self.go.wait(PATIENCE)
            time.sleep(self.seconds)
            on_step(step)

        return self.engine.generate(requests, seeds, held)
