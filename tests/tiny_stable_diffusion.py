"""A tiny Stable Diffusion with random weights, in the layout of the repositories that publish 1.x and 2.x."""

from pathlib import Path
from typing import Any

import torch

from tests.tiny_unclip import SIZE, WIDTH, _heed_conditions, _rename, random_clip

NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def tiny_stable_diffusion(folder: Path, prediction: str = "epsilon", **more: Any) -> Path:
    """Pictures of 32 × 32, latents of 4 × 16 × 16; weights named as they were published in 2022. `more` goes to the U-Net."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from transformers import CLIPTextModel

    whole = random_clip(WIDTH, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = CLIPTextModel(whole.model.config.text_config)
        unet = UNet2DConditionModel(
            **{
                "sample_size": SIZE // 2,
                "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
                "block_out_channels": (16, 32),
                "layers_per_block": 1,
                "attention_head_dim": 2,
                "norm_num_groups": 8,
                "cross_attention_dim": WIDTH,
            }
            | more
        )
        vae = AutoencoderKL(
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            latent_channels=4,
            norm_num_groups=8,
        )
    _heed_conditions(unet)
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=whole.tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(
            **NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    _rename(
        folder / "text_encoder" / "model.safetensors", lambda name: f"text_model.{name.removeprefix('text_model.')}"
    )
    return folder
