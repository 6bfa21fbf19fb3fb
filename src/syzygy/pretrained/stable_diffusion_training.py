"""Training beside Stable Diffusion 1.x, 2.x and XL in diffusers' layout: pictures to latents, captions to what the U-Net reads.

Shapes: B pictures, S side of a prepared picture, C latent channels, h × w latent positions.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from syzygy.clip.image_processing import Preparation
from syzygy.core import artifacts
from syzygy.core.diffusers_weights import load_model, read_settings
from syzygy.pretrained import stable_diffusion
from syzygy.pretrained.diffusers_decoder import pixels_a_position
from syzygy.pretrained.families import LoadContext
from syzygy.pretrained.text_reader import SECOND_TEXT_ENCODER, TEXT_ENCODER, TextReader, load_reader
from syzygy.pretrained.unet_training import MEAN, STD, UNET, Beside, Pictures, square, training_noise

PIXELS, PLACE = "pixels", "place"
"""`PLACE`: what XL is told of a picture: height and width before it was resized, top and left of the cut, height and width now."""


@dataclass(frozen=True)
class Captions:
    """Captions → the states of the text encoder, or of XL's two, with what XL reads besides."""

    reader: TextReader
    zeros: bool
    """Whether zeros, not the empty text, stand for no text."""

    @property
    def device(self) -> torch.device:
        return self.reader.device

    def __call__(self, captions: Sequence[str | None], kept: Mapping[str, Float[Tensor, "B ..."]]) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a text that is cut: one of thousands, at every step again
            read = self.reader([caption or "" for caption in captions])
        told = torch.tensor([caption is not None or not self.zeros for caption in captions], device=self.device)
        states = read.states.float() * told[:, None, None]
        if read.pooled is None:
            return {"encoder_hidden_states": states}
        more = {"text_embeds": read.pooled.float() * told[:, None], "time_ids": kept[PLACE].to(self.device)}
        return {"encoder_hidden_states": states, "added_cond_kwargs": more}

    def fingerprints(self) -> dict[str, str]:
        names = (TEXT_ENCODER, SECOND_TEXT_ENCODER)
        parts = zip(names, self.reader.encoders, strict=False)
        return {name: artifacts.fingerprint(encoder.state_dict()) for name, encoder in parts}


def beside_stable_diffusion(folder: Path, size: int | None, device: torch.device) -> Beside:
    """The parts beside the U-Net of Stable Diffusion 1.x or 2.x, or of XL if there is a second text encoder, on the device.

    Args:
        size: side of the pictures in pixels; None: what the U-Net was made for.

    Raises:
        UserError: a part is missing, truncated, pickle or another kind; the parts do not fit; a U-Net that reads more than a text; an odd
            size.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    xl = (folder / SECOND_TEXT_ENCODER).is_dir()
    stable_diffusion.check_folder(folder, xl=xl)
    unet = read_settings(folder, "unet", UNET)
    vae = load_model(AutoencoderKL, folder, "vae", torch.float32)
    reader = load_reader(LoadContext(folder=folder, device=device), second=xl)
    stable_diffusion.check_fit(folder, unet, vae.config, reader)
    preparation, noise = square(unet, size, pixels_a_position(vae)), training_noise(folder)
    if xl:
        vae.enable_slicing()  # pictures of a megapixel, in fp32
    captions = Captions(reader, stable_diffusion.negative_is_zeros(folder))
    return Beside(_pictures(vae.to(device), preparation, xl), captions, noise)


def _pictures(vae: Any, preparation: Preparation, xl: bool) -> Pictures:
    side = preparation.side

    def prepare(image: Image.Image) -> dict[str, Tensor]:
        pixels = {PIXELS: preparation.prepare(image)}
        if not xl:
            return pixels
        place = [image.height, image.width, *preparation.corner(image.width, image.height), side, side]
        return {**pixels, PLACE: torch.tensor(place, dtype=torch.float32)}

    @torch.inference_mode()
    def encode(prepared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found, factor = vae.encode(prepared[PIXELS].to(vae.device)).latent_dist, vae.config.scaling_factor
        kept = {MEAN: (found.mean * factor).half(), STD: (found.std * factor).half()}
        return {**kept, PLACE: prepared[PLACE]} if xl else kept

    return Pictures(side, prepare, encode, {"vae": artifacts.fingerprint(vae.state_dict())})
