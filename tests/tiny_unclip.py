"""Tiny unCLIP models with random weights, saved in the layouts of the repositories that publish them.

Classes, folders and file names are those of kandinsky-community/kandinsky-2-2-decoder and -prior, of
stabilityai/stable-diffusion-2-1-unclip-small, openai/clip-vit-large-patch14 and ECLIPSE-Community's priors; sizes are not.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from syzygy.clip.clip_model import ClipConfig, build_clip

WIDTH = 32
"""Of the joint space; `tiny_clip` can be asked for another."""
POSITIONS = 77
TEXTS = ["a red circle", "two blue stars above a ring!", "a red circle left of a blue star", "звезда"]
SIZE = 32
"""Height and width of the pictures."""
VAE_OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Attention of autoencoders that were published before diffusers 0.16."""


KANDINSKY_SCHEDULER = {  # as published in 2023
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.17.0.dev0",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
    "thresholding": False,
}


class Tiny(NamedTuple):
    """Three repositories that belong together."""

    decoder: Path
    clip: Path
    prior: Path
    """ECLIPSE's."""


@cache
def random_clip(width: int = WIDTH, seed: int = 0) -> Any:
    config = ClipConfig(
        width=width, text_layers=2, text_heads=2, vision_width=32, vision_layers=1, vision_heads=2, image_size=24,
        patch_size=8, positions=POSITIONS,
    )  # fmt: skip
    return build_clip(config, TEXTS * 3, seed)


def tiny_clip(folder: Path, width: int = WIDTH, seed: int = 0) -> Path:
    """As openai/clip-vit-large-patch14: one `CLIPModel` with tokenizer and preparation. Equal seeds give equal weights in both layouts."""
    random_clip(width, seed).save_pretrained(folder, {})
    (folder / "provenance.json").unlink()
    return folder


def tiny_clip_pipeline(folder: Path, width: int = WIDTH, seed: int = 0) -> Path:
    """As kandinsky-community/kandinsky-2-2-prior: diffusers' pipeline with its stock prior, a folder for each tower."""
    from diffusers.models.transformers.prior_transformer import PriorTransformer
    from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2_prior import KandinskyV22PriorPipeline
    from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    whole = random_clip(width, seed)
    stored = whole.model.state_dict()
    towers = [
        kind(config)
        for kind, config in (
            (CLIPTextModelWithProjection, whole.model.config.text_config),
            (CLIPVisionModelWithProjection, whole.model.config.vision_config),
        )
    ]
    for tower in towers:
        tower.load_state_dict({name: stored[name] for name in tower.state_dict()})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prior = PriorTransformer(
            num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=width, num_embeddings=POSITIONS
        )
    prior.clip_std.data.fill_(1.0)
    KandinskyV22PriorPipeline(
        prior=prior,
        text_encoder=towers[0],
        image_encoder=towers[1].half(),
        tokenizer=whole.tokenizer,
        scheduler=UnCLIPScheduler(prediction_type="sample", num_train_timesteps=1000, clip_sample_range=10.0),
        image_processor=CLIPImageProcessorPil.from_dict(whole.preparation.to_config()),
    ).save_pretrained(folder)
    _publish_processor(folder, "image_processor")
    return folder


def tiny_eclipse(folder: Path, width: int = WIDTH, seed: int = 0) -> Path:
    """As ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior: `config.json` and one file of weights, no record beside them."""
    from syzygy.prior.eclipse import EclipsePrior, EclipsePriorConfig
    from syzygy.prior.embedding_statistics import EmbeddingStatistics

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prior = EclipsePrior(
            EclipsePriorConfig(embedding_dim=width, num_layers=1, num_attention_heads=2, attention_head_dim=16)
        )
    prior.set_statistics(EmbeddingStatistics(torch.zeros(width), torch.ones(width), 1.0))
    prior.save_pretrained(folder)
    return folder


def tiny_lambda_eclipse(folder: Path, width: int = WIDTH, seed: int = 0) -> Path:
    """As ECLIPSE-Community/Lambda-ECLIPSE-Prior-v1.0: as an ECLIPSE prior, with four tokens after the text and `embedding_control`."""
    from syzygy.prior.embedding_statistics import EmbeddingStatistics
    from syzygy.prior.lambda_eclipse import LambdaEclipsePrior, LambdaEclipsePriorConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prior = LambdaEclipsePrior(
            LambdaEclipsePriorConfig(embedding_dim=width, num_layers=1, num_attention_heads=2, attention_head_dim=16)
        )
        for token in (prior.positional_embedding, prior.prd_embedding):
            torch.nn.init.normal_(token, std=0.1)
    # Random weights hardly look at what they are given; stronger ones make embeddings that differ.
    for layer in (prior.encoder_hidden_states_proj, prior.embedding_control, prior.proj_to_clip_embeddings):
        layer.weight.data.mul_(4.0)
    prior.set_statistics(EmbeddingStatistics(torch.zeros(width), torch.ones(width), 1.0))
    prior.save_pretrained(folder)
    return folder


KANDINSKY_CHANNELS = {"KandinskyV22Pipeline": 4, "KandinskyV22InpaintPipeline": 9, "KandinskyV22ControlnetPipeline": 8}
"""Channels that the U-Net of each published decoder reads, by the class of its pipeline."""


def tiny_kandinsky(
    folder: Path, width: int = WIDTH, seed: int = 0, pipeline: str = "KandinskyV22Pipeline", levels: int = 2
) -> Tiny:
    """`decoder` as kandinsky-community/kandinsky-2-2-decoder, `clip` as kandinsky-2-2-prior.

    Args:
        pipeline: the class of the pipeline, for the decoder that inpaints or the one that follows a depth map.
        levels: of the autoencoder. With two, latents have half the height and width of the pixels; with four, an eighth, as published.
    """
    import diffusers
    from diffusers.models.autoencoders.vq_model import VQModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=(64 if levels == 4 else SIZE) // 2 ** (levels - 1),
            in_channels=KANDINSKY_CHANNELS[pipeline],
            out_channels=8,
            addition_embed_type="image_hint" if "Controlnet" in pipeline else "image",
            encoder_hid_dim_type="image_proj",
            encoder_hid_dim=width,
            cross_attention_dim=16,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            block_out_channels=(16, 32),
            layers_per_block=1,
            attention_head_dim=8,
            norm_num_groups=8,
            resnet_time_scale_shift="scale_shift",
        )
        movq = VQModel(
            block_out_channels=(32,) * (levels - 1)
            + (64,),  # its spatial normalisation has 32 groups, whatever is asked
            down_block_types=("DownEncoderBlock2D",) * (levels - 1) + ("AttnDownEncoderBlock2D",),
            up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * (levels - 1),
            latent_channels=4,
            norm_type="spatial",
            num_vq_embeddings=12,
            vq_embed_dim=4,
        )
    _heed_conditions(unet)
    getattr(diffusers, pipeline)(unet=unet, scheduler=DDPMScheduler(), movq=movq).save_pretrained(folder / "decoder")
    (folder / "decoder/scheduler/scheduler_config.json").write_text(json.dumps(KANDINSKY_SCHEDULER))
    return Tiny(
        folder / "decoder",
        tiny_clip_pipeline(folder / "clip", width, seed),
        tiny_eclipse(folder / "prior", width, seed),
    )


def tiny_stable_unclip(folder: Path, width: int = WIDTH, seed: int = 0) -> Tiny:
    """`decoder` as stabilityai/stable-diffusion-2-1-unclip-small, whose own text encoder is narrower here; `clip` as OpenAI's."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.pipeline_stable_unclip_img2img import StableUnCLIPImg2ImgPipeline
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.schedulers.scheduling_pndm import PNDMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionModelWithProjection
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    whole = random_clip(width, seed)
    own, noise = 24, {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = CLIPTextModel(
            CLIPTextConfig(
                **whole.model.config.text_config.to_dict()
                | {"hidden_size": own, "intermediate_size": 48, "hidden_act": "gelu", "num_hidden_layers": 1}
            )
        )
        unet = UNet2DConditionModel(
            sample_size=SIZE // 2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(16, 32),
            layers_per_block=1,
            attention_head_dim=(2, 4),
            norm_num_groups=8,
            cross_attention_dim=own,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=2 * width,
            use_linear_projection=True,
        )
        vae = AutoencoderKL(
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            latent_channels=4,
            norm_num_groups=8,
        )
        normalizer = StableUnCLIPImageNormalizer(width)
        normalizer.mean.data.normal_(std=0.1)
        normalizer.std.data.uniform_(0.5, 1.5)
        image = CLIPVisionModelWithProjection(whole.model.config.vision_config)
    stored = whole.model.state_dict()
    image.load_state_dict({name: stored[name] for name in image.state_dict()})
    _heed_conditions(unet)
    decoder = folder / "decoder"
    StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessorPil.from_dict(whole.preparation.to_config()),
        image_encoder=image,
        image_normalizer=normalizer,
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=whole.tokenizer,
        text_encoder=text,
        unet=unet,
        scheduler=PNDMScheduler(
            skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False, prediction_type="v_prediction", **noise
        ),
        vae=vae,
    ).save_pretrained(decoder)
    _publish_processor(decoder, "feature_extractor")
    # As published in 2023, before both libraries renamed weights.
    _rename(decoder / "vae" / "diffusion_pytorch_model.safetensors", _old_name)
    _rename(
        decoder / "text_encoder" / "model.safetensors", lambda name: f"text_model.{name.removeprefix('text_model.')}"
    )
    return Tiny(decoder, tiny_clip(folder / "clip", width, seed), tiny_eclipse(folder / "prior", width, seed))


def _heed_conditions(unet: Any) -> None:
    """Random weights hardly look at what they are given; stronger ones make pictures that differ."""
    for name, parameter in unet.named_parameters():
        if any(
            part in name for part in ("encoder_hid_proj", "add_embedding", "class_embedding", "attn2", "add_k", "add_v")
        ):
            parameter.data.mul_(4.0)


def _rename(path: Path, rename: Callable[[str], str]) -> None:
    save_file({rename(name): value for name, value in load_file(path).items()}, path, metadata={"format": "pt"})


def _old_name(name: str) -> str:
    for new, old in VAE_OLD_NAMES.items():
        name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
    return name


def _publish_processor(folder: Path, part: str) -> None:
    """transformers 5 writes another class and file than everybody has published."""
    for path in (folder / part).iterdir():
        path.unlink()
    config = random_clip(WIDTH, 0).preparation.to_config()
    (folder / part / "preprocessor_config.json").write_text(json.dumps(config))
    index = folder / "model_index.json"
    index.write_text(
        json.dumps(json.loads(index.read_text()) | {part: ["transformers", "CLIPImageProcessor"]}, indent=2)
    )
