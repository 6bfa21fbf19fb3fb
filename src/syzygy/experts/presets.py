"""Presets for experts of a published U-Net, trained on the user's own images."""

from typing import Any

from syzygy.experts.unet_expert_training import ExpertUNetsRun
from syzygy.pretrained.unet_task import UNetTaskConfig
from syzygy.training.schedule import LoopConfig


def expert_unets_lora() -> ExpertUNetsRun:
    """Experts of a diffusers U-Net as low-rank adaptations of its attention, with a small learning rate. Not run at full size yet."""
    times: dict[str, Any] = {"warmup": 50, "ema_half_life": 100.0, "validate_every": 250, "checkpoint_every": 250}
    loop = LoopConfig(steps=1000, lr=1e-4, weight_decay=0.01, grad_clip=1.0, **times)
    return ExpertUNetsRun(task=UNetTaskConfig(checkpointing=True), loop=loop)


def expert_unets_full() -> ExpertUNetsRun:
    """The same as whole networks: 16 bytes of memory per parameter, without the activations. Not run at full size yet."""
    return expert_unets_lora().changed(form="full", loop={"lr": 1e-5})


PRESETS = {"lora": expert_unets_lora, "full": expert_unets_full}
