"""Latents of a given picture: where sampling starts (image-to-image), or what it keeps (inpainting).

Shapes: N images, C latent channels, h × w latent positions.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from syzygy.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class KnownLatents:
    """Latents of a picture, for all images of a batch."""

    latents: Float[Tensor, "1 C h w"]
    strength: float | None = None
    """Sampling starts from the latents with noise, and takes this share of its steps, in (0, 1]. None: it starts from noise alone."""
    keep: Float[Tensor, "1 1 h w"] | None = None
    """1 where the latents are kept, 0 where they are generated. None keeps nothing."""

    def skipped(self, steps: int) -> int:
        """How many of the first steps are left out. The share is rounded as in diffusers.

        Raises:
            UserError: no step would be left.
        """
        if self.strength is None:
            return 0
        taken = min(int(steps * self.strength), steps)
        if taken == 0:
            raise UserError(
                f"strength {self.strength:g} leaves none of {steps} steps: raise the strength, or take more steps."
            )
        return steps - taken

    def kept_in(self, generated: Float[Tensor, "N C h w"], known: Float[Tensor, "_ C h w"]) -> Float[Tensor, "N C h w"]:
        """The generated latents, with `known` (these latents at the same noise level) where they are kept."""
        return generated if self.keep is None else self.keep * known + (1 - self.keep) * generated
