"""A small transformer over the tokens of all conditions, before the backbone reads them.

Cross-attention looks at tokens one by one. Where the text encoders leave what a word means to others (that the circle of "a circle left of a
ring" is the left one stands in neither CLIP's nor a small T5's state of "circle"), the tokens must exchange it before. Token refiners of this
kind are known from large models (HunyuanVideo, Kong et al. 2024, arXiv 2412.03603, section 4.2).

Legend: B samples, T tokens, C their width.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

HIDDEN = -10_000.0
"""Added to the attention scores of hidden tokens."""


class TokenRefiner(nn.Module):
    """Layers of self-attention, whose result is added to the tokens through a layer that starts as zero.

    A decoder without a refiner can so be continued with one, trained before or not: at first its backbone reads the tokens that it knows.
    """

    def __init__(self, width: int, layers: int, head_width: int = 32) -> None:
        super().__init__()
        from diffusers.models.attention import BasicTransformerBlock

        heads = max(width // head_width, 1)
        self.blocks = nn.ModuleList(BasicTransformerBlock(width, heads, width // heads) for _ in range(layers))
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def refined(self, tokens: Float[Tensor, "B T C"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """What is added, before the last layer. Hidden tokens have no influence on others; each row of `mask` must show at least one."""
        bias = torch.where(mask, 0.0, HIDDEN)[:, None].to(tokens.dtype)
        for block in self.blocks:
            tokens = block(tokens, attention_mask=bias)
        return tokens

    def forward(self, tokens: Float[Tensor, "B T C"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """Tokens of the same shape."""
        return tokens + self.out(self.refined(tokens, mask))
