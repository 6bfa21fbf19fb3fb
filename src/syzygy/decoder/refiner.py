"""A small transformer over the tokens of all conditions, before the backbone reads them.

Cross-attention looks at tokens one by one. Where the text encoders leave what a word means to others (that the circle of "a circle left of a
ring" is the left one stands in neither CLIP's nor a small T5's state of "circle"), the tokens must exchange it before. Token refiners of this
kind are known from large models (HunyuanVideo, Kong et al. 2024, arXiv 2412.03603, section 4.2).

Legend: B samples, T tokens, C their width.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

HIDDEN = -10_000.0
"""Added to the attention scores of hidden tokens."""


class TokenRefiner(nn.Module):
    """Layers of self-attention, each of which starts as the identity: a decoder without them can be continued with them."""

    def __init__(self, width: int, layers: int, head_width: int = 32) -> None:
        super().__init__()
        from diffusers.models.attention import BasicTransformerBlock

        heads = max(width // head_width, 1)
        blocks = [BasicTransformerBlock(width, heads, width // heads) for _ in range(layers)]
        self.blocks = nn.ModuleList(blocks)
        for block in blocks:
            attention_out: Any = block.attn1.to_out
            ff_out: Any = block.ff.net
            for last in (attention_out[0], ff_out[-1]):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def forward(self, tokens: Float[Tensor, "B T C"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """Tokens of the same shape. Hidden ones have no influence on the others; each row of `mask` must show at least one."""
        bias = torch.where(mask, 0.0, HIDDEN)[:, None].to(tokens.dtype)
        for block in self.blocks:
            tokens = block(tokens, attention_mask=bias)
        return tokens
