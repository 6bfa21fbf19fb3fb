"""The transformer of unCLIP priors, with the names of diffusers' `PriorTransformer`.

Legend: L tokens, Q of them that are computed further, C inner width, H heads of width D. Dimensions before them belong to the caller: rows of a
batch, or none where all tokens of a batch are packed one after another.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries [..., Q, H, D], keys and values [..., L, H, D] → what each query reads [..., Q, H, D]. It decides which token reads
which, where sequences end, and what is cached; a block knows none of it."""


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, queries: Tensor, tokens: Tensor, attend: Attend) -> Tensor:
        q, k, v = self.to_q(queries), self.to_k(tokens), self.to_v(tokens)
        return self.to_out(attend(*(x.unflatten(-1, (self.heads, -1)) for x in (q, k, v))).flatten(-2))


class _GELU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # The published names leave place 1 to a dropout of zero.
        self.net = nn.Sequential(_GELU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = _Attention(width, heads)
        self.norm3 = nn.LayerNorm(width)
        self.ff = _FeedForward(width)

    def forward(
        self,
        x: Float[Tensor, "*B L C"],
        attend: Attend,
        kept: Int[Tensor, "Q"] | None = None,
        modulation: Float[Tensor, "*B L 4*C"] | None = None,
    ) -> Float[Tensor, "*B Q C"]:
        """The tokens after this layer: all, or only those at `kept` (the others are read but not computed further).

        Args:
            modulation: shift and scale of each token after the first normalisation, then after the second (AdaLN, arXiv 2212.09748); all 0
                changes nothing.
        """
        first, second = (None, None) if modulation is None else modulation.chunk(2, -1)
        tokens = _modulated(self.norm1(x), first)
        queries = tokens
        if kept is not None:
            x, queries = x.index_select(-2, kept), tokens.index_select(-2, kept)
            second = None if second is None else second.index_select(-2, kept)
        x = x + self.attn1(queries, tokens, attend)
        return x + self.ff(_modulated(self.norm3(x), second))


def _modulated(x: Float[Tensor, "*B L C"], by: Float[Tensor, "*B L 2*C"] | None) -> Float[Tensor, "*B L C"]:
    if by is None:
        return x
    shift, scale = by.chunk(2, -1)
    return x * (1 + scale) + shift
