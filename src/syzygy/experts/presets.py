"""Presets for experts of a published U-Net, trained on the user's own images."""

from syzygy.experts.unet_expert_training import ExpertUNetsRun
from syzygy.pretrained.unet_task import UNetTaskConfig
from syzygy.training.schedule import LoopConfig


def expert_unets_lora() -> ExpertUNetsRun:
    """Experts of a diffusers U-Net as low-rank adaptations of its attention, with a small learning rate. Not yet run at full size."""
    loop = LoopConfig(steps=1000, lr=1e-4, warmup=50, weight_decay=0.01, grad_clip=1.0, ema_half_life=100.0)
    loop = loop.model_copy(update={"validate_every": 250, "checkpoint_every": 250})
    return ExpertUNetsRun(task=UNetTaskConfig(checkpointing=True), loop=loop)


def expert_unets_full() -> ExpertUNetsRun:
    """Experts as whole networks, which need 16 bytes of memory per parameter, and the activations. Not yet run at full size."""
    run = expert_unets_lora()
    return run.model_copy(update={"form": "full", "loop": run.loop.model_copy(update={"lr": 1e-5})})


PRESETS = {"lora": expert_unets_lora, "full": expert_unets_full}
