"""Paint-with-words in diffusers' U-Nets: attention processors around the ones they have, no class patched."""

from typing import Any

import torch
from torch import Tensor

from syzygy.diffusion.paint import Painting, bias, largest_score


class PaintedProcessor:
    """Adds the painting's bias to the mask of a cross-attention and leaves the rest to the processor that was there."""

    def __init__(self, plain: Any) -> None:
        self.plain = plain

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        painting: Painting | None = None,
        **more: Any,
    ) -> Tensor:
        """As diffusers calls a processor; `painting` comes in `cross_attention_kwargs`."""
        if painting is not None and encoder_hidden_states is not None:
            attention_mask = _painted_mask(attn, hidden_states, encoder_hidden_states, attention_mask, painting)
        return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **more)


def paintable(unet: Any) -> None:
    """Let this U-Net take a `painting` in its `cross_attention_kwargs`; without one it computes what it did."""
    unet.set_attn_processor({name: PaintedProcessor(one) for name, one in unet.attn_processors.items()})


def _painted_mask(attn: Any, x: Tensor, tokens: Tensor, mask: Tensor | None, painting: Painting) -> Tensor:
    """The mask [B·N, L, T] that diffusers' processors take, with the bias added."""
    q, k = (y.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for y in (attn.to_q(x), attn.to_k(tokens)))
    # diffusers hides tokens with -10000 in a mask [B, 1, T].
    visible = None if mask is None else mask[:, 0] > -1
    with torch.no_grad():  # how strong a pull is, is no way to learn
        largest = largest_score(q, k, visible)
    added = bias(painting.at(x.shape[1]).to(q.dtype), largest)
    if mask is not None:
        added = added + mask[:, None]
    return added.flatten(0, 1)
