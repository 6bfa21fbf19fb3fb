"""Kandinsky 2.2's decoders: an image embedding → an image, through a latent U-Net and a MOVQ autoencoder. They read no text.

Three are published: the plain one, which can start from an image; one that inpaints, whose U-Net reads a mask and the latents outside of
it as further channels; and one that follows a depth map (ControlNet). The arithmetic is that of diffusers' `KandinskyV22Pipeline`,
`…Img2ImgPipeline`, `…InpaintPipeline`, `…ControlnetPipeline` and `…ControlnetImg2ImgPipeline`.

Shapes: N images, D width of the embeddings (1280), H × W pixels, h × w latent positions (an eighth of them).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from syzygy.clip.zero_image import ZeroImage
from syzygy.core.contracts import Guide
from syzygy.core.diffusers_schedulers import load_scheduler
from syzygy.core.diffusers_weights import check_parts, read_settings
from syzygy.core.errors import UserError
from syzygy.core.known_latents import KnownLatents
from syzygy.pretrained.decoder_validation import DecoderRequest
from syzygy.pretrained.diffusers_decoder import DiffusersDecoder, UNetInputs
from syzygy.pretrained.families import LoadContext, register_decoder
from syzygy.pretrained.visiting import visiting

PARTS = ("unet", "movq", "scheduler")
CLIP, PRIOR = "kandinsky-community/kandinsky-2-2-prior", "ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior"
MASK_CHANNELS = 1
DILATION = ((1, 1, 0), (1, 1, 1), (0, 1, 1))
"""The neighbours that are repainted with a latent position, as in diffusers, which leaves out two of the corners."""
Unconditional = Callable[[], Float[Tensor, "1 D"]]


@register_decoder(
    "kandinsky-2.2-controlnet-depth",
    hub_id="kandinsky-community/kandinsky-2-2-controlnet-depth",
    pipeline_class=("KandinskyV22ControlnetPipeline", "KandinskyV22ControlnetImg2ImgPipeline"),
    parts=PARTS,
    clip=CLIP,
    prior=PRIOR,
)
@register_decoder(
    "kandinsky-2.2-inpaint",
    hub_id="kandinsky-community/kandinsky-2-2-decoder-inpaint",
    pipeline_class=("KandinskyV22InpaintPipeline", "KandinskyV22InpaintCombinedPipeline"),
    parts=PARTS,
    clip=CLIP,
    prior=PRIOR,
)
@register_decoder(
    "kandinsky-2.2",
    hub_id="kandinsky-community/kandinsky-2-2-decoder",
    pipeline_class=(
        "KandinskyV22Pipeline",
        "KandinskyV22CombinedPipeline",
        "KandinskyV22Img2ImgPipeline",
        "KandinskyV22Img2ImgCombinedPipeline",
    ),
    parts=PARTS,
    clip=CLIP,
    prior=PRIOR,
)
@dataclass(frozen=True, kw_only=True)
class KandinskyDecoder(DiffusersDecoder):
    """A decoder that reads image embeddings, and pictures by their pixels. The configuration of its U-Net says which.

    The negative conditioning is the prior's prediction for a negative prompt, or the embedding of an image of zeros.
    """

    unconditional: Unconditional
    """Returns the image encoder's output for an all-zero normalised image; called only when guidance needs it."""
    takes_mask: bool = False
    """Whether its U-Net inpaints: it then needs an image and a mask."""
    takes_depth: bool = False
    """Whether its U-Net reads a depth map: it then needs one."""

    takes_image = True
    default_guidance_scale = 4.0
    default_strength = 0.3

    @classmethod
    def load(cls, context: LoadContext) -> "KandinskyDecoder":
        """See `PretrainedDecoder`; layout of kandinsky-community/kandinsky-2-2-decoder."""
        from diffusers.models.autoencoders.vq_model import VQModel
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        if context.tiling:
            raise UserError("diffusers has no tiling for Kandinsky's autoencoder (MOVQ): leave it out, or offload.")
        cls.embedding_width(context.folder)
        assert context.clip is not None
        unet, movq = context.model(UNet2DConditionModel, "unet"), context.model(VQModel, "movq")
        takes_mask, takes_depth = _kind(context.folder, unet.config, movq.config.latent_channels)
        return cls(
            scheduler=load_scheduler(context.folder),
            unet=unet,
            autoencoder=movq,
            takes_mask=takes_mask,
            takes_depth=takes_depth,
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
                f"the U-Net in {folder} is not Kandinsky 2.2's: it reads no image embedding through image_proj. Kandinsky 2.1 is not "
                "supported."
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
        known, channels = self._known(request, size)
        embeddings = request.embeddings(request.positive, self.width, self.device)
        if request.guided:
            negative = Guide(self.unconditional()) if request.negative is None else request.negative
            embeddings = torch.cat([request.embeddings(negative, self.width, self.device), embeddings])
        added = {"image_embeds": embeddings.to(self.unet.dtype)}
        if self.takes_depth:
            depth = request.positive.pixels.depth
            if depth is None:
                raise UserError("this decoder follows a depth map: give one (--depth, or depth=…).")
            added["hint"] = depth.to(embeddings.device, self.unet.dtype).expand(len(embeddings), -1, -1, -1)
        return UNetInputs(arguments={"added_cond_kwargs": added}, channels=channels, known=known)

    def _known(
        self, request: DecoderRequest, size: tuple[int, int]
    ) -> tuple[KnownLatents | None, Float[Tensor, "1 K h w"] | None]:
        """The latents to start from or to keep, and what an inpainting U-Net reads of them."""
        pixels, strength = request.positive.pixels, request.sampling.strength
        image, mask = pixels.image, pixels.mask
        if self.takes_mask and (image is None or mask is None):
            raise UserError("this decoder repaints a part of an image: give an image and a mask.")
        if image is None:
            return None, None
        with visiting(self.device, self.autoencoder, offload=self.offload):
            latents = self.autoencoder.encode(
                (2 * image[None] - 1).to(self.device, self.autoencoder.dtype), return_dict=False
            )[0].float()
        if mask is None:
            return KnownLatents(latents=latents, strength=self.default_strength if strength is None else strength), None
        if strength is not None:
            raise UserError("strength has no effect on this decoder, which repaints the mask from noise: leave it out.")
        keep = kept_positions(mask.to(self.device), size)
        return KnownLatents(latents=latents, keep=keep), torch.cat([latents * keep, keep], 1)

    def decode(self, latents: Float[Tensor, "N C h w"]) -> Float[Tensor, "N 3 H W"]:
        latents = latents.to(self.autoencoder.dtype)
        return self.autoencoder.decode(latents, force_not_quantize=True, return_dict=False)[0]


def _kind(folder: Path, unet: Mapping[str, Any], latent_channels: int) -> tuple[bool, bool]:
    """Whether a U-Net inpaints, and whether it reads a depth map.

    Raises:
        UserError: it reads something else.
    """
    channels, added = unet["in_channels"], unet["addition_embed_type"]
    kinds = {
        (latent_channels, "image"): (False, False),
        (2 * latent_channels + MASK_CHANNELS, "image"): (True, False),
        (2 * latent_channels, "image_hint"): (False, True),
    }
    if (channels, added) not in kinds:
        raise UserError(
            f"the U-Net in {folder} reads {channels} channels with {added!r} embeddings; Kandinsky 2.2's decoders read "
            f"{' or '.join(f'{number} with {name!r}' for number, name in kinds)}."
        )
    return kinds[channels, added]


def kept_positions(mask: Float[Tensor, "H W"], size: tuple[int, int]) -> Float[Tensor, "1 1 h w"]:
    """1 at the latent positions that an inpainting keeps, 0 where the mask is 1 and next to it.

    Args:
        size: h, w.
    """
    repainted = F.interpolate(mask[None, None], size, mode="nearest")
    near = F.conv2d(repainted, torch.tensor(DILATION).to(mask)[None, None], padding=1)
    return (near == 0).to(mask)
