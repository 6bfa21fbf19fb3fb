"""The transformer of unCLIP priors, with the names of diffusers' `PriorTransformer`.

Legend: B batch, P tokens that came before, L tokens now, K all of them, C inner width, H heads of width D.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Past(NamedTuple):
    """Keys and values of the tokens before, in one layer: computed once, read by any number of later tokens."""

    keys: Float[Tensor, "B H P D"]
    values: Float[Tensor, "B H P D"]


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x_BLC: Tensor, mask: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        heads = (self.heads, -1)
        q, k, v = (project(x_BLC).unflatten(-1, heads).transpose(1, 2) for project in (self.to_q, self.to_k, self.to_v))
        if past is not None:
            k, v = torch.cat([past.keys, k], 2), torch.cat([past.values, v], 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out(y.transpose(1, 2).flatten(2)), Past(k, v)


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
    """Pre-norm attention and feed-forward of L tokens, which may read P earlier ones."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = _Attention(width, heads)
        self.norm3 = nn.LayerNorm(width)
        self.ff = _FeedForward(width)

    def forward(
        self, x_BLC: Float[Tensor, "B L C"], mask: Bool[Tensor, "B 1 L K"], past: Past | None = None
    ) -> tuple[Float[Tensor, "B L C"], Past]:
        """The tokens after this layer; keys and values of all tokens, the past ones first."""
        read, now = self.attn1(self.norm1(x_BLC), mask, past)
        x_BLC = x_BLC + read
        return x_BLC + self.ff(self.norm3(x_BLC)), now


def causal_mask(real_BL: Bool[Tensor, "B L"], past: int = 0) -> Bool[Tensor, "B 1 Q L"]:
    """True where a query (row) may read a key (column): real tokens up to itself, and always itself.

    A padded token reading itself leaves no row empty (softmax would give NaN); no real token reads it. Rows begin after
    the first `past` tokens.
    """
    length = real_BL.shape[1]
    causal_LL = torch.ones(length, length, dtype=torch.bool, device=real_BL.device).tril()
    itself_LL = torch.eye(length, dtype=torch.bool, device=real_BL.device)
    return ((causal_LL & real_BL[:, None, None, :]) | itself_LL)[:, :, past:]
