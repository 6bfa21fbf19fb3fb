"""Stable Diffusion 1.x and 2.x in diffusers' layout, part by part, for training: pictures to latents, captions to states, and the U-Net."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy import artifact
from syzygy.errors import UserError
from syzygy.hub import checkpoint, schedulers, towers
from syzygy.hub.parts import check_parts, load_model, read_settings, renamed
from syzygy.hub.preparation import Preparation
from syzygy.hub.stable_unclip import TEXT_ENCODER, OwnText, text_model
from syzygy.train.unet import DiscreteNoise

SCHEDULER = "scheduler"
PARTS = ("unet", "vae", TEXT_ENCODER, "tokenizer", SCHEDULER)
UNET = "UNet2DConditionModel"
WEIGHTS_FILE = f"{checkpoint.DIFFUSERS}.safetensors"
LANCZOS = 1
"""Pillow's number of the filter that makes pictures smaller."""


@dataclass(frozen=True)
class StableDiffusion:
    """What a U-Net is trained beside, frozen, in fp32."""

    vae: Any
    text: OwnText
    noise: DiscreteNoise
    sample_size: int
    """Latent positions, along each side, of the pictures that the U-Net was made for."""

    @property
    def scale(self) -> int:
        """Pixels a latent position, along each side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def preparation(self, size: int | None) -> Preparation:
        """How pictures become `size` × `size` pixels (None: as many as the U-Net was made for): resized by the shorter side, cut from the
        middle, in [-1, 1].

        Raises:
            UserError: not a multiple of the pixels a latent position.
        """
        size = self.sample_size * self.scale if size is None else size
        if size % self.scale:
            raise UserError(f"size={size}: pictures of this model have sides that are multiples of {self.scale}.")
        half = (0.5, 0.5, 0.5)
        return Preparation(resize=size, crop=size, resample=LANCZOS, mean=half, std=half)

    @torch.inference_mode()
    def encode(self, pixels: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B C h w"], Float[Tensor, "B C h w"]]:
        """Mean and standard deviation of the pictures' latents, scaled as the U-Net wants them."""
        found = self.vae.encode(pixels.to(self.text.device)).latent_dist
        factor = self.vae.config.scaling_factor
        return found.mean * factor, found.std * factor

    def fingerprints(self) -> dict[str, str]:
        """What tells its parts from others'."""
        return {
            "vae": artifact.fingerprint(self.vae.state_dict()),
            "text_encoder": artifact.fingerprint(self.text.model.state_dict()),
            "scheduler": f"{self.noise.prediction} {artifact.fingerprint({'kept': self.noise.kept})}",
        }


def load_beside(folder: Path, device: torch.device) -> StableDiffusion:
    """The parts of Stable Diffusion 1.x or 2.x beside its U-Net, on the device.

    Raises:
        UserError: a part is missing, truncated, pickle or another kind; the parts do not fit; a U-Net that reads more than a text.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    check_parts(folder, PARTS, "Stable Diffusion")
    unet = read_settings(folder, "unet", UNET)
    vae = load_model(AutoencoderKL, folder, "vae", torch.float32)
    text = text_model(folder, torch.float32)
    _check(folder, unet, vae.config.latent_channels, text.config.hidden_size)
    scheduler = schedulers.load_scheduler(folder)
    if scheduler.config.get("timestep_type") == "continuous":
        raise UserError(
            f"the scheduler in {folder} counts in noise levels; models that count timesteps can be trained."
        )
    noise = DiscreteNoise(scheduler.alphas_cumprod.double(), str(scheduler.config.get("prediction_type")))
    own_text = OwnText(text.to(device), towers.read_tokenizer(folder / "tokenizer"), device, offload=False)
    return StableDiffusion(vae.to(device), own_text, noise, unet["sample_size"])


def _check(folder: Path, unet: Mapping[str, Any], channels: int, width: int) -> None:
    more = [name for name in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type") if unet.get(name)]
    if more:
        raise UserError(
            f"the U-Net in {folder} reads more than a text ({', '.join(more)}): Stable Diffusion 1.x and 2.x can be trained, XL and "
            "unCLIP models cannot."
        )
    if not isinstance(unet.get("sample_size"), int):
        raise UserError(f"the U-Net in {folder} does not tell its sample_size, as Stable Diffusion's do.")
    if unet.get("in_channels") != channels:
        raise UserError(
            f"the U-Net in {folder} reads {unet.get('in_channels')} channels, its autoencoder makes {channels}: an inpainting model, "
            "which cannot be trained here."
        )
    if unet.get("cross_attention_dim") != width:
        raise UserError(
            f"{folder}: the U-Net reads text states {unet.get('cross_attention_dim')} wide, its text encoder makes {width}."
        )


def load_unet(folder: Path) -> Any:
    """The U-Net in a folder of its own, in fp32, on the CPU, in evaluation mode and frozen. Raises as `load_model`."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return load_model(UNet2DConditionModel, folder.parent, folder.name, torch.float32)


def save_unet(unet: Any, folder: Path, record: Mapping[str, Any]) -> None:
    """Write a U-Net in diffusers' layout, in fp32, with its provenance, atomically."""
    with artifact.folder_written(folder) as temporary:
        unet.save_config(temporary)
        artifact.write_tensors(temporary / WEIGHTS_FILE, unet.state_dict())
        artifact.write_json(temporary / artifact.PROVENANCE_FILE, dict(record))


def copy_unet(source: Path, folder: Path) -> None:
    """A U-Net's folder with one file of weights, as they are stored, and nothing else of what may lie there."""
    weights = renamed(checkpoint.read_weights(source, checkpoint.DIFFUSERS))
    artifact.write_tensors(folder / WEIGHTS_FILE, weights)
    artifact.write_json(folder / artifact.CONFIG_FILE, artifact.read_json(source / artifact.CONFIG_FILE))
