"""Complete run configurations by name. A preset is a function; the command line overrides fields of what it returns."""

from collections.abc import Callable
from typing import TypeVar

from syzygy.config import Config
from syzygy.errors import unknown
from syzygy.hub.clip import ClipConfig
from syzygy.runs.clip import ClipRun
from syzygy.train.clip import ClipTaskConfig
from syzygy.train.schedule import LoopConfig

R = TypeVar("R", bound=Config)


def clip_starter() -> ClipRun:
    """The starter's CLIP on two CPU cores: about 35 minutes."""
    return ClipRun(
        clip=ClipConfig(),
        task=ClipTaskConfig(batch_size=256),
        loop=LoopConfig(
            steps=1200,
            lr=6e-4,
            warmup=300,
            weight_decay=0.05,
            betas=(0.9, 0.98),
            grad_clip=1.0,
            ema_half_life=30,
            validate_every=100,
            checkpoint_every=100,
        ),
    )


CLIP: dict[str, Callable[[], ClipRun]] = {"starter": clip_starter}


def choose(presets: dict[str, Callable[[], R]], name: str) -> R:
    """The preset with this name; unknown names are an error that lists the known ones."""
    if name not in presets:
        raise unknown("preset", name, presets)
    return presets[name]()
