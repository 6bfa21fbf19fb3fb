"""What the U-Nets of published families are trained with: images to latents, and captions or images to what the U-Net reads.

Shapes: B images, S side of a prepared image, D width of Kandinsky's embeddings (1280), C latent channels, h × w latent positions.
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

from syzygy.clip.clip_model import Clip
from syzygy.clip.image_processing import Preparation
from syzygy.clip.zero_image import ZeroImage
from syzygy.core import artifacts, hub_files
from syzygy.core.diffusers_weights import load_model, read_settings
from syzygy.core.errors import UserError
from syzygy.pretrained.decoder_validation import which_clip
from syzygy.pretrained.diffusers_decoder import pixels_a_position
from syzygy.pretrained.families import LoadContext
from syzygy.pretrained.kandinsky import KandinskyDecoder
from syzygy.pretrained.repositories import identity
from syzygy.pretrained.stable_diffusion import check_fit, check_folder, negative_is_zeros
from syzygy.pretrained.text_reader import SECOND_TEXT_ENCODER, TextReader, load_reader, read_target
from syzygy.pretrained.unet_training import MEAN, STD, UNET, Pictures, TrainingParts, square, training_noise

PIXELS, SEEN = "pixels", "seen"
"""An image as the autoencoder reads it, and as Kandinsky's CLIP does."""
EMBEDDING = "embedding"
PLACE = "place"
"""What XL reads about an image: height and width before it was resized, top and left of the crop, height and width now."""


def load_beside(
    folder: Path,
    size: int | None,
    device: torch.device,
    clip: str | Path | None = None,
    *,
    local_files_only: bool = True,
) -> TrainingParts:
    """The parts that the U-Net in a folder is trained with, on the device.

    The family is Kandinsky 2.2 if the folder has a MOVQ, else Stable Diffusion 1.x, 2.x or XL.

    Args:
        size: side of the images in pixels; None: the one that the U-Net was made for.
        clip: folder or hub id of the CLIP whose image embeddings the U-Net reads, if it reads any.
        local_files_only: take that hub id from the hub's cache only; else download what is missing.

    Raises:
        UserError: a part is missing, truncated, pickle or another kind; the parts do not fit together; an odd size; a CLIP is missing,
            or has no effect.
    """
    if (folder / "movq").is_dir():
        if clip is None:
            raise UserError(
                f"the U-Net in {folder} reads CLIP image embeddings: give --clip, the folder of the CLIP that it was trained with, such "
                "as kandinsky-2-2-prior."
            )
        return _kandinsky(folder, clip, size, device, local_files_only)
    if clip is not None:
        raise UserError(
            f"--clip has no effect: the U-Net in {folder} reads texts with encoders of its own. Leave it out."
        )
    return _stable_diffusion(folder, size, device)


@dataclass(frozen=True)
class Captions:
    """Captions → the states of Stable Diffusion's text encoder, or of XL's two, and what else XL reads."""

    reader: TextReader
    zeros: bool
    """Whether zeros, not the empty text, stand for no text."""

    @property
    def device(self) -> torch.device:
        return self.reader.device

    def __call__(self, captions: Sequence[str | None], kept: Mapping[str, Float[Tensor, "B ..."]]) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a text that is cut: one of thousands, at every step again
            read = self.reader([caption or "" for caption in captions])
        given = torch.tensor([caption is not None or not self.zeros for caption in captions], device=self.device)
        states = read.states.float() * given[:, None, None]
        if read.pooled is None:
            return {"encoder_hidden_states": states}
        more = {"text_embeds": read.pooled.float() * given[:, None], "time_ids": kept[PLACE].to(self.device)}
        return {"encoder_hidden_states": states, "added_cond_kwargs": more}

    def fingerprints(self) -> dict[str, str]:
        return self.reader.fingerprints()


def _stable_diffusion(folder: Path, size: int | None, device: torch.device) -> TrainingParts:
    pictures = stable_diffusion_pictures(folder, size, device)
    reader = load_reader(LoadContext(folder=folder, device=device), second=(folder / SECOND_TEXT_ENCODER).is_dir())
    return TrainingParts(pictures, Captions(reader, negative_is_zeros(folder)), training_noise(folder))


def stable_diffusion_pictures(folder: Path, size: int | None, device: torch.device) -> Pictures:
    """How images become latents of the Stable Diffusion in a folder, with its autoencoder on the device. Raises as `load_beside`."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    xl = (folder / SECOND_TEXT_ENCODER).is_dir()
    check_folder(folder, xl=xl)
    unet = read_settings(folder, "unet", UNET)
    vae = load_model(AutoencoderKL, folder, "vae", torch.float32)
    check_fit(folder, unet, vae.config, read_target(folder, xl=xl))
    preparation = square(unet, size, pixels_a_position(vae))
    if xl:
        vae.enable_slicing()  # images of a megapixel, in fp32
    return _stable_diffusion_images(vae.to(device), preparation, xl)


def _stable_diffusion_images(vae: Any, preparation: Preparation, xl: bool) -> Pictures:
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


@dataclass(frozen=True)
class Embeddings:
    """The images' CLIP image embeddings, as they are; a caption that is None replaces one by `nothing`."""

    nothing: Float[Tensor, "1 D"]
    """The unconditional embedding of guidance."""
    device: torch.device

    def __call__(self, captions: Sequence[str | None], kept: Mapping[str, Float[Tensor, "B ..."]]) -> dict[str, Any]:
        given = torch.tensor([caption is not None for caption in captions])
        embeddings = torch.where(given[:, None], kept[EMBEDDING], self.nothing).to(self.device)
        return {"encoder_hidden_states": None, "added_cond_kwargs": {"image_embeds": embeddings}}

    def fingerprints(self) -> dict[str, str]:
        return {}  # the images' fingerprints name the CLIP


def _kandinsky(
    folder: Path, clip: str | Path, size: int | None, device: torch.device, local_files_only: bool
) -> TrainingParts:
    from diffusers.models.autoencoders.vq_model import VQModel

    width, unet = KandinskyDecoder.embedding_width(folder), read_settings(folder, "unet", UNET)
    movq = load_model(VQModel, folder, "movq", torch.float32)
    if unet.get("in_channels") != movq.config.vq_embed_dim:
        raise UserError(
            f"the U-Net in {folder} reads {unet.get('in_channels')} channels, its autoencoder makes {movq.config.vq_embed_dim}: an "
            "inpainting or a ControlNet model, which cannot be trained here."
        )
    preparation, noise = square(unet, size, pixels_a_position(movq)), training_noise(folder)
    encoder = Clip.from_pretrained(clip, local_files_only=local_files_only).requires_grad_(False)
    if encoder.width != width:
        raise UserError(
            f"the decoder {folder} reads image embeddings {which_clip(width)}; the CLIP {clip} makes embeddings "
            f"{which_clip(encoder.width)}. Give the CLIP that the decoder was trained with."
        )
    encoder = encoder.to(device)
    nothing = ZeroImage(encoder, identity(hub_files.locate(clip, None, local_files_only=True)))()
    return TrainingParts(_kandinsky_images(movq.to(device), encoder, preparation), Embeddings(nothing, device), noise)


def _kandinsky_images(movq: Any, clip: Clip, preparation: Preparation) -> Pictures:
    def prepare(image: Image.Image) -> dict[str, Tensor]:
        return {PIXELS: preparation.prepare(image), SEEN: clip.preparation.prepare(image)}

    @torch.inference_mode()
    def encode(prepared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        latents = movq.encode(prepared[PIXELS].to(movq.device)).latents
        return {MEAN: latents.half(), EMBEDDING: clip.encode_pixels(prepared[SEEN])}

    prints = {"movq": artifacts.fingerprint(movq.state_dict()), "clip": clip.fingerprint()}
    return Pictures(preparation.side, prepare, encode, prints)
