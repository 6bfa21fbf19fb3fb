"""What Stable Diffusion and Stable unCLIP share: guidance of an evaluation, and an autoencoder of scaled latents."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.diffusion.pixels import to_unit


def pixels_a_position(vae: Any) -> int:
    """Along each side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def guided(found: Float[Tensor, "M C h w"], scale: float) -> Float[Tensor, "N C h w"]:
    """What to move away from comes first; with a scale of 1 there is none (classifier-free guidance, Ho and Salimans 2022)."""
    if scale == 1:
        return found
    away, towards = found.chunk(2)
    return away + scale * (towards - away)


def decoded(vae: Any, latents: Float[Tensor, "N C h w"], *, singly: bool) -> Float[Tensor, "N 3 H W"]:
    """Images in [0, 1]; `singly` saves memory.

    Raises:
        NonFiniteError: as `to_unit`.
    """
    scaled = (latents / vae.config.scaling_factor).to(vae.dtype)
    parts = [vae.decode(part, return_dict=False)[0].float() for part in scaled.split(1 if singly else len(scaled))]
    return to_unit(torch.cat(parts))
