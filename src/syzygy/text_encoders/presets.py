"""Adapters between a language model and a CLIP: of the starter, of ViT-L/14 (Karlo) and of ViT-bigG/14 (Kandinsky 2.2)."""

from typing import Any

from syzygy.decoder.noise_levels import LogNormal
from syzygy.decoder.training import DecoderTaskConfig
from syzygy.lab.evaluate.text_encoder import TextScoring
from syzygy.lab.reproduce.text_encoder_candidates import ReproduceTextRun
from syzygy.lab.starter.adapted_decoder_training import AdapterDecoderRun
from syzygy.lab.world.language import LANGUAGES
from syzygy.text_encoders.adapter import SIZES
from syzygy.text_encoders.align_stage import AlignTaskConfig
from syzygy.text_encoders.image_stage import ImageTaskConfig
from syzygy.text_encoders.llm import LlmRecipe
from syzygy.text_encoders.training import AlignRun, ImageRun
from syzygy.training.schedule import LoopConfig


def align_starter() -> AlignRun:
    """The starter's adapter on the world's captions: 23 minutes with two threads on two CPU cores."""
    return AlignRun(
        adapter=SIZES["starter"],
        lengths=("short", "short", "medium"),
        task=AlignTaskConfig(batch_size=96),
        loop=_short(steps=3000, lr=1e-3),
    )


def image_starter() -> ImageRun:
    """The starter's adapter on the world's pictures, captions of all lengths: 13 minutes with two threads on two CPU cores.

    The prior stays as it is: it is CLIP's too, whose English prompts must not become worse.
    """
    return ImageRun(
        scenes=20_000,
        lengths=("short", "short", "medium", "medium", "long"),
        task=ImageTaskConfig(batch_size=64, frozen="prior"),
        loop=_short(steps=1500, lr=4e-4),
    )


def quality_starter() -> ImageRun:
    """The starter's adapter on the world's pictures of which the caption names each object: two minutes on one CPU core.

    Short and gentle: prompts and captions mostly do not tell everything, and more of these make it worse at such (docs/LOG.md).
    """
    return image_starter().model_copy(
        update={"scenes": 8_000, "filter": "unnamed == 0", "loop": _short(steps=100, lr=2e-5)}
    )


def decoder_starter_adapted() -> AdapterDecoderRun:
    """The starter's adapter and decoder on the world's pictures, in place of stage 2 with the prior. Not run at this size yet."""
    subsets = {"text": 0.5, "image+text": 0.3, "image": 0.12, "": 0.08}
    task = DecoderTaskConfig(batch_size=32, noise=LogNormal(p_mean=0.4, p_std=1.2), subsets=subsets)
    return AdapterDecoderRun(lengths=("short", "short", "medium"), task=task, loop=_short(steps=1000, lr=2e-4))


def _short(*, steps: int, lr: float) -> LoopConfig:
    return LoopConfig(
        steps=steps,
        lr=lr,
        warmup=steps // 20,
        grad_clip=1.0,
        ema_half_life=20,
        validate_every=steps // 5,
        checkpoint_every=steps // 10,
    )


def _align_published(size: str) -> AlignRun:
    """After arXiv 2405.12914: AdamW at 2e-5 after 1,000 steps of warm-up, 512 captions a step. Its decay is linear, ours a cosine; its five
    epochs are as many steps as a corpus has, so the number is ours. Contrastive term, prior and empty captions too. The temperature is what
    both published CLIPs learned; pipelines that hold their towers do not tell it. Not run at full size yet.
    """
    return AlignRun(
        adapter=SIZES[size],
        recipe=LlmRecipe(),
        compute="bf16",
        validation_lines=512,
        task=AlignTaskConfig(batch_size=512, precision="auto", temperature=0.01),
        loop=_long(steps=50_000, lr=2e-5, warmup=1000),
    )


def _image_published(**task: Any) -> ImageRun:
    """The paper tells no more of its later stages than the numbers of pictures (43M, then 40K). Predictions are contrasted with images, so that
    captions may be longer than CLIP reads, and in any language. Not run at full size yet."""
    return ImageRun(
        validation_images=4096,
        task=ImageTaskConfig(batch_size=1024, precision="auto", contrast="image", **task),
        loop=_long(steps=30_000, lr=2e-5, warmup=500),
    )


def _quality_published() -> ImageRun:
    run = _image_published(frozen="adapter")
    return run.model_copy(update={"validation_images": 512, "loop": _long(steps=1000, lr=1e-5, warmup=100)})


def _long(*, steps: int, lr: float, warmup: int) -> LoopConfig:
    return LoopConfig(
        steps=steps,
        lr=lr,
        warmup=warmup,
        weight_decay=0.01,
        grad_clip=1.0,
        ema_half_life=min(500, steps / 20),
        validate_every=steps // 20,
        checkpoint_every=steps // 20,
        keep_checkpoints=2,
    )


def align_vit_l_14() -> AlignRun:
    """For the CLIP of Karlo."""
    return _align_published("vit-l-14")


def align_bigg_14() -> AlignRun:
    """For the CLIP of Kandinsky 2.2."""
    return _align_published("bigg-14")


def image_published() -> ImageRun:
    """For both: sizes come with the aligned adapter."""
    return _image_published()


def quality_published() -> ImageRun:
    """For both: the adapter as it is, the prior on chosen pictures."""
    return _quality_published()


def reproduce_text_encoder_full() -> ReproduceTextRun:
    """The comparison of stages and layers in small; stages are shorter than the starter's, as there are sixteen trainings.

    The prior stays as it is, so that all candidates speak to the same one.
    """
    image, quality = image_starter(), quality_starter()
    scenes = {"scenes": 6000, "validation_images": 64}
    return ReproduceTextRun(
        align=align_starter().model_copy(update={"loop": _brief(steps=400, lr=1e-3)}),
        image=image.model_copy(update=scenes | {"loop": _brief(steps=200, lr=4e-4)}),
        quality=quality.model_copy(update=scenes | {"loop": _brief(steps=50, lr=1e-4)}),
        scoring=TextScoring(languages=tuple(LANGUAGES), captions=128, prompts=2, conditions=("image",)),
    )


def reproduce_text_encoder_quick() -> ReproduceTextRun:
    """A shortened comparison: it shows that everything works, and nothing about stages or layers."""
    full = reproduce_text_encoder_full()
    return full.model_copy(
        update={
            "align": full.align.model_copy(update={"loop": _brief(steps=20, lr=1e-3)}),
            "image": full.image.model_copy(update={"scenes": 500, "loop": _brief(steps=10, lr=4e-4)}),
            "quality": full.quality.model_copy(update={"scenes": 500, "loop": _brief(steps=5, lr=1e-4)}),
            "probe_scenes": 2000,
            "seeds": 1,
            "scoring": full.scoring.model_copy(update={"languages": ("en", "de", "zh"), "captions": 32}),
        }
    )


def _brief(*, steps: int, lr: float) -> LoopConfig:
    """Never validated: what comes out is measured afterwards."""
    return _short(steps=steps, lr=lr).model_copy(update={"validate_every": 0, "ema_half_life": min(20, steps / 10)})
