"""Paint-with-words (eDiff-I, arXiv 2211.01324, section 4.3): inside the region of a word, images attend to it more.

Every cross-attention becomes softmax((QKᵀ + w·A)/√d)·V with w = w'·log(1 + σ)·max(QKᵀ): A holds the region's mask in the columns of
the phrase's tokens, so the effect is stronger at high noise.
Legend: B samples, N heads, L positions of an image, T words' tokens, K keys, D width of a head, h × w the masks' resolution.
"""

import math
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from syzygy.core.errors import UserError

REGION_STRENGTH = 0.4
"""Region strength (w') where a model sets none; ports of paint-with-words use 0.1 to 0.4."""


def noise_factor(sigma: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """log(1 + σ): what w' is multiplied by at a noise level."""
    return sigma.log1p()


@dataclass(frozen=True)
class RegionBias:
    """The bias of one evaluation of a denoiser: w'·log(1 + σ)·A of each sample with regions."""

    weights: Float[Tensor, "B T h w"]
    """w'·A: 0 outside of regions. At any resolution: it covers the whole image."""
    size: tuple[int, int]
    """Height and width of what the network denoises. Further in, each resolution is half of the one before, rounded up."""
    level: Float[Tensor, "B"]
    """log(1 + σ)."""
    start: int = 0
    """Keys before the words' own."""
    negatives: int = 0
    """Samples of the batch before those with regions: the negative branch of guidance."""
    _resized: dict[int, tuple[Tensor, tuple[int, int], Tensor]] = field(default_factory=dict, repr=False)
    """By positions: weights, size, and what was made of them. Shared by all instances made from one with `replace`."""

    def at(self, positions: int) -> Float[Tensor, "B L T"]:
        """w'·A, resized bilinearly to the resolution that has this many positions; kept, as several layers and steps need each.

        Raises:
            UserError: no resolution has.
        """
        weights, made_for, found = self._resized.get(positions, (None, None, None))
        if found is None or weights is not self.weights or made_for != self.size:
            height, width = self.size
            while height * width > positions:
                height, width = -(-height // 2), -(-width // 2)
            if height * width != positions:
                raise UserError(
                    f"this network attends at {positions} positions, which is no half, quarter, … of an image of "
                    f"{self.size[0]} × {self.size[1]}: it does not support regions."
                )
            small = F.interpolate(self.weights, (height, width), mode="bilinear", antialias=True)
            found = small.flatten(2).transpose(1, 2).contiguous()
            self._resized[positions] = self.weights, self.size, found
        return found


def attention(
    q: Float[Tensor, "B N L D"],
    k: Float[Tensor, "B N K D"],
    v: Float[Tensor, "B N K V"],
    bias: RegionBias,
    mask: Float[Tensor, "B 1 1 K"] | None = None,
) -> Float[Tensor, "B N L V"]:
    """softmax(QKᵀ/√d + w'·log(1 + σ)·max(QKᵀ/√d)·A)·V.

    The maximum is of each sample and head, not over the batch as in other implementations: an image would depend on its neighbours. It is over
    the words' keys that can be seen. Scores must be known before their maximum is; a fused attention would compute them again.

    Args:
        mask: added to the scaled scores: far below 0 where a key is hidden.
    """
    scores = (q.float() / math.sqrt(q.shape[-1])) @ k.float().transpose(-1, -2)
    if mask is not None:
        scores += mask
    words = scores[..., bias.start : bias.start + bias.weights.shape[1]]
    largest = words.detach().amax((2, 3)) * bias.level[:, None]  # the scale of the bias gets no gradient
    words.addcmul_(bias.at(q.shape[2])[:, None], largest[:, :, None, None])
    return scores.softmax(-1).to(v.dtype) @ v
