"""Presets of adapters of a language model: for the CLIPs of the starter, Karlo and Kandinsky 2.2, and for Stable Diffusion."""

from typing import Any

from syzygy.text_encoders.adapter import SIZES
from syzygy.text_encoders.align_stage import AlignRun, AlignTaskConfig
from syzygy.text_encoders.image_stage import ImageRun, ImageTaskConfig
from syzygy.text_encoders.prompt_stage import PromptAdapterSizes, PromptRun, PromptTaskConfig
from syzygy.training.schedule import LoopConfig


def align_starter() -> AlignRun:
    """The starter's adapter on captions of the embedded world: 23 minutes with two threads on two CPU cores."""
    return AlignRun(
        adapter=SIZES["starter"],
        lengths=("short", "short", "medium"),
        task=AlignTaskConfig(batch_size=96),
        loop=short_loop(steps=3000, lr=1e-3),
    )


def image_starter() -> ImageRun:
    """The starter's adapter on images of the embedded world, with captions of all lengths: 13 minutes with two threads on two CPU cores.

    The prior is frozen because CLIP's features use it too, and its results with English prompts must not become worse.
    """
    return ImageRun(
        scenes=20_000,
        lengths=("short", "short", "medium", "medium", "long"),
        task=ImageTaskConfig(batch_size=64, frozen="prior"),
        loop=short_loop(steps=1500, lr=4e-4),
    )


def quality_starter() -> ImageRun:
    """The starter's adapter on images whose captions name every object: two minutes on one CPU core.

    The training is short and its learning rate small: most prompts leave something out, and more steps on complete captions make the
    adapter worse at such prompts (docs/LOG.md).
    """
    return image_starter().model_copy(
        update={"scenes": 8_000, "filter": "unnamed == 0", "loop": short_loop(steps=100, lr=2e-5)}
    )


def short_loop(*, steps: int, lr: float) -> LoopConfig:
    """A training of minutes."""
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
    """After arXiv 2405.12914: AdamW at 2e-5 after 1,000 steps of warm-up, 512 captions per step.

    The paper's learning rate falls linearly, ours as a cosine. Its five epochs are as many steps as a corpus has, so the number of steps is
    ours; so are the contrastive term, the prior's term and the empty captions. The temperature is what both published CLIPs learned, as
    pipelines that contain their towers do not record it. Not yet run at full size.
    """
    return AlignRun(
        adapter=SIZES[size],
        compute="bf16",
        validation_lines=512,
        task=AlignTaskConfig(batch_size=512, precision="auto", temperature=0.01),
        loop=long_loop(steps=50_000, lr=2e-5, warmup=1000),
    )


def align_vit_l_14() -> AlignRun:
    """For the CLIP of Karlo."""
    return _align_published("vit-l-14")


def align_bigg_14() -> AlignRun:
    """For the CLIP of Kandinsky 2.2."""
    return _align_published("bigg-14")


def _align_prompts(*, layers: int, heads: int, width: int, pooled: float) -> PromptRun:
    """After arXiv 2405.12914, as `_align_published`. Not yet run at full size.

    The paper's adapter has 487M parameters and 227 states; ours has as many states as the text encoders give, because a frozen U-Net was
    trained with those.
    """
    return PromptRun(
        adapter=PromptAdapterSizes(layers=layers, heads=heads, width=width),
        compute="bf16",
        validation_lines=128,
        task=PromptTaskConfig(precision="auto", pooled=pooled),
        loop=long_loop(steps=50_000, lr=2e-5, warmup=1000),
    )


def align_stable_diffusion_1() -> PromptRun:
    """For Stable Diffusion 1.x: 77 states of 768."""
    return _align_prompts(layers=6, heads=12, width=768, pooled=0.0)


def align_stable_diffusion_2() -> PromptRun:
    """For Stable Diffusion 2.x: 77 states of 1024."""
    return _align_prompts(layers=6, heads=16, width=1024, pooled=0.0)


def align_stable_diffusion_xl() -> PromptRun:
    """For Stable Diffusion XL: 77 states of 2048, and a pooled embedding of 1280."""
    return _align_prompts(layers=6, heads=16, width=1024, pooled=1.0)


def image_published(**task: Any) -> ImageRun:
    """For both CLIPs, as the sizes come with the aligned adapter. Not yet run at full size.

    The paper gives only the numbers of images of its later stages (43M, then 40K). Predictions are contrasted with images, so that captions
    may be in any language and longer than CLIP reads.
    """
    return ImageRun(
        validation_images=4096,
        task=ImageTaskConfig(batch_size=1024, precision="auto", contrast="image", **task),
        loop=long_loop(steps=30_000, lr=2e-5, warmup=500),
    )


def quality_published() -> ImageRun:
    """For both CLIPs: the adapter is frozen, and the prior learns from selected images."""
    run = image_published(frozen="adapter")
    return run.model_copy(update={"validation_images": 512, "loop": long_loop(steps=1000, lr=1e-5, warmup=100)})


def long_loop(*, steps: int, lr: float, warmup: int) -> LoopConfig:
    """A training of hours or days."""
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


PROMPT_PRESETS = {
    "stable-diffusion-1": align_stable_diffusion_1,
    "stable-diffusion-2": align_stable_diffusion_2,
    "stable-diffusion-xl": align_stable_diffusion_xl,
}
"""Stage align for a Stable Diffusion, by its family (`prompt_target.Family`)."""
ALIGN_PRESETS = {"starter": align_starter, "vit-l-14": align_vit_l_14, "bigg-14": align_bigg_14}
IMAGE_PRESETS = {"starter": image_starter, "vit-l-14": image_published, "bigg-14": image_published}
QUALITY_PRESETS = {"starter": quality_starter, "vit-l-14": quality_published, "bigg-14": quality_published}
