"""Stable unCLIP (Stable Diffusion 2.1): an image embedding, with a noise level, and a text → an image.

The arithmetic is that of diffusers' `StableUnCLIPPipeline` after its prior, and of `StableUnCLIPImg2ImgPipeline` after its image
encoder: neither is needed here. The U-Net adds the noised embedding to its time embedding, and attends to the states of its *own*
text encoder (OpenCLIP ViT-H/14, 1024 wide), which is not the prior's CLIP.

Shapes: N images, D width of the embeddings (768), H × W pixels, h × w latent positions (an eighth of them).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.core import arguments
from syzygy.core.diffusers_schedulers import load_scheduler
from syzygy.core.diffusers_weights import check_parts, read_settings
from syzygy.core.errors import UserError
from syzygy.core.options import NOISE_LEVEL
from syzygy.core.randomness import per_sample_noise
from syzygy.pretrained.decoder_validation import DecoderRequest
from syzygy.pretrained.diffusers_decoder import DiffusersDecoder, UNetInputs, decode_kl, tiled
from syzygy.pretrained.families import LoadContext, register_decoder
from syzygy.pretrained.text_reader import TEXT_ENCODER, TOKENIZER, TextReader, load_reader

NORMALIZER, NOISING = "image_normalizer", "image_noising_scheduler"
PARTS = ("unet", "vae", "scheduler", TEXT_ENCODER, TOKENIZER, NORMALIZER, NOISING)


@register_decoder(
    "stable-unclip",
    hub_id="stabilityai/stable-diffusion-2-1-unclip-small",
    pipeline_class=("StableUnCLIPImg2ImgPipeline", "StableUnCLIPPipeline"),
    parts=PARTS,
    clip="openai/clip-vit-large-patch14",
    prior="ECLIPSE-Community/ECLIPSE_Karlo_Prior",
    options=(NOISE_LEVEL,),
)
@dataclass(frozen=True, kw_only=True)
class StableUnclipDecoder(DiffusersDecoder):
    """A decoder that reads image embeddings and texts; without a text it reads the empty one.

    The negative conditioning is the embedding of zeros with a negative text (the empty one by default), as it was trained; a
    guide with embeddings alone stands for those embeddings.
    """

    text: TextReader
    normalizer: Any
    noising: Any
    """Scheduler of the embedding's noise."""

    reads_text = takes_regions = True
    own_text_encoder = "Stable unCLIP's U-Net reads the prompt with a CLIP of its own (English, 77 tokens)"
    default_steps = 20
    default_guidance_scale = 10.0
    default_options = {NOISE_LEVEL.name: 0}

    @classmethod
    def load(cls, context: LoadContext) -> "StableUnclipDecoder":
        """See `PretrainedDecoder`; layout of stabilityai/stable-diffusion-2-1-unclip-small, whose image encoder is not read."""
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

        folder = context.folder
        cls.embedding_width(folder)
        scheduler, noising = load_scheduler(folder), load_scheduler(folder, NOISING)
        # Statistics are few and exact: in fp32, whatever the networks compute in.
        normalizer = context.model(StableUnCLIPImageNormalizer, NORMALIZER, torch.float32).to(context.device)
        unet = context.model(UNet2DConditionModel, "unet")
        vae = context.model(AutoencoderKL, "vae")
        if context.tiling:
            tiled(vae)
        text = load_reader(context)
        config = text.encoders[0].config
        if unet.config["cross_attention_dim"] != config.hidden_size:
            raise UserError(
                f"{folder}: the U-Net reads text states {unet.config['cross_attention_dim']} wide, its text encoder makes "
                f"{config.hidden_size}."
            )
        return cls(
            unet=unet,
            autoencoder=vae,
            text=replace(text, most=config.max_position_embeddings),
            normalizer=normalizer,
            noising=noising,
            scheduler=scheduler,
            device=context.device,
            offload=context.offload,
        )

    @classmethod
    def embedding_width(cls, folder: Path) -> int:
        """D of the decoder in a folder, without its weights.

        Raises:
            UserError: a part is missing, or the parts do not belong together.
        """
        check_parts(folder, PARTS, "Stable unCLIP")
        width = read_settings(folder, NORMALIZER, "StableUnCLIPImageNormalizer").get("embedding_dim")
        unet = read_settings(folder, "unet", "UNet2DConditionModel")
        if unet.get("projection_class_embeddings_input_dim") != 2 * (width or 0):
            raise UserError(
                f"{folder}: the U-Net reads embeddings with noise levels {unet.get('projection_class_embeddings_input_dim')} wide, "
                f"which must be twice the image normaliser's {width}: they belong to different models."
            )
        assert isinstance(width, int)
        return width

    @property
    def width(self) -> int:
        """D."""
        return self.normalizer.config.embedding_dim

    def read(self, request: DecoderRequest, size: tuple[int, int]) -> UNetInputs:
        most = self.noising.config.num_train_timesteps - 1
        level = arguments.whole(request.options[NOISE_LEVEL.name], NOISE_LEVEL.name, 0, most)
        # The embedding's noise comes before the latents', as in diffusers.
        noise = per_sample_noise((self.width,), request.generators, self.device)
        labels = self._noised(request.embeddings(request.positive, self.width, self.device), noise, level)
        text = self.text(request.texts(request.positive))
        regions, states = self.regions_of(request, text.spans, size), text.states
        if request.guided:
            negative = request.negative
            if negative is None or negative.texts is not None:
                negative_labels = torch.zeros_like(labels)
            else:
                embeddings = request.embeddings(negative, self.width, self.device)
                negative_labels = self._noised(embeddings, noise, level)
            labels = torch.cat([negative_labels, labels])
            states = torch.cat([self.text(request.texts(negative)).states, states])
        dtype = self.unet.dtype
        return UNetInputs(states=states.to(dtype), arguments={"class_labels": labels.to(dtype)}, regions=regions)

    def decode(self, latents: Float[Tensor, "N C h w"]) -> Float[Tensor, "N 3 H W"]:
        return decode_kl(self.autoencoder, latents)

    def _noised(
        self, embeddings: Float[Tensor, "N D"], noise: Float[Tensor, "N D"], level: int
    ) -> Float[Tensor, "N twoD"]:
        """Embeddings, noised to `level` where their statistics are those of the schedule, and the sinusoids of the level."""
        from diffusers.models.embeddings import get_timestep_embedding

        levels = torch.full((len(embeddings),), level, device=embeddings.device)
        scaled = self.normalizer.scale(embeddings)
        noised = self.normalizer.unscale(self.noising.add_noise(scaled, timesteps=levels, noise=noise))
        sinusoids = get_timestep_embedding(levels, self.width, flip_sin_to_cos=True, downscale_freq_shift=0)
        return torch.cat([noised, sinusoids], dim=1)
