"""Presets of the starter's parts: CLIP, reader, judge, autoencoder, decoder and its experts, T5, language model; and of all of it."""

from typing import Any

from syzygy.clip.clip_model import ClipConfig
from syzygy.clip.training import ClipTaskConfig
from syzygy.decoder.autoencoder import AutoencoderConfig
from syzygy.decoder.autoencoder_task import AutoencoderTaskConfig
from syzygy.decoder.network import UNetConfig
from syzygy.decoder.noise_levels import LogNormal
from syzygy.decoder.training import DecoderTaskConfig, independent_dropout
from syzygy.lab.starter.adapted_decoder_training import AdapterDecoderRun
from syzygy.lab.starter.autoencoder_training import AutoencoderRun
from syzygy.lab.starter.classifier_training import ClassifierTaskConfig
from syzygy.lab.starter.clip_training import ClipRun
from syzygy.lab.starter.decoder_training import DecoderRun
from syzygy.lab.starter.experts_training import ExpertsRun
from syzygy.lab.starter.judge_training import JudgeRun
from syzygy.lab.starter.lm_training import LmConfig, LmRun, LmTaskConfig
from syzygy.lab.starter.placement_training import PlacementRun, PlacementTaskConfig
from syzygy.lab.starter.reader_training import ReaderRun
from syzygy.lab.starter.starter_training import StarterRun
from syzygy.lab.starter.t5_training import T5Run, T5TaskConfig
from syzygy.lab.world.judge import JudgeConfig
from syzygy.lab.world.language import LANGUAGES
from syzygy.lab.world.reader import ReaderConfig
from syzygy.prior.presets import prior_starter
from syzygy.text_encoders.presets import align_starter, image_starter, quality_starter, short_loop
from syzygy.text_encoders.t5 import T5Config
from syzygy.training.schedule import LoopConfig


def clip_starter() -> ClipRun:
    """The starter's CLIP, in about 20 minutes on one free CPU core: 150,000 images for the image tower alone, then 123,000 pairs."""
    muon: dict[str, Any] = {"optimizer": "muon", "muon_lr": 2e-3, "weight_decay": 0.05, "betas": (0.9, 0.98)}
    return ClipRun(
        clip=ClipConfig(logit_scale=20.0),
        vision_loop=_loop(1200, 1e-3, every=200, half_life=20, **muon),
        task=ClipTaskConfig(batch_size=256, hard_negatives=1.0, medium_captions=0.05),
        loop=_loop(480, 1e-3, warmup=60, every=120, half_life=20, **muon),
    )


def reader_starter() -> ReaderRun:
    """The starter's reader, in about seven minutes on one CPU core."""
    return ReaderRun(
        reader=ReaderConfig(),
        task=ClassifierTaskConfig(batch_size=32, mottle=0.05),
        loop=_loop(3000, 3e-3, every=500, half_life=100, weight_decay=0.01, grad_clip=5.0, optimizer="muon"),
    )


def judge_starter() -> JudgeRun:
    """The starter's judge, in about eleven minutes on one CPU core."""
    return JudgeRun(
        judge=JudgeConfig(),
        task=ClassifierTaskConfig(batch_size=32, noise=0.06, blur=0.8, mottle=0.08, clean=0.5),
        loop=_loop(2800, 3e-3, every=400, half_life=100, weight_decay=0.01, grad_clip=5.0, optimizer="muon"),
    )


def autoencoder_starter() -> AutoencoderRun:
    """The starter's autoencoder, in about 15 minutes on one CPU core."""
    return AutoencoderRun(
        autoencoder=AutoencoderConfig(),
        task=AutoencoderTaskConfig(batch_size=32, kl_weight=1e-2),
        loop=_loop(3600, 2e-3, every=200, half_life=100, betas=(0.9, 0.99), optimizer="muon"),
    )


def t5_starter() -> T5Run:
    """The starter's T5 (an encoder of 0.9M parameters), pre-trained on captions of all lengths in 25 minutes on one CPU core."""
    loop = _loop(2000, 3e-3, every=200, half_life=50)
    return T5Run(t5=T5Config(), task=T5TaskConfig(batch_size=64), loop=loop)


def lm_starter() -> LmRun:
    """The starter's language model (2.4M parameters), on captions of all lengths in all languages of the world.

    It takes an estimated half hour on one CPU core.
    """
    loop = _loop(2000, 3e-3, every=200, half_life=50, weight_decay=0.01)
    return LmRun(lm=LmConfig(), languages=tuple(LANGUAGES), task=LmTaskConfig(), loop=loop)


def _loop(steps: int, lr: float, *, warmup: int = 100, every: int, half_life: float, **settings: Any) -> LoopConfig:
    """A loop that validates and writes a checkpoint every so many steps."""
    usual: dict[str, Any] = {"grad_clip": 1.0, "validate_every": every, "checkpoint_every": every}
    return LoopConfig(steps=steps, lr=lr, warmup=warmup, ema_half_life=half_life, **(usual | settings))


def decoder_starter() -> DecoderRun:
    """The starter's decoder, a U-Net. It reads words by CLIP's states, T5's or both, the image embedding, or all of them, with or
    without regions.

    Scenes are rendered and encoded once and seen again with new noise. Muon and the supervision of attention and patches are why it reads
    colours and shapes from words. Most noise levels are where the image is decided: noise of σ = 1 to 5 (the latents have unit variance)
    hides an object's place and shape.
    """
    subsets = {"image": 0.16, "text": 0.16, "t5": 0.16, "text+t5": 0.22, "image+text+t5": 0.22, "": 0.08}
    return DecoderRun(
        backbone=UNetConfig(channels=(64, 96, 128), attention=(False, True, True)),
        image_tokens=8,
        pooled_text=False,
        scenes=100_000,
        task=DecoderTaskConfig(
            batch_size=64,
            noise=LogNormal(p_mean=0.6, p_std=1.2),
            subsets=subsets,
            painted=0.4,
            strengths=(0.3, 3.0),
            attention_weight=0.1,
            classification_weight=0.1,
        ),
        loop=_loop(
            16_000,
            2e-3,
            warmup=40,
            every=1000,
            checkpoint_every=250,
            half_life=350,
            betas=(0.9, 0.98),
            optimizer="muon",
            muon_lr=7e-3,
        ),
    )


def placement_starter() -> PlacementRun:
    """The starter's placement predictor, in about four minutes on one CPU core."""
    loop = _loop(3500, 6e-3, warmup=40, every=250, half_life=20, betas=(0.9, 0.98))
    return PlacementRun(task=PlacementTaskConfig(), loop=loop)


def decoder_ediff() -> DecoderRun:
    """eDiff-I's own settings: a U-Net, each embedding dropped independently, and EDM's noise.

    The image embedding alone then comes in 0.4 % of the samples, which harms the images from a prior. The rates are recalled, not read
    (arXiv 2211.01324, section 4.1).
    """
    subsets = independent_dropout({"image": 0.9, "text": 0.2, "t5": 0.2})
    return DecoderRun(
        backbone=UNetConfig(channels=(64, 96, 128), attention=(False, True, True)),
        image_tokens=8,
        scenes=150_000,
        task=DecoderTaskConfig(batch_size=32, noise=LogNormal(p_mean=-1.2, p_std=1.2), subsets=subsets),
        loop=_loop(14_000, 8e-4, warmup=300, every=1000, half_life=250, betas=(0.9, 0.99), checkpoint_every=500),
    )


def experts_full() -> ExpertsRun:
    """The paper's three experts of the starter's decoder as full networks: 13 nodes of a minute and a half on two CPU cores."""
    subsets = {"image": 0.55, "text": 0.1, "image+text": 0.27, "": 0.08}  # of a decoder whose recipe is not recorded
    task = DecoderTaskConfig(batch_size=32, noise=decoder_starter().task.noise, subsets=subsets)
    loop = _loop(200, 2e-4, warmup=20, every=100, half_life=25.0, betas=(0.9, 0.99))
    return ExpertsRun(task=task, loop=loop)


def starter_cpu() -> StarterRun:
    """The starter. Its stages took eleven hours, with one or two threads while other work ran on two CPU cores."""
    return StarterRun(
        clip=clip_starter(),
        reader=reader_starter(),
        judge=judge_starter(),
        autoencoder=autoencoder_starter(),
        t5=t5_starter(),
        decoder=decoder_starter(),
        placement=placement_starter(),
        prior=prior_starter(),
        llm=lm_starter(),
        align=align_starter(),
        image=image_starter(),
        quality=quality_starter(),
    )


def starter_gpu() -> StarterRun:
    """The starter on one H200, in an estimated 19 minutes, half of which is rendering on the CPU; not yet run.

    The decoder sees four times as many images as with `cpu`; all other stages are small and stay as they are. Give an interrupted run the
    same command again, so that it fits into two sessions of ten minutes.
    """
    return starter_cpu().changed(decoder={"task": {"batch_size": 256}})


def adapter_decoder_starter() -> AdapterDecoderRun:
    """The starter's adapter and decoder on images of the embedded world, instead of stage image with the prior. Not yet run at this size."""
    subsets = {"text": 0.5, "image+text": 0.3, "image": 0.12, "": 0.08}
    task = DecoderTaskConfig(batch_size=32, noise=LogNormal(p_mean=0.4, p_std=1.2), subsets=subsets)
    return AdapterDecoderRun(lengths=("short", "short", "medium"), task=task, loop=short_loop(steps=1000, lr=2e-4))


CLIP = {"starter": clip_starter}
READER = {"starter": reader_starter}
JUDGE = {"starter": judge_starter}
AUTOENCODER = {"starter": autoencoder_starter}
DECODER = {
    "starter": decoder_starter,
    "ediff-i": decoder_ediff,
}
T5 = {"starter": t5_starter}
LM = {"starter": lm_starter}
PLACEMENT = {"starter": placement_starter}
STARTER = {"cpu": starter_cpu, "gpu": starter_gpu}
EXPERTS = {"full": experts_full}
ADAPTER_DECODER = {"starter": adapter_decoder_starter}
