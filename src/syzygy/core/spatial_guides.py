"""What a guide says about places of the image: regions of phrases, and pictures that a decoder reads pixel by pixel.

Shapes: H × W pixels of an image, or any size for the mask of a region.
"""

from dataclasses import dataclass
from numbers import Real

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.core.errors import UserError


@dataclass(frozen=True)
class Region:
    """A phrase of the prompt, and the region of the image where it should appear (paint-with-words)."""

    phrase: str
    """As it occurs in the prompt, in any case. If it occurs several times, all occurrences are meant."""
    mask: Float[Tensor, "H W"]
    """From 0 (outside) to 1 (inside). It covers the whole image, whatever its size and aspect ratio."""
    weight: float = 1.0
    """Strength relative to other regions, at least 0."""

    def __post_init__(self) -> None:
        if not isinstance(self.phrase, str) or not self.phrase.strip():
            raise UserError("a region needs the phrase that it is for: give words of the prompt.")
        if not isinstance(self.mask, Tensor) or self.mask.ndim != 2 or not self.mask.numel() or self.mask.is_complex():
            shape = (
                f", got {[*self.mask.shape]}" if isinstance(self.mask, Tensor) else f", got {type(self.mask).__name__}"
            )
            raise UserError(f"the mask of {self.phrase!r} must be a tensor [height, width]{shape}.")
        if not (torch.isfinite(self.mask).all() and self.mask.min() >= 0 and self.mask.max() <= 1):
            raise UserError(f"the mask of {self.phrase!r} must hold numbers from 0 to 1.")
        if not self.mask.any():
            raise UserError(
                f"the mask of {self.phrase!r} is empty: mark where the phrase should appear, or leave the region out."
            )
        if not isinstance(self.weight, Real) or not 0 <= self.weight < float("inf"):
            raise UserError(
                f"the weight of {self.phrase!r} must be a finite number of at least 0, got {self.weight!r}."
            )


@dataclass(frozen=True, kw_only=True)
class PixelGuide:
    """Pictures of the same size as the images, which a decoder reads pixel by pixel."""

    image: Float[Tensor, "3 H W"] | None = None
    """The picture to start from (image-to-image) or to repaint in part (inpainting), in [0, 1]."""
    mask: Float[Tensor, "H W"] | None = None
    """1 where the picture is repainted, 0 where it is kept, as in diffusers."""
    depth: Float[Tensor, "3 H W"] | None = None
    """A depth map in [0, 1], bright where the scene is near, in three equal channels."""

    @property
    def names(self) -> list[str]:
        """Which of them are provided."""
        return [name for name in ("image", "mask", "depth") if getattr(self, name) is not None]
