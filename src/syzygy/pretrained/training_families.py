"""Which family a model's folder in diffusers' layout is of, for training its U-Net."""

from pathlib import Path

import torch

from syzygy.core.errors import UserError
from syzygy.pretrained.kandinsky_training import beside_kandinsky
from syzygy.pretrained.stable_diffusion_training import beside_stable_diffusion
from syzygy.pretrained.unet_training import Beside


def load_beside(folder: Path, size: int | None, device: torch.device, clip: str | Path | None = None) -> Beside:
    """What the U-Net in a folder is trained beside: Kandinsky 2.2's decoder if it has a MOVQ, else Stable Diffusion 1.x, 2.x or XL.

    Args:
        size: side of the pictures in pixels; None: what the U-Net was made for.
        clip: folder or hub id of the CLIP whose image embeddings the U-Net reads, if it reads any.

    Raises:
        UserError: as of the families; a CLIP is missing, or has no effect.
    """
    if (folder / "movq").is_dir():
        if clip is None:
            raise UserError(
                f"the U-Net in {folder} reads CLIP image embeddings: give --clip, the folder of the CLIP that it was trained with, such "
                "as kandinsky-2-2-prior."
            )
        return beside_kandinsky(folder, clip, size, device)
    if clip is not None:
        raise UserError(
            f"--clip has no effect: the U-Net in {folder} reads texts with encoders of its own. Leave it out."
        )
    return beside_stable_diffusion(folder, size, device)
