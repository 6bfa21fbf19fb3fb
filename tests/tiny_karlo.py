"""A tiny Karlo with random weights, saved in the layout of kakaobrain/karlo-v1-alpha: its classes, folders and file names."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.tiny_unclip import POSITIONS, WIDTH, Tiny, tiny_clip, tiny_eclipse

SMALL, LARGE = 8, 16
"""Sides of the pictures of both stages."""
INDEX = {
    "_class_name": "UnCLIPPipeline",
    "_diffusers_version": "0.11.0.dev0",
    "decoder": ["diffusers", "UNet2DConditionModel"],
    "decoder_scheduler": ["diffusers", "UnCLIPScheduler"],
    "prior": ["diffusers", "PriorTransformer"],
    "prior_scheduler": ["diffusers", "UnCLIPScheduler"],
    "super_res_first": ["diffusers", "UNet2DModel"],
    "super_res_last": ["diffusers", "UNet2DModel"],
    "super_res_scheduler": ["diffusers", "UnCLIPScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_proj": ["unclip", "UnCLIPTextProjModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}
"""As published: the place that `text_proj` names is the one that diffusers no longer has."""


class Models(NamedTuple):
    """Karlo's networks, as diffusers makes them."""

    decoder: Any
    text_proj: Any
    super_res_first: Any
    super_res_last: Any
    prior: Any


def karlo_models(width: int = WIDTH, seed: int = 0) -> Models:
    """With the published settings, but for sizes."""
    from diffusers.models.transformers.prior_transformer import PriorTransformer
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    fine = {
        "sample_size": LARGE,
        "layers_per_block": 1,
        "down_block_types": ("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
        "block_out_channels": (16, 32),
        "in_channels": 6,
        "out_channels": 3,
        "norm_num_groups": 8,
        "add_attention": False,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = UNet2DConditionModel(
            sample_size=SMALL,
            layers_per_block=1,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            block_out_channels=(16, 32),
            in_channels=3,
            out_channels=6,
            cross_attention_dim=24,
            class_embed_type="identity",
            attention_head_dim=8,
            norm_num_groups=8,
            resnet_time_scale_shift="scale_shift",
        )
        text_proj = UnCLIPTextProjModel(
            clip_extra_context_tokens=4, clip_embeddings_dim=width, time_embed_dim=64, cross_attention_dim=24
        )
        torch.nn.init.normal_(text_proj.learned_classifier_free_guidance_embeddings)
        prior = PriorTransformer(
            num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=width, num_embeddings=POSITIONS
        )
        prior.clip_std.data.fill_(1.0)
        models = Models(decoder, text_proj, UNet2DModel(**fine), UNet2DModel(**fine), prior)
    for model in models:
        model.eval().requires_grad_(False)
    return models


def karlo_schedulers() -> dict[str, Any]:
    """As published."""
    from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler

    return {
        "prior_scheduler": UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
        "decoder_scheduler": UnCLIPScheduler(variance_type="learned_range"),
        "super_res_scheduler": UnCLIPScheduler(),
    }


def tiny_karlo(folder: Path, width: int = WIDTH, seed: int = 0) -> Tiny:
    """`decoder` as kakaobrain/karlo-v1-alpha, `clip` as openai/clip-vit-large-patch14, `prior` as ECLIPSE's for Karlo."""
    from transformers import CLIPModel, CLIPTextModelWithProjection, CLIPTokenizer

    clip, karlo = tiny_clip(folder / "clip", width, seed), folder / "decoder"
    for part, model in karlo_models(width, seed)._asdict().items():
        model.save_pretrained(karlo / part)
    for part, scheduler in karlo_schedulers().items():
        scheduler.save_pretrained(karlo / part)
    whole = CLIPModel.from_pretrained(clip, local_files_only=True)
    text, stored = CLIPTextModelWithProjection(whole.config.text_config), whole.state_dict()
    text.load_state_dict({name: stored[name] for name in text.state_dict()})
    text.save_pretrained(karlo / "text_encoder")
    CLIPTokenizer.from_pretrained(clip, local_files_only=True).save_pretrained(karlo / "tokenizer")
    (karlo / "model_index.json").write_text(json.dumps(INDEX, indent=2))
    return Tiny(karlo, clip, tiny_eclipse(folder / "prior", width, seed))
