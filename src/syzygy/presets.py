"""Complete run configurations by name. A preset is a function; the command line overrides fields of what it returns."""

from collections.abc import Callable
from typing import TypeVar

from syzygy.config import Config
from syzygy.diffusion.decoder import UNetConfig
from syzygy.diffusion.noise import LogNormal
from syzygy.errors import unknown
from syzygy.hub.clip import ClipConfig
from syzygy.runs.clip import ClipRun
from syzygy.runs.decoder import DecoderRun
from syzygy.runs.reader import ReaderRun
from syzygy.train.clip import ClipTaskConfig
from syzygy.train.decoder import DecoderTaskConfig
from syzygy.train.reader import ReaderTaskConfig
from syzygy.train.schedule import LoopConfig
from syzygy.world.reader import ReaderConfig

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


def decoder_starter() -> DecoderRun:
    """The starter's decoder on two CPU cores: about an hour."""
    return DecoderRun(
        backbone=UNetConfig(channels=(48, 96, 128), attention=(False, True, True)),
        task=DecoderTaskConfig(
            batch_size=64,
            noise=LogNormal(p_mean=-0.6, p_std=1.3),
            subsets={"image": 0.45, "text": 0.15, "image+text": 0.3, "": 0.1},
        ),
        loop=LoopConfig(
            steps=4500,
            lr=8e-4,
            warmup=200,
            betas=(0.9, 0.99),
            grad_clip=1.0,
            ema_half_life=150,
            validate_every=250,
            checkpoint_every=250,
        ),
    )


def reader_starter() -> ReaderRun:
    """The starter's reader on two CPU cores: about ten minutes."""
    return ReaderRun(
        reader=ReaderConfig(),
        task=ReaderTaskConfig(batch_size=64),
        loop=LoopConfig(
            steps=1500,
            lr=2e-3,
            warmup=100,
            weight_decay=0.01,
            grad_clip=5.0,
            ema_half_life=50,
            validate_every=200,
            checkpoint_every=200,
        ),
    )


CLIP: dict[str, Callable[[], ClipRun]] = {"starter": clip_starter}
DECODER: dict[str, Callable[[], DecoderRun]] = {"starter": decoder_starter}
READER: dict[str, Callable[[], ReaderRun]] = {"starter": reader_starter}


def choose(presets: dict[str, Callable[[], R]], name: str) -> R:
    """The preset with this name; unknown names are an error that lists the known ones."""
    if name not in presets:
        raise unknown("preset", name, presets)
    return presets[name]()
