"""A tiny Stable Diffusion XL with random weights, saved by diffusers' own pipeline as stabilityai/stable-diffusion-xl-base-1.0 is."""

from pathlib import Path
from typing import Any

import torch

from tests.tiny_unclip import SIZE, WIDTH, _heed_conditions, random_clip

WIDTHS = (24, 16)
"""Of the text encoders' states."""


def _text(kind: Any, width: int, **more: Any) -> Any:
    from transformers import CLIPTextConfig

    own = random_clip(WIDTH, 0).model.config.text_config.to_dict()
    return kind(
        CLIPTextConfig(**own | {"hidden_size": width, "intermediate_size": 48, "projection_dim": width} | more)
    ).eval()


def tiny_xl(folder: Path) -> Path:
    """Two text encoders, whose tokenizers differ in their pad; Euler."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    first = random_clip(WIDTH, 0).tokenizer
    first.save_pretrained(folder / "tokenizer")
    second = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True, pad_token="!")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoders = _text(CLIPTextModel, WIDTHS[0]), _text(CLIPTextModelWithProjection, WIDTHS[1], hidden_act="gelu")
        unet = UNet2DConditionModel(
            sample_size=SIZE // 2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(16, 32),
            layers_per_block=1,
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(2, 4),
            norm_num_groups=8,
            use_linear_projection=True,
            cross_attention_dim=sum(WIDTHS),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTHS[1],
        )
        vae = AutoencoderKL(
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            latent_channels=4,
            norm_num_groups=8,
        )
    _heed_conditions(unet)
    StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=first,
        tokenizer_2=second,
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            timestep_spacing="leading",
            steps_offset=1,
        ),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder
