"""What training a published U-Net needs, the same for all families (`training_families`), and the U-Net's own files.

A family defines how images become the tensors that are kept (`Pictures`), and how these and captions become the U-Net's further
arguments (`Conditions`). Both are frozen, in fp32.

Shapes: B images, C latent channels, h × w latent positions, S side of a prepared image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from syzygy.clip.image_processing import Preparation
from syzygy.core import artifacts, diffusers_schedulers, hub_files
from syzygy.core.diffusers_weights import load_model, renamed
from syzygy.core.errors import UserError
from syzygy.pretrained.diffusers_decoder import sample_positions
from syzygy.pretrained.unet_task import DiscreteNoise

SCHEDULER = "scheduler"
UNET = "UNet2DConditionModel"
WEIGHTS_FILE = f"{hub_files.DIFFUSERS}.safetensors"
MEAN, STD = "mean", "std"
"""Mean and standard deviation of an image's latents, as they are kept. A deterministic autoencoder gives the mean alone."""
LANCZOS = 1
"""Pillow's number of the filter that makes images smaller."""


@dataclass(frozen=True)
class Pictures:
    """Images → the tensors that are kept, so that neither the images nor an autoencoder are needed again."""

    side: int
    """S."""
    prepare: Callable[[Image.Image], Mapping[str, Tensor]]
    """An image → tensors, of one shape for all images, on the CPU."""
    encode: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    """Stacked tensors of prepared images → `MEAN` and perhaps `STD` of their latents in fp16, scaled for the U-Net; and what else it
    reads about an image, under other names.
    """
    fingerprints: Mapping[str, str]
    """Of the networks that encode."""


@runtime_checkable
class Conditions(Protocol):
    """What a U-Net reads besides latents and timesteps: captions (Stable Diffusion) or image embeddings (Kandinsky)."""

    @property
    def device(self) -> torch.device: ...

    def __call__(self, captions: Sequence[str | None], kept: Mapping[str, Float[Tensor, "B ..."]]) -> Mapping[str, Any]:
        """Further arguments of the U-Net, on the device, for B images.

        Args:
            captions: None where the unconditional branch of guidance is trained.
            kept: what `Pictures` kept besides latents, in fp32, on the CPU.
        """
        ...

    def fingerprints(self) -> dict[str, str]:
        """Of the networks that it uses."""
        ...


@dataclass(frozen=True)
class TrainingParts:
    """Everything that a U-Net is trained with."""

    pictures: Pictures
    conditions: Conditions
    noise: DiscreteNoise

    def fingerprints(self) -> dict[str, str]:
        """Of all parts."""
        scheduler = self.noise.fingerprint()
        return {**self.pictures.fingerprints, **self.conditions.fingerprints(), "scheduler": scheduler}


def training_noise(folder: Path) -> DiscreteNoise:
    """That of the scheduler in a model's folder.

    Raises:
        UserError: it is missing, or of a kind that does not count timesteps.
    """
    scheduler = diffusers_schedulers.load_scheduler(folder)
    if scheduler.config.get("timestep_type") == "continuous":
        raise UserError(
            f"the scheduler in {folder} counts in noise levels; models that count timesteps can be trained."
        )
    return DiscreteNoise(scheduler.alphas_cumprod.double(), str(scheduler.config.get("prediction_type")))


def square(unet: Mapping[str, Any], size: int | None, scale: int) -> Preparation:
    """How images become `size` × `size` pixels (None: as many as the U-Net was made for): resized by the shorter side, cut from the
    middle, in [-1, 1].

    Args:
        scale: pixels a latent position, along each side.

    Raises:
        UserError: not a multiple of that.
    """
    side = min(sample_positions(unet)) * scale if size is None else size
    if side % scale:
        raise UserError(f"size={side}: images of this model have sides that are multiples of {scale}.")
    half = (0.5, 0.5, 0.5)
    return Preparation(resize=side, crop=side, resample=LANCZOS, mean=half, std=half)


def load_unet(folder: Path) -> Any:
    """The U-Net in a folder of its own, in fp32, on the CPU, in evaluation mode and frozen. Raises as `load_model`."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return load_model(UNet2DConditionModel, folder.parent, folder.name, torch.float32)


def save_unet(unet: Any, folder: Path, record: Mapping[str, Any], dtype: torch.dtype | None = None) -> None:
    """Write a U-Net in diffusers' layout with its provenance, atomically; `dtype` (fp16) converts the weights."""
    with artifacts.folder_written(folder) as temporary:
        unet.save_config(temporary)
        artifacts.write_tensors(temporary / WEIGHTS_FILE, unet.state_dict(), dtype)
        artifacts.write_json(temporary / artifacts.PROVENANCE_FILE, dict(record))


def copy_unet(source: Path, folder: Path) -> None:
    """A U-Net's folder with one file of weights, as they are stored, and nothing else of what may lie there."""
    weights = renamed(hub_files.read_weights(source, hub_files.DIFFUSERS))
    artifacts.write_tensors(folder / WEIGHTS_FILE, weights)
    artifacts.write_json(folder / artifacts.CONFIG_FILE, artifacts.read_json(source / artifacts.CONFIG_FILE))
