"""Stable Diffusion 1.x, 2.x and XL as decoders: a text → an image. They use no prior and no image embedding.

The arithmetic is that of diffusers' `StableDiffusionPipeline` and `StableDiffusionXLPipeline`, without their filter of images
(`safety_checker`) and their watermark.

Shapes: N images, H × W pixels, h × w latent positions (an eighth of them).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.diffusers_schedulers import load_scheduler
from syzygy.core.diffusers_weights import check_parts, read_settings
from syzygy.core.errors import UserError
from syzygy.core.prompt_embeddings import PromptEmbeddings, TimedPrompts
from syzygy.pretrained.decoder_validation import DecoderRequest
from syzygy.pretrained.diffusers_decoder import DiffusersDecoder, UNetInputs, decode_kl, tiled
from syzygy.pretrained.families import LoadContext, register_decoder
from syzygy.pretrained.text_reader import (
    SECOND_TEXT_ENCODER,
    SECOND_TOKENIZER,
    TEXT_ENCODER,
    TOKENIZER,
    load_reader,
    read_target,
)
from syzygy.regions.region_bias import RegionBias
from syzygy.text_encoders.prompt_target import PromptTarget

PARTS = ("unet", "vae", "scheduler", TEXT_ENCODER, TOKENIZER)
XL_PARTS = (*PARTS, SECOND_TEXT_ENCODER, SECOND_TOKENIZER)
ZEROS = "force_zeros_for_empty_prompt"
"""In XL's index: without a negative prompt the negative conditioning is zeros, not the empty text."""


@register_decoder(
    "stable-diffusion-1.5",
    hub_id="stable-diffusion-v1-5/stable-diffusion-v1-5",
    pipeline_class="StableDiffusionPipeline",
    parts=PARTS,
    clip="openai/clip-vit-large-patch14",
)
@dataclass(frozen=True, kw_only=True)
class StableDiffusionDecoder(DiffusersDecoder):
    """A decoder that reads texts alone, token by token, so that it can take regions.

    The negative conditioning is a negative text, by default the empty one, or zeros (XL).
    """

    reader: Callable[[Sequence[str]], PromptEmbeddings | TimedPrompts]
    """The U-Net's own text encoders, or a language model with its adapter, perhaps a timestep-aware one."""
    zeros: bool = False
    """Whether zeros stand for no negative text."""

    is_xl: ClassVar[bool] = False
    reads_image_embedding = False
    reads_text = takes_regions = True
    default_guidance_scale = 7.5

    @classmethod
    def load(cls, context: LoadContext) -> "StableDiffusionDecoder":
        """See `PretrainedDecoder`; layout of stable-diffusion-v1-5/stable-diffusion-v1-5 or stable-diffusion-xl-base-1.0."""
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        folder, dtype = context.folder, context.dtype
        check_folder(folder, xl=cls.is_xl)
        unet = context.model(UNet2DConditionModel, "unet")
        upcast = read_settings(folder, "vae", "AutoencoderKL").get("force_upcast", True)
        # XL's autoencoder overflows in half precision, unless it says otherwise.
        vae = context.model(
            AutoencoderKL, "vae", torch.float32 if cls.is_xl and upcast and dtype == torch.float16 else dtype
        )
        reader = load_reader(context, second=cls.is_xl) if context.own_text else _replaced
        check_fit(folder, unet.config, vae.config, read_target(folder, xl=cls.is_xl))
        if context.tiling:
            tiled(vae)
        return cls(
            unet=unet,
            autoencoder=vae,
            reader=reader,
            scheduler=_scheduler(folder, cls.is_xl),
            zeros=negative_is_zeros(folder),
            device=context.device,
            offload=context.offload,
        )

    def read(self, request: DecoderRequest, size: tuple[int, int]) -> UNetInputs:
        if request.positive.texts is None:
            raise UserError("this decoder generates images from texts: give it one.")
        text = self.reader(request.texts(request.positive))
        read, regions = [text], self.regions_of(request, text.spans, size)
        if request.guided and not (request.negative is None and self.zeros):
            read.append(self.reader(request.texts(request.negative)))
        constant = [one for one in read if isinstance(one, PromptEmbeddings)]
        if constant:
            return self._inputs(constant, request.guided, size, regions)
        timed = [one for one in read if isinstance(one, TimedPrompts)]
        return UNetInputs(timed=lambda t: self._inputs([one.at(t) for one in timed], request.guided, size, None))

    def _inputs(
        self, read: Sequence[PromptEmbeddings], guided: bool, size: tuple[int, int], regions: RegionBias | None
    ) -> UNetInputs:
        """What the U-Net reads of the texts and, with guidance, of the negative texts, or of zeros if there are none."""
        text, *negatives = read
        states, pooled = text.states, text.pooled
        if guided:
            negative = negatives[0] if negatives else text.zeros()
            states = torch.cat([negative.states, states])
            if pooled is not None and negative.pooled is not None:
                pooled = torch.cat([negative.pooled, pooled])
        dtype, more = self.unet.dtype, {}
        if pooled is not None:
            # XL reads each image's size before it was cropped, where it was cropped, and its size then.
            height, width = (positions * self.scale for positions in size)
            sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=dtype, device=self.device)
            added = {"text_embeds": pooled.to(dtype), "time_ids": sizes.expand(len(states), -1)}
            more = {"added_cond_kwargs": added}
        return UNetInputs(states=states.to(dtype), arguments=more, regions=regions)

    def decode(self, latents: Float[Tensor, "N C h w"]) -> Float[Tensor, "N 3 H W"]:
        return decode_kl(self.autoencoder, latents)


@register_decoder(
    "stable-diffusion-xl",
    hub_id="stabilityai/stable-diffusion-xl-base-1.0",
    pipeline_class="StableDiffusionXLPipeline",
    parts=XL_PARTS,
    clip="openai/clip-vit-large-patch14",
)
@dataclass(frozen=True, kw_only=True)
class StableDiffusionXLDecoder(StableDiffusionDecoder):
    """The same with two text encoders, and with the image's size among its conditions."""

    is_xl = True
    default_guidance_scale = 5.0


def _replaced(texts: Sequence[str]) -> PromptEmbeddings:
    """In place of text encoders that were not loaded."""
    raise AssertionError("an adapter takes the place of the text encoders")


def check_folder(folder: Path, *, xl: bool) -> None:
    """Refuse a folder that lacks a part.

    Raises:
        UserError: names the missing parts.
    """
    check_parts(folder, XL_PARTS if xl else PARTS, "Stable Diffusion XL" if xl else "Stable Diffusion")


def negative_is_zeros(folder: Path) -> bool:
    """Whether zeros, not the empty text, stand for no text."""
    return (folder / SECOND_TEXT_ENCODER).is_dir() and bool(
        artifacts.read_json(folder / "model_index.json").get(ZEROS, True)
    )


def _scheduler(folder: Path, xl: bool) -> Any:
    """The repository's own, with what diffusers corrects in old ones."""
    found = load_scheduler(folder)
    corrected = {
        name: value for name, value in {"steps_offset": 1, "clip_sample": False}.items() if name in found.config
    }
    # As arguments: in the configuration itself they would be overlooked where the file does not name them.
    return found if xl else type(found).from_config(found.config, **corrected)


def check_fit(folder: Path, unet: Mapping[str, Any], vae: Mapping[str, Any], text: PromptTarget) -> None:
    """Whether the parts, by their configurations, belong together, and are those of Stable Diffusion or XL.

    Raises:
        UserError: they are not.
    """
    if unet["cross_attention_dim"] != text.states:
        raise UserError(
            f"{folder}: the U-Net reads text states {unet['cross_attention_dim']} wide, its text encoder makes {text.states}."
        )
    adds = None if text.pooled is None else "text_time"
    odd = [name for name in ("class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim") if unet.get(name)]
    if unet.get("addition_embed_type") != adds or odd:
        raise UserError(
            f"the U-Net in {folder} reads more than Stable Diffusion's do ({', '.join(odd) or 'addition_embed_type'}): "
            "unCLIP and distilled models that read their guidance (LCM) are other kinds."
        )
    if text.pooled is not None and unet["projection_class_embeddings_input_dim"] != (
        wanted := 6 * unet["addition_time_embed_dim"] + text.pooled
    ):
        raise UserError(
            f"{folder}: the U-Net reads pooled texts and sizes {unet['projection_class_embeddings_input_dim']} wide together, its "
            f"second text encoder would make them {wanted}."
        )
    if unet["in_channels"] != vae["latent_channels"] or vae.get("latents_mean"):
        raise UserError(
            f"{folder}: the U-Net reads {unet['in_channels']} channels, the autoencoder makes {vae['latent_channels']}"
            f"{', moved' if vae.get('latents_mean') else ''}: inpainting models and those with shifted latents are other kinds."
        )
