"""Presets of trainings of published U-Nets: the stages image and quality of an adapter for a Stable Diffusion, by its family
(`prompt_target.Family`), and concept fine-tuning.
"""

from typing import get_args

from syzygy.pretrained.concept_training import ConceptRun
from syzygy.pretrained.prompt_diffusion import PromptImageTaskConfig
from syzygy.pretrained.prompt_image_training import PromptImageRun
from syzygy.pretrained.unet_task import UNetTaskConfig
from syzygy.text_encoders.presets import long_loop
from syzygy.text_encoders.prompt_target import Family
from syzygy.training.schedule import LoopConfig


def image_stable_diffusion() -> PromptImageRun:
    """After the released code of arXiv 2405.12914: AdamW at 3e-5 after 1,000 steps of warm-up, weight decay 0.03. Not yet run at full size.

    The paper also trains the U-Net (trains=unet task.perturbation=0.1). Its number of steps is not known; ours is as for priors.
    """
    loop = long_loop(steps=30_000, lr=3e-5, warmup=1000).model_copy(update={"weight_decay": 0.03})
    return PromptImageRun(validation_pictures=128, task=PromptImageTaskConfig(checkpointing=True), loop=loop)


def quality_stable_diffusion() -> PromptImageRun:
    """The same on selected images, shorter and with a third of the learning rate. The paper's figure freezes the adapter (task.frozen)."""
    loop = long_loop(steps=1000, lr=1e-5, warmup=100).model_copy(update={"weight_decay": 0.03})
    return image_stable_diffusion().model_copy(update={"validation_pictures": 64, "loop": loop})


IMAGE_PRESETS = dict.fromkeys(get_args(Family), image_stable_diffusion)
QUALITY_PRESETS = dict.fromkeys(get_args(Family), quality_stable_diffusion)


def concept() -> ConceptRun:
    """The recipe of λ-ECLIPSE's authors (arXiv 2402.05195): the whole U-Net, 400 steps of 4 pictures at 512 × 512, learning rate 1e-5.

    What they do not give is as in diffusers' training script for this decoder: a constant learning rate, AdamW without weight decay,
    gradients of at most norm 1, no averaged weights, no embedding dropped. The published U-Net (1.25 billion parameters) needs 20 GB for
    weights, gradients and AdamW's moments in fp32, and 5 GB more with averaged weights; activations come on top. Not yet run at full size.
    """
    loop = LoopConfig(steps=400, lr=1e-5, schedule="constant", grad_clip=1.0, checkpoint_every=200)
    task = UNetTaskConfig(batch_size=4, dropped=0.0, checkpointing=True)
    return ConceptRun(size=512, validation_pictures=0, task=task, loop=loop)


CONCEPT_PRESETS = {"concept": concept}
