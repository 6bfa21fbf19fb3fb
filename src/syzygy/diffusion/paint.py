"""Paint-with-words (eDiff-I, arXiv 2211.01324, section 4.3): where a word is painted, pictures attend to it more.

Every cross-attention becomes softmax((QKᵀ + w·A)/√d)·V with w = w'·log(1 + σ)·max(QKᵀ): A holds the painted mask in the columns of
the phrase's tokens, so the noisier the picture, the stronger the pull.
Legend: B samples, N heads, L positions of a picture, T tokens, D width of a head.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

CHUNK = 2**24
"""Scores held at a time, to find the largest."""


def strength(sigma: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """log(1 + σ): what w' is multiplied by at a noise level."""
    return sigma.log1p()


@dataclass(frozen=True)
class Painting:
    """What one evaluation of a decoder shall attend to: w'·log(1 + σ)·A for each sample, at full resolution."""

    weights: Float[Tensor, "B T H W"]
    """0 where nothing is painted."""
    _resized: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def at(self, positions: int) -> Float[Tensor, "B L T"]:
        """Resized bilinearly to the resolution that has this many positions; kept, as a network has several layers of each."""
        if positions not in self._resized:
            height, width = self.weights.shape[-2:]
            shrink = math.sqrt(height * width / positions)
            size = round(height / shrink), round(width / shrink)
            assert size[0] * size[1] == positions, f"{positions} positions are no picture of {height} × {width}"
            small = F.interpolate(self.weights, size, mode="bilinear", antialias=True)
            self._resized[positions] = small.flatten(2).transpose(1, 2)
        return self._resized[positions]


def largest_score(
    q: Float[Tensor, "B N L D"], k: Float[Tensor, "B N T D"], visible: Bool[Tensor, "B T"] | None = None
) -> Float[Tensor, "B N"]:
    """max(QKᵀ)/√d of each sample and head, over the tokens that are visible.

    Not over the batch, as other implementations do: a picture would depend on its neighbours.
    """
    k = k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    hidden = None if visible is None else ~visible[:, None, None]
    rows = max(CHUNK // (q.shape[0] * q.shape[1] * k.shape[-1]), 1)
    found = []
    for part in q.split(rows, dim=2):
        scores = part @ k
        found.append((scores if hidden is None else scores.masked_fill(hidden, -math.inf)).amax((2, 3)))
    return torch.stack(found).amax(0)


def bias(painting: Float[Tensor, "B L T"], largest: Float[Tensor, "B N"]) -> Float[Tensor, "B N L T"]:
    """What is added to the scaled scores (as `scaled_dot_product_attention` adds its mask)."""
    return painting[:, None] * largest[:, :, None, None]
