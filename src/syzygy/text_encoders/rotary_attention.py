"""How the tokens of an adapter read each other.

Legend: M packed tokens of all texts, Q of them queries, H heads of width E.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from syzygy.core.packed_attention import PackedAttention, Packing

ROTARY_BASE = 10_000.0


class RotaryAttend:
    """Bidirectional attention in each text, with rotary positions (Su et al. 2021, arXiv 2104.09864)."""

    def __init__(self, packing: Packing, place: Int[Tensor, "M"], width: int) -> None:
        self._attention = PackedAttention(packing.lengths, place.device)
        frequency = ROTARY_BASE ** -(torch.arange(0, width, 2, device=place.device) / width)
        angle = (place[:, None] * frequency)[:, None]
        self.cos, self.sin = angle.cos(), angle.sin()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # If q has fewer rows than k, they are the learned queries, whose position 0 rotates nothing.
        q = self.rotated(q) if len(q) == len(k) else q
        return self._attention.whole(q, self.rotated(k), v)

    def rotated(self, x: Float[Tensor, "M H E"]) -> Float[Tensor, "M H E"]:
        """The heads, rotated by their tokens' positions."""
        a, b = x.chunk(2, -1)
        cos, sin = (
            self.cos.to(x.dtype),
            self.sin.to(x.dtype),
        )  # under autocast, x has another dtype than the residual stream
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
