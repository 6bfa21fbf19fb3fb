"""What reads text beside CLIP: T5 and language models."""

from syzygy.lab.starter.lm_task import LmTaskConfig
from syzygy.lab.starter.lm_training import LmRun
from syzygy.lab.starter.t5_task import T5TaskConfig
from syzygy.lab.starter.t5_training import T5Run
from syzygy.lab.starter.tiny_lm import LmConfig
from syzygy.lab.world.language import LANGUAGES
from syzygy.text_encoders.t5 import T5Config
from syzygy.training.schedule import LoopConfig


def t5_starter() -> T5Run:
    """The starter's T5: an encoder of 0.9M, pre-trained on captions of all lengths; 25 minutes on one CPU core."""
    return T5Run(
        t5=T5Config(),
        task=T5TaskConfig(batch_size=64),
        loop=LoopConfig(
            steps=2000,
            lr=3e-3,
            warmup=100,
            grad_clip=1.0,
            ema_half_life=50,
            validate_every=200,
            checkpoint_every=200,
        ),
    )


def lm_starter() -> LmRun:
    """The starter's language model: 2.4M, on captions of all lengths in all languages of the world; an estimated half hour on one CPU core."""
    return LmRun(
        lm=LmConfig(),
        languages=tuple(LANGUAGES),
        task=LmTaskConfig(),
        loop=LoopConfig(
            steps=2000,
            lr=3e-3,
            warmup=100,
            weight_decay=0.01,
            grad_clip=1.0,
            ema_half_life=50,
            validate_every=200,
            checkpoint_every=200,
        ),
    )
