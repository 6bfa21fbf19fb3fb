"""Training beside Kandinsky 2.2's decoder: pictures to MOVQ's latents, and to the CLIP image embeddings that its U-Net reads. No text.

Shapes: B pictures, D width of the embeddings (1280), C latent channels, h × w latent positions (an eighth of the pixels).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from syzygy.clip.clip_model import Clip
from syzygy.clip.image_processing import Preparation
from syzygy.clip.zero_image import ZeroImage
from syzygy.core import artifacts, checkpoint_files
from syzygy.core.diffusers_weights import load_model, read_settings
from syzygy.core.errors import UserError
from syzygy.pretrained import decoder_validation, kandinsky
from syzygy.pretrained.diffusers_decoder import pixels_a_position
from syzygy.pretrained.repositories import identity
from syzygy.pretrained.unet_training import MEAN, UNET, Beside, Pictures, square, training_noise

PIXELS, SEEN = "pixels", "seen"
"""A picture as MOVQ reads it, and as the CLIP does."""
EMBEDDING = "embedding"


@dataclass(frozen=True)
class Embeddings:
    """Pictures' CLIP image embeddings, as they are; captions only tell which pictures are told nothing."""

    nothing: Float[Tensor, "1 D"]
    """What guidance moves away from."""
    device: torch.device

    def __call__(self, captions: Sequence[str | None], kept: Mapping[str, Float[Tensor, "B ..."]]) -> dict[str, Any]:
        told = torch.tensor([caption is not None for caption in captions])
        embeddings = torch.where(told[:, None], kept[EMBEDDING], self.nothing).to(self.device)
        return {"encoder_hidden_states": None, "added_cond_kwargs": {"image_embeds": embeddings}}

    def fingerprints(self) -> dict[str, str]:
        return {}  # the CLIP is the pictures' own


def beside_kandinsky(folder: Path, clip: str | Path, size: int | None, device: torch.device) -> Beside:
    """The parts beside the U-Net in a folder with the layout of kandinsky-community/kandinsky-2-2-decoder, and its CLIP, on the device.

    Args:
        clip: folder (or hub id, from the hub's cache) of the CLIP that the decoder was trained with, such as kandinsky-2-2-prior.
        size: side of the pictures in pixels; None: what the U-Net was made for.

    Raises:
        UserError: a part is missing, truncated, pickle or another kind; the parts do not fit; an odd size.
    """
    from diffusers.models.autoencoders.vq_model import VQModel

    width, unet = kandinsky.KandinskyDecoder.embedding_width(folder), read_settings(folder, "unet", UNET)
    movq = load_model(VQModel, folder, "movq", torch.float32)
    if unet.get("in_channels") != movq.config.vq_embed_dim:
        raise UserError(
            f"the U-Net in {folder} reads {unet.get('in_channels')} channels, its autoencoder makes {movq.config.vq_embed_dim}: an "
            "inpainting or a ControlNet model, which cannot be trained here."
        )
    preparation, noise = square(unet, size, pixels_a_position(movq)), training_noise(folder)
    encoder = Clip.from_pretrained(clip).requires_grad_(False)
    if encoder.width != width:
        raise UserError(
            f"the decoder {folder} reads image embeddings {decoder_validation.which_clip(width)}; the CLIP {clip} makes embeddings "
            f"{decoder_validation.which_clip(encoder.width)}. Give the CLIP that the decoder was trained with."
        )
    encoder = encoder.to(device)
    nothing = ZeroImage(encoder, identity(checkpoint_files.locate(clip, None, local_files_only=True)))()
    return Beside(_pictures(movq.to(device), encoder, preparation), Embeddings(nothing, device), noise)


def _pictures(movq: Any, clip: Clip, preparation: Preparation) -> Pictures:
    def prepare(image: Image.Image) -> dict[str, Tensor]:
        return {PIXELS: preparation.prepare(image), SEEN: clip.preparation.prepare(image)}

    @torch.inference_mode()
    def encode(prepared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        latents = movq.encode(prepared[PIXELS].to(movq.device)).latents
        return {MEAN: latents.half(), EMBEDDING: clip.encode_pixels(prepared[SEEN])}

    told = {"movq": artifacts.fingerprint(movq.state_dict()), "clip": clip.fingerprint()}
    return Pictures(preparation.side, prepare, encode, told)
