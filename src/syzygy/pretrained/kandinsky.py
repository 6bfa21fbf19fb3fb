"""Kandinsky 2.2's decoder: an image embedding → an image, through a latent U-Net and a MOVQ autoencoder. It reads no text.

The arithmetic is that of diffusers' `KandinskyV22Pipeline`.

Shapes: N images, D width of the embeddings (1280), H × W pixels, h × w latent positions (an eighth of them).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.clip.zero_image import ZeroImage
from syzygy.core.contracts import Guide
from syzygy.core.diffusers_schedulers import load_scheduler
from syzygy.core.diffusers_weights import check_parts, read_settings
from syzygy.core.errors import UserError
from syzygy.pretrained.decoder_validation import DecoderRequest
from syzygy.pretrained.diffusers_decoder import DiffusersDecoder, UNetInputs
from syzygy.pretrained.families import LoadContext, register_decoder

PARTS = ("unet", "movq", "scheduler")
Unconditional = Callable[[], Float[Tensor, "1 D"]]


@register_decoder(
    "kandinsky-2.2",
    hub_id="kandinsky-community/kandinsky-2-2-decoder",
    pipeline_class=("KandinskyV22Pipeline", "KandinskyV22CombinedPipeline"),
    parts=PARTS,
    clip="kandinsky-community/kandinsky-2-2-prior",
    prior="ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior",
)
@dataclass(frozen=True, kw_only=True)
class KandinskyDecoder(DiffusersDecoder):
    """A decoder that reads image embeddings alone.

    The negative conditioning is the prior's prediction for a negative prompt, or the embedding of an image of zeros.
    """

    unconditional: Unconditional
    """Returns the image encoder's output for an all-zero normalised image; called only when guidance needs it."""

    default_guidance_scale = 4.0

    @classmethod
    def load(cls, context: LoadContext) -> "KandinskyDecoder":
        """See `PretrainedDecoder`; layout of kandinsky-community/kandinsky-2-2-decoder."""
        from diffusers.models.autoencoders.vq_model import VQModel
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        if context.tiling:
            raise UserError("diffusers has no tiling for Kandinsky's autoencoder (MOVQ): leave it out, or offload.")
        cls.embedding_width(context.folder)
        assert context.clip is not None
        return cls(
            scheduler=load_scheduler(context.folder),
            unet=context.model(UNet2DConditionModel, "unet"),
            autoencoder=context.model(VQModel, "movq"),
            device=context.device,
            unconditional=ZeroImage(context.clip, context.clip_identity),
            offload=context.offload,
        )

    @classmethod
    def embedding_width(cls, folder: Path) -> int:
        """D of the decoder in a folder, without its weights.

        Raises:
            UserError: a part is missing, or is another kind of model.
        """
        check_parts(folder, PARTS, "Kandinsky 2.2's decoder")
        values = read_settings(folder, "unet", "UNet2DConditionModel")
        if values.get("encoder_hid_dim_type") != "image_proj" or not isinstance(values.get("encoder_hid_dim"), int):
            raise UserError(
                f"the U-Net in {folder} is not Kandinsky 2.2's: it reads no image embedding through image_proj. Kandinsky 2.1 "
                "and the ControlNet variant are not supported."
            )
        return values["encoder_hid_dim"]

    @property
    def width(self) -> int:
        """D."""
        return self.unet.config.encoder_hid_dim

    @property
    def size_multiple(self) -> int:
        """Of the pixels for each latent position, squared: 64."""
        return self.scale**2

    def read(self, request: DecoderRequest, size: tuple[int, int]) -> UNetInputs:
        embeddings = request.embeddings(request.positive, self.width, self.device)
        if request.guided:
            negative = Guide(self.unconditional()) if request.negative is None else request.negative
            embeddings = torch.cat([request.embeddings(negative, self.width, self.device), embeddings])
        return UNetInputs(arguments={"added_cond_kwargs": {"image_embeds": embeddings.to(self.unet.dtype)}})

    def decode(self, latents: Float[Tensor, "N C h w"]) -> Float[Tensor, "N 3 H W"]:
        latents = latents.to(self.autoencoder.dtype)
        return self.autoencoder.decode(latents, force_not_quantize=True, return_dict=False)[0]
