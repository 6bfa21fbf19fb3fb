"""The transformer of unCLIP priors, with the names of diffusers' `PriorTransformer`.

Legend: L tokens, Q of them that are asked for, C inner width, H heads of width D. What comes before is the caller's: rows of a
batch, or nothing where all tokens of a batch stand one after another.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries [..., Q, H, D], keys and values [..., L, H, D] → what each query reads [..., Q, H, D]. Who may read whom, where sequences end and
which tokens came before is its business: a block knows none of it."""


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, asking: Tensor, asked: Tensor, attend: Attend) -> Tensor:
        q, k, v = self.to_q(asking), self.to_k(asked), self.to_v(asked)
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
        self, x: Float[Tensor, "*B L C"], attend: Attend, kept: Int[Tensor, "Q"] | None = None
    ) -> Float[Tensor, "*B Q C"]:
        """The tokens after this layer: all, or those at `kept` alone (the others are read, and not computed further)."""
        asked = self.norm1(x)
        asking = asked
        if kept is not None:
            x, asking = x.index_select(-2, kept), asked.index_select(-2, kept)
        x = x + self.attn1(asking, asked, attend)
        return x + self.ff(self.norm3(x))
