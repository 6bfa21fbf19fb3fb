"""What Stable Diffusion and Stable unCLIP share: guidance of an evaluation, and an autoencoder of scaled latents."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.core.pixels import to_unit


def pixels_a_position(vae: Any) -> int:
    """Along each side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def sample_positions(config: Mapping[str, Any], otherwise: int | None = None) -> tuple[int, int]:
    """Height and width, in positions, of the samples that a U-Net was made for.

    Where its configuration does not say it (`sample_size` null, as in some converted repositories): those of the published models, 128 of
    Stable Diffusion XL (1024 pixels) and 64 of the others (512 pixels).

    Args:
        config: the U-Net's.
        otherwise: instead of 128 or 64.
    """
    found = config.get("sample_size")
    if found is None:
        found = otherwise or (128 if config.get("addition_embed_type") == "text_time" else 64)
    height, width = (found, found) if isinstance(found, int) else found
    return height, width


def guided(found: Float[Tensor, "M C h w"], scale: float) -> Float[Tensor, "N C h w"]:
    """What to move away from comes first; with a scale of 1 there is none (classifier-free guidance, Ho and Salimans 2022)."""
    if scale == 1:
        return found
    negative, positive = found.chunk(2)
    return negative + scale * (positive - negative)


def decoded(vae: Any, latents: Float[Tensor, "N C h w"], *, singly: bool) -> Float[Tensor, "N 3 H W"]:
    """Images in [0, 1]; `singly` saves memory.

    Raises:
        NonFiniteError: as `to_unit`.
    """
    scaled = (latents / vae.config.scaling_factor).to(vae.dtype)
    parts = [vae.decode(part, return_dict=False)[0].float() for part in scaled.split(1 if singly else len(scaled))]
    return to_unit(torch.cat(parts))
